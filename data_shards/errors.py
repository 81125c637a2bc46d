"""The exception for problems that a user can cause and fix."""

from __future__ import annotations


class DataError(ValueError):
    """Input data, a prepared dataset or a data setting is unusable.

    The message is one line: what is wrong, where, and what to do.
    """
