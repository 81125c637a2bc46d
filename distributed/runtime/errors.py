"""The failures of this package that a caller tells apart."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; raised on every rank at once, before any weight has changed."""


class OutOfMemoryError(RuntimeError):
    """A batch does not fit into the memory of a rank; the message says what to lower."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model, dataset or table."""
