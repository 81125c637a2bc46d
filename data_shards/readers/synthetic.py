"""Generate listening histories, to try Longplay without data."""

from __future__ import annotations

import dataclasses
import threading
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from longplay.data_shards.generators.synthetic import SyntheticEvents
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.sources import BLOCK_ROWS, Block, ParsedBlock
from longplay.data_shards.storage.manifest import SourceInfo, TimeUnit

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class SyntheticSource(SyntheticEvents):
    """Generated events as a source."""

    def describe(self) -> SourceInfo:
        return {"format": "synthetic", "paths": [], "options": dataclasses.asdict(self)}

    def fingerprint(self) -> list[Any]:
        return []

    def time_unit(self) -> TimeUnit | None:
        return "s"

    def features(self) -> tuple[tuple[str, str], ...]:
        return ()

    def summary(self) -> str:
        return "integer ids, times in s"

    def max_events(self) -> int:
        return self.events

    def total_weight(self) -> int:
        return self.events

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        generated = _in_background(self.generate)
        for begin in range(0, self.events, BLOCK_ROWS):
            part = [values[begin : begin + BLOCK_ROWS] for values in generated]
            yield _Generated(len(part[0]), part[0], part[1], part[2])


def _in_background(function: Callable[[], _T]) -> _T:
    """Run a function in a daemon thread and return its result. A signal ends the wait at once."""
    future: Future[_T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.5)  # a wait without a limit may miss a signal that another thread receives
    return future.result()


@dataclass(frozen=True)
class _Generated:
    """Consecutive events of the source."""

    weight: int
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    part: str = "generated"

    def parse(self) -> ParsedBlock:
        return ParsedBlock(self.user, self.item, self.time, rows_in=self.weight)


def _add_arguments(parser: ArgumentParser) -> None:
    default = SyntheticSource()
    for name, kind, meaning in (
        ("users", int, "number of users"),
        ("items", int, "number of items"),
        ("events", int, "number of events"),
        ("zipf", float, "exponent of the Zipf distribution of the items' popularity"),
        ("length-sigma", float, "standard deviation of the logarithm of the history lengths"),
        ("follow-probability", float, "share of events that depend on the previous event"),
    ):
        parser.add_argument(
            f"--{name}",
            type=kind,
            default=getattr(default, name.replace("-", "_")),
            metavar="N" if kind is int else "X",
            help=f"{meaning} (default: %(default)s)",
        )


READERS.register(
    "synthetic",
    Reader(
        help="generated histories in which order carries information",
        add_arguments=_add_arguments,
        open=lambda args: SyntheticSource(
            **{field.name: getattr(args, field.name) for field in dataclasses.fields(SyntheticSource)}
        ),
    ),
)
