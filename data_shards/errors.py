"""The one exception of this package that a user can cause."""

from __future__ import annotations


class DataError(ValueError):
    """Unusable input data, prepared dataset or data setting; the message is one line and says what to do."""
