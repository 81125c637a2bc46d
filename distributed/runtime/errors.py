"""Exceptions that callers handle separately."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite. Raised on every rank, before any weight changes."""


class OutOfMemoryError(RuntimeError):
    """A batch does not fit in the memory of a rank; the message names the settings to lower."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model, dataset or table."""
