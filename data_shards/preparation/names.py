"""Represent string ids by integers: a 64-bit hash while events are sorted, then the rank among all strings.

Every string is stored with its hash. If two strings have the same hash, all events are read again with
another seed.
"""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

from longplay.common.atomic import atomic_file, temporary_name
from longplay.data_shards.readers.sources import MISSING, Ids
from longplay.data_shards.storage.parquet_tables import read_table


class CollisionError(Exception):
    """Two strings have the same hash."""


def integers_of(values: Ids, seed: int) -> tuple[np.ndarray, pl.DataFrame | None]:
    """Return ids as (N,) int64 and, for strings, a table of the distinct hashes (`id`) and strings (`name`).

    A null string becomes `MISSING`.
    """
    if isinstance(values, np.ndarray):
        return values.astype(np.int64, copy=False), None
    names = pl.Series("name", values.dictionary, pl.String)
    integers = hashes(names, seed)
    found = np.append(integers, MISSING)[values.indices.fill_null(len(integers)).to_numpy()]
    return found, pl.DataFrame({"id": integers, "name": names})


def hashes(names: pl.Series, seed: int) -> np.ndarray:
    """Return (N,) int64 hashes of strings, none of which is `MISSING`."""
    found = names.hash(seed=seed).to_numpy().view(np.int64)
    return np.where(found == MISSING, 0, found)


def write_names(path: Path, names: pl.DataFrame) -> None:
    """Atomically write the names of one block."""
    with atomic_file(path, sync=False) as file:
        names.write_parquet(file, compression="lz4")


def merge_names(blocks: Path, folder: Path, role: str, memory_bytes: int) -> None:
    """Write `names-ROLE.parquet`: all distinct names and their hashes, in the order of the names.

    Args:
        blocks: folder of the names of the blocks, `names-ROLE-*.parquet`.
        folder: folder of the result.
        role: role of the column, such as `user`.
        memory_bytes: memory limit.

    Raises:
        CollisionError: two names have the same hash.
    """
    merged = folder / f"names-{role}.parquet"
    if merged.exists():
        return
    with duckdb.connect() as database:
        database.execute(f"SET memory_limit='{memory_bytes >> 20}MiB'")
        database.execute("SET temp_directory=?", [str((folder / "spilled").absolute())])
        database.execute("SET preserve_insertion_order=false")
        database.execute(
            "CREATE TABLE names AS SELECT id, min(name) AS name, max(name) AS other "
            "FROM read_parquet(?) GROUP BY id",
            # Each file is named, because in a pattern a backslash has a meaning too.
            [[glob.escape(str(path.absolute())) for path in blocks.glob(f"names-{role}-*.parquet")]],
        )
        if database.sql("SELECT count(*) FROM names WHERE name <> other").fetchall()[0][0]:
            raise CollisionError(role)
        partial = temporary_name(merged)
        database.execute(
            f"COPY (SELECT id, name FROM names ORDER BY name) TO '{_quoted(partial)}' (FORMAT parquet)"
        )
        partial.replace(merged)


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("'", "''")


@dataclass(frozen=True)
class Names:
    """All names of a column in ascending order, and their hashes.

    Attributes:
        path: the result of `merge_names`.
        hashes: (names,) int64 in ascending order.
        rank: (names,) int32 rank of the name of each hash.
    """

    path: Path
    hashes: np.ndarray
    rank: np.ndarray

    @classmethod
    def read(cls, path: Path) -> Names:
        """Read the result of `merge_names`. Takes 12 bytes per name."""
        hashes = read_table(path, ["id"])["id"].to_numpy()
        order = np.argsort(hashes)
        return cls(path, hashes[order], order.astype(np.int32))

    def __len__(self) -> int:
        return len(self.hashes)

    def ranks(self, hashes: np.ndarray) -> np.ndarray:
        """Return the (N,) int64 ranks of the names that have these hashes."""
        return self.rank[np.searchsorted(self.hashes, hashes)].astype(np.int64)

    def take(self, ranks: np.ndarray) -> pl.Series:
        """Return the (N,) names of these ranks."""
        names = read_table(self.path, ["name"])["name"]
        return names.gather(pl.Series(ranks))


def originals(names: Names | None, values: np.ndarray) -> np.ndarray | pl.Series:
    """Return the ids of a column as they were in the source: `values`, or the names that have these ranks."""
    return values if names is None else names.take(values)
