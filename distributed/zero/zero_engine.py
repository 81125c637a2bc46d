"""One module under DeepSpeed ZeRO: its configuration, its forward and backward, its optimizer step."""

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longplay.distributed.zero.closing import close_engine
from longplay.distributed.zero.deepspeed_env import deepspeed
from longplay.distributed.zero.optimizer_state import MOMENTS, ZeroOptimizerState


def deepspeed_config(
    *,
    zero_stage: int,
    gradient_accumulation_steps: int,
    max_grad_norm: float,
    reduce_bucket_elements: int,
    overlap_comm: bool,
) -> dict[str, Any]:
    """Return the complete DeepSpeed configuration of a run; DeepSpeed reads no configuration file.

    Args:
        overlap_comm: reduce gradients on a stream of its own during the backward pass, with ZeRO 1 and 2.
            With one rank this only adds synchronizations of the device.
    """
    zero: dict[str, Any] = {"stage": zero_stage, "reduce_bucket_size": reduce_bucket_elements}
    if zero_stage < 3:
        zero["allgather_bucket_size"] = reduce_bucket_elements
        zero["overlap_comm"] = overlap_comm
    else:
        # Every rank would keep a whole copy of a parameter that is smaller than the threshold.
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": reduce_bucket_elements,
            "sub_group_size": 10**12,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,  # counts samples for DeepSpeed's own log only
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": max_grad_norm,
        "steps_per_print": 10**12,
        "timers": {"throughput": {"enabled": False}},  # it would synchronize the device twice per step
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


class ZeroEngine:
    """A module trained by AdamW under ZeRO; the caller supplies the norm for clipping. Collective.

    Args:
        groups: AdamW's parameter groups; a group's `lr_scale` multiplies the learning rate of `step`.
        config: from `deepspeed_config`.
        betas: decay rates of Adam's two moments.
        eps: term that Adam adds to the denominator.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[dict[str, Any]],
        config: Mapping[str, Any],
        *,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        optimizer = torch.optim.AdamW(list(groups), lr=1.0, betas=betas, eps=eps)
        self._engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=dict(config))[0]
        self._optimizer: Any = self._engine.optimizer
        self._zero3 = config["zero_optimization"]["stage"] == 3
        # The caller reads the norm once and supplies the one to clip by, on the CPU: each of DeepSpeed's own
        # checks of a norm on the device would wait for the device.
        self._norm_of_group = self._optimizer.get_grad_norm_direct
        self._optimizer.get_grad_norm_direct = lambda *args, **kwargs: torch.zeros(())
        self._clip, self._clip_norm = self._optimizer.unscale_and_clip_grads, torch.zeros(())
        self._optimizer.unscale_and_clip_grads = lambda grads, _: self._clip(grads, self._clip_norm)
        self._state = ZeroOptimizerState(self._optimizer, config["zero_optimization"]["stage"])
        self._state.set_moments_to_zero(0)

    def __call__(self, *inputs: Any) -> Any:
        """Run the module. Collective: ZeRO-3 gathers its weights."""
        return self._engine(*inputs)

    def train(self, mode: bool) -> None:
        """Switch the module between training and evaluation."""
        self._engine.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Run the backward pass of one micro-batch; DeepSpeed averages gradients over ranks. Collective.

        Args:
            last: whether this is the last micro-batch of the step; `step` comes next.
        """
        self._engine.backward(loss, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # DeepSpeed counts micro-batches here

    def step(self, *, lr: float, norm: float) -> None:
        """Update the module's weights. Collective.

        Args:
            lr: learning rate.
            norm: finite gradient norm that clipping compares with its limit.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._clip_norm = torch.tensor(norm)
        self._engine.step()

    def grad_norm(self) -> Tensor:
        """Return the norm of all gradients, a scalar on the device, inf if not finite. Collective."""
        optimizer = self._optimizer
        groups = optimizer.fp16_groups if self._zero3 else optimizer.params_in_partition
        gradients = optimizer.averaged_gradients
        norms = [self._norm_of_group(gradients[i], groups[i]) for i in range(len(groups))]
        return deepspeed.runtime.utils.combine_grad_norm_groups(norms)  # pyright: ignore[reportAttributeAccessIssue] -- not in its __init__

    def state(self, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return fp32 weights and Adam moments as whole tensors on the CPU. Collective.

        Returns:
            "weight/NAME", "exp_avg/NAME" and "exp_avg_sq/NAME" for each of `parameters`.
        """
        out: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            out[f"weight/{name}"] = self._state.get(parameter, None)
            for moment in MOMENTS:
                out[f"{moment}/{name}"] = self._state.get(parameter, moment)
        return out

    def load_state(
        self, parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor], *, steps: int
    ) -> None:
        """Load what `state` returned after `steps` steps, at any world size. Collective."""
        self._state.set_moments_to_zero(steps)
        for name, parameter in parameters.items():
            self._state.set(parameter, None, state[f"weight/{name}"])
            for moment in MOMENTS:
                self._state.set(parameter, moment, state[f"{moment}/{name}"])
        self._engine.global_steps = steps
        self._state.copy_master_weights()

    def close(self) -> None:
        """Free gradients and optimizer state, and DeepSpeed's references to the weights; the last call."""
        close_engine(self._engine)
        del self._engine, self._optimizer, self._state, self._clip, self._norm_of_group
        gc.collect()  # the objects of the engine refer to one another
