"""The one exception of this package that a user can cause."""

from __future__ import annotations


class DataError(ValueError):
    """Input data, a prepared dataset or a data setting is unusable; the message is one line and says what to do."""
