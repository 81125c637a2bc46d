"""Generated listening histories, for trying Longplay without data."""

from __future__ import annotations

import dataclasses
from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from longplay.data_shards.generators.synthetic import SyntheticEvents
from longplay.data_shards.readers.registry import READERS, Reader
from longplay.data_shards.readers.sources import Block, ParsedBlock
from longplay.data_shards.storage.manifest import SourceInfo, TimeUnit


@dataclass(frozen=True, kw_only=True)
class SyntheticSource(SyntheticEvents):
    """Generated events as a source of one block."""

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
        yield _Generated(self.events, *self.generate())  # in this thread, which signals interrupt


@dataclass(frozen=True)
class _Generated:
    """All events of the source."""

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
        ("zipf", float, "exponent of the items' popularity"),
        ("length-sigma", float, "spread of the log-normal history lengths"),
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
