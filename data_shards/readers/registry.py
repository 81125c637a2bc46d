"""The source formats that `longplay prepare` offers, by the name that the user types.

A module registers a `Reader` when it is imported. `longplay prepare` imports every module of this package,
and the modules given with `--import`.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass

from longplay.common.registry import Registry
from longplay.data_shards.readers.sources import Source


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A source format.

    Attributes:
        help: one line for `longplay prepare --help`.
        add_arguments: adds the format's own arguments to the parser of `longplay prepare NAME`.
        open: all parsed arguments -> the source to read.
    """

    help: str
    add_arguments: Callable[[ArgumentParser], None]
    open: Callable[[Namespace], Source]


READERS: Registry[Reader] = Registry("reader", "longplay.data_shards.readers")
