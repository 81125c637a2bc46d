"""Write files and prepare them as `longplay prepare` does, from its arguments."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from longplay.data_shards.errors import DataError
from longplay.data_shards.preparation.options import PrepareOptions
from longplay.data_shards.preparation.pipeline import prepare_dataset
from longplay.data_shards.readers.registry import READERS
from longplay.data_shards.readers.sources import Ids, Source
from support.datasets import prepared, sequences

HEADER = "user_id,item_id,timestamp\n"
STRICT = PrepareOptions(max_bad_fraction=0)


def open_source(format: str, *arguments: str | Path) -> Source:
    """Return the source that `longplay prepare FORMAT ARGUMENTS` reads."""
    reader, parser = READERS[format], ArgumentParser()
    reader.add_arguments(parser)
    return reader.open(parser.parse_args([str(argument) for argument in arguments]))


def list_of(ids: Ids) -> list[Any]:
    """Return the ids of a block as integers or strings."""
    return ids.tolist() if isinstance(ids, np.ndarray) else ids.to_pylist()


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def found(tmp_path: Path, format: str, *arguments: str | Path) -> dict[Any, list[tuple[Any, int]]]:
    """Return the sequences that a command prepares from files without an unusable row."""
    return sequences(prepared(open_source(format, *arguments), tmp_path / "set", STRICT))


def refusal(tmp_path: Path, format: str, *arguments: str | Path) -> str:
    """Return the message of a command that is refused, after checking that it wrote nothing."""
    with pytest.raises(DataError) as refused:
        prepare_dataset(open_source(format, *arguments), tmp_path / "set", STRICT)
    assert not (tmp_path / "set").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)
