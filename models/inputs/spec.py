"""The layers of an encoder's input stage, with the sizes and statistics that they take from the dataset."""

from dataclasses import dataclass

from longplay.models.inputs.config import GapName

NUM_GAP_BUCKETS = 66
"""One bucket for no previous event, one for a gap of 0, and one for each number of bits, 1 to 64."""
FOURIER_PERIODS = tuple(2.0**k for k in range(1, 8))
"""Periods of the sines and cosines, in units of log2(1 + gap): 2, 4, ..., 128."""
NO_TIME = -(2**63)
"""The int64 value of an unknown time."""
TIMES, VECTORS = "times", "item_vectors"


def feature_key(name: str) -> str:
    """Return the key of an event feature among the input tensors."""
    return f"feature_{name}"


def category_key(name: str) -> str:
    """Return the key of a column of item categories among the input tensors."""
    return f"item_{name}"


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The layers of an input stage. Hashable; imports no torch.

    Attributes:
        categorical: (name, number of values) of each categorical event feature.
        floats: (name, mean, standard deviation) of each float event feature.
        time_gap: layer of the time since the user's previous event.
        ticks_per_s: time units per second, for the hour and the weekday; None = without them.
        item_categories: (column, number of values) of each column of item categories.
        vector_width: width of the item vectors; 0 = without.
        items_digest: SHA-256 of the item categories and vectors; "" without them.
    """

    categorical: tuple[tuple[str, int], ...] = ()
    floats: tuple[tuple[str, float, float], ...] = ()
    time_gap: GapName = "none"
    ticks_per_s: int | None = None
    item_categories: tuple[tuple[str, int], ...] = ()
    vector_width: int = 0
    items_digest: str = ""

    @property
    def uses_times(self) -> bool:
        """Whether the stage reads the times of the events."""
        return self.time_gap != "none" or self.ticks_per_s is not None

    @property
    def reads_events(self) -> bool:
        """Whether the stage reads the times or the features of the events."""
        return bool(self.uses_times or self.categorical or self.floats)

    @property
    def num_tables(self) -> int:
        """The number of embedding tables of codes."""
        return len(self.categorical) + len(self.item_categories)

    def __bool__(self) -> bool:
        """Return whether there is any input besides the items."""
        return bool(self.num_tables or self.floats or self.uses_times or self.vector_width)

    @property
    def slot_bytes(self) -> int:
        """Bytes of the input tensors per slot of a micro-batch."""
        return 4 * (self.num_tables + len(self.floats) + self.vector_width) + 8 * self.uses_times

    def saved_bytes(self, bf16: bool) -> int:
        """Return the bytes per slot that the stage saves for the backward pass, besides the input tensors."""
        projected = len(self.floats) + 2 * len(FOURIER_PERIODS) * (self.time_gap == "fourier")
        indices = (self.time_gap == "bucket") + 2 * (self.ticks_per_s is not None)
        copies = 2 * (projected + self.vector_width) if bf16 else 0
        return 4 * (projected + indices) + copies


ITEMS_ONLY = InputSpec()
