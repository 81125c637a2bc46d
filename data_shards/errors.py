"""The exception for problems that a user can cause and fix, and what to do about a bad shard."""

from __future__ import annotations

from typing import Literal

OnBadShard = Literal["stop", "skip"]


class DataError(ValueError):
    """Input data, a prepared dataset or a data setting is unusable.

    The message is one line: what is wrong, where, and what to do.
    """


class PermanentError(OSError):
    """A file cannot be read, and another attempt would fail in the same way."""
