"""Datasets whose users and items have string ids."""

import dataclasses
from pathlib import Path

import polars as pl

from longplay.data_shards.storage.manifest import ITEMS_NAME, USERS_NAME, Manifest, dataset_fingerprint

STRANGE = [
    "",
    " ",
    "a,b",
    "a b",
    "0",
    "-1",
    "NaN",
    "null",
    "\n",
    "\x1b[31mred",
    "é",
    "e\u0301",
    "B\0",
    "x" * 99,
]
"""Ids that are easily mistaken for something else."""


def item_name(number: int) -> str:
    return f"B{number:06d}"


def user_name(number: int) -> str:
    return f"{number:08x}-1b4e-4c1d-9d7a-5e2f0c8a7b61"


def give_string_ids(folder: Path, *, strange: bool = False) -> Path:
    """Replace a dataset's integer ids by strings; if `strange`, the first items get the ids `STRANGE`."""
    names = {}
    for file, name in ((ITEMS_NAME, item_name), (USERS_NAME, user_name)):
        table = pl.read_parquet(folder / file)
        names[file] = [name(number) for number in table["original_id"].to_list()]
        if strange and file == ITEMS_NAME:
            names[file][: len(STRANGE)] = STRANGE
        table.with_columns(original_id=pl.Series(names[file])).write_parquet(folder / file)
    manifest = Manifest.read(folder)
    items, users = (pl.Series(names[file]) for file in (ITEMS_NAME, USERS_NAME))
    dataset_id = dataset_fingerprint(items, users, manifest.shards)
    dataclasses.replace(manifest, dataset_id=dataset_id).write(folder)
    return folder


def add_item_columns(folder: Path) -> Path:
    """Add a title, which the second item lacks, a year and a vector to the items of a dataset."""
    table = pl.read_parquet(folder / ITEMS_NAME)
    numbers = table["item_id"].to_list()
    titles = [None if number == 2 else f"Title \x1b[1m{number}" for number in numbers]
    table.with_columns(
        title=pl.Series(titles),
        year=pl.Series([1900 + number % 100 for number in numbers]),
        vector=pl.Series([[float(number), 0.5] for number in numbers], dtype=pl.List(pl.Float32)),
    ).write_parquet(folder / ITEMS_NAME)
    return folder
