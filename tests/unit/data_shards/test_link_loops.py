"""Symbolic links that form a loop, for which Path.resolve raises RuntimeError before Python 3.13."""

from pathlib import Path

import pytest

from longplay.data_shards.errors import DataError
from longplay.data_shards.readers.inputs import file_identity, find_files


def test_a_link_to_itself_is_an_unreadable_input(tmp_path: Path) -> None:
    loop = tmp_path / "events.csv"
    loop.symlink_to("events.csv")
    (file,) = find_files([loop], [".csv"])
    with pytest.raises(DataError, match=r"events\.csv: cannot be read \(Too many levels of symbolic links\)"):
        file_identity(file)
