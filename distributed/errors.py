"""The failures of this package that a caller tells apart."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; raised on every rank at once, before any weight has changed."""


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model, dataset or table."""
