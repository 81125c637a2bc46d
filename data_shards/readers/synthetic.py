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


@dataclass(frozen=True, kw_only=True)
class SyntheticSource(SyntheticEvents):
    """Generated events as a source of one block."""

    def describe(self) -> dict[str, Any]:
        return {"format": "synthetic", "paths": [], "options": dataclasses.asdict(self)}

    def fingerprint(self) -> list[Any]:
        return []

    def max_events(self) -> int:
        return self.events

    def total_weight(self) -> int:
        return self.events

    def blocks(self, block_bytes: int) -> Iterator[Block]:
        yield self

    @property
    def part(self) -> str:
        return "generated"

    @property
    def weight(self) -> int:
        return self.events

    def parse(self) -> ParsedBlock:
        columns = (values.astype(np.int64) for values in self.generate())
        return ParsedBlock(*columns, rows_in=self.events)


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
