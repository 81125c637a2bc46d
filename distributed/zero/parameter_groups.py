"""The optimizer's parameter groups: which weights decay."""

from typing import Any

from torch import nn

_NO_DECAY = ("A_log", ".D", "position_embedding.weight")


def parameter_groups(named: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into matrices, which decay, and biases, norms, `A_log` and `D`, which do not.

    Without weight decay there is one group: DeepSpeed runs its collectives once per group.
    """

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return weight_decay > 0 and parameter.ndim >= 2 and not name.endswith(_NO_DECAY)

    decayed = [p for n, p in named.items() if decays(n, p)]
    plain = [p for n, p in named.items() if not decays(n, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
