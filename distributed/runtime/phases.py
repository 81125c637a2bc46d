"""Names of the parts of a training step in profiles; without a profiler each costs a microsecond."""

from typing import Literal, get_args

from torch.profiler import record_function

Phase = Literal[
    "data wait", "negatives", "exchange", "encoder", "loss", "backward", "dense update", "row update"
]
PHASES: tuple[str, ...] = get_args(Phase)
STEP = "step"
_PREFIX = "longplay: "


def phase(name: Phase | Literal["step"]) -> record_function:
    """Return a context that a profile shows as this part of the step."""
    return record_function(_PREFIX + name)


def phase_name(event_name: str) -> str | None:
    """Return the part that a profiler event stands for; None for other events."""
    return event_name.removeprefix(_PREFIX) if event_name.startswith(_PREFIX) else None
