"""Open sources as `longplay prepare` does, from its arguments."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from longplay.data_shards.readers.registry import READERS
from longplay.data_shards.readers.sources import Source


def open_source(format: str, *arguments: str | Path) -> Source:
    """Return the source that `longplay prepare FORMAT ARGUMENTS` reads."""
    reader, parser = READERS[format], ArgumentParser()
    reader.add_arguments(parser)
    return reader.open(parser.parse_args([str(argument) for argument in arguments]))
