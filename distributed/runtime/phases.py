"""Names for the parts of a training step, which profiles show; without a profiler one costs a microsecond."""

from typing import Literal, get_args

from torch.profiler import record_function

Phase = Literal[
    "data wait", "negatives", "exchange", "encoder", "loss", "backward", "dense update", "row update"
]
PHASES: tuple[str, ...] = get_args(Phase)
STEP = "step"
_PREFIX = "longplay: "


def phase(name: Phase | Literal["step"]) -> record_function:
    """A context whose time counts for a part of the step, or for the whole."""
    return record_function(_PREFIX + name)


def phase_name(event_name: str) -> str | None:
    """The part that a profiler's event is, None for any other event."""
    return event_name.removeprefix(_PREFIX) if event_name.startswith(_PREFIX) else None
