"""Histories to recommend from: a file of original item ids, or a user of the dataset."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.id_column import IdColumn
from longplay.launch.evaluation.history_files import read_values
from longplay.launch.settings.errors import ConfigError

_SEPARATORS = r"[\s,\x1c-\x1f]"
"""The characters that separate ids in text: commas, and all that `str.split` splits at."""


def read_history(dataset: Dataset, path: Path) -> Tensor:
    """Read original item ids, oldest first; return item ids (n,) int64.

    Integer ids are read as `longplay prepare` reads them: 10.0 is 10. String ids are taken as they are. Text
    is split at whitespace and commas, or only into lines if an id of the dataset contains such a character.
    Items that the dataset does not contain are dropped with a warning.

    Args:
        path: see `read_values`.

    Raises:
        ConfigError: the file cannot be read, holds something other than ids, or holds no known item.
    """
    name = "standard input" if str(path) == "-" else str(path)
    ids = dataset.items.original_ids
    one_per_line = ids.is_text and bool(ids.values.str.contains(_SEPARATORS).any())
    values = read_values(path, _item_columns(dataset), one_per_line=one_per_line)
    originals = ids.read([value for _, value in values])
    if originals.null_count():
        place, value = values[originals.is_null().arg_true()[0]]
        remedy = (
            f"ids of this dataset are {ids.description}" if ids.is_text else "separate ids with whitespace"
        )
        raise ConfigError(f"{name}, {place}: {value!r} is not a {_kind(ids)} item id; {remedy}")
    item_ids = dataset.items.item_ids(originals)
    unknown = originals.filter(item_ids == 0)
    item_ids = item_ids[item_ids > 0]
    if item_ids.size == 0:
        raise ConfigError(
            f"{name}: holds no item of the dataset; give original item ids, oldest first; its ids are "
            f"{ids.description}"
        )
    if len(unknown):
        shown = ", ".join(map(repr, unknown[:5]))
        print(
            f"longplay: warning: {len(unknown)} of {len(originals)} items are not in the dataset ({shown})",
            file=sys.stderr,
        )
    return torch.from_numpy(item_ids.astype(np.int64))


def find_user(dataset: Dataset, typed: str) -> int:
    """Return the index of a user.

    Args:
        typed: the user's original id as text, read as in `read_history`.

    Raises:
        ConfigError: the dataset has no such user.
    """
    ids = dataset.user_original_ids
    (original,) = ids.read([typed])
    if original is None:
        raise ConfigError(f"--user: {typed!r} is not a {_kind(ids)} id; users are {ids.description}")
    user = ids.values.index_of(original)
    if user is None:
        raise ConfigError(
            f"--user {original!r}: is not a user of {dataset.path}, whose ids are {ids.description}; give an "
            "original user id, or --history FILE"
        )
    return user


def _item_columns(dataset: Dataset) -> list[str]:
    """Return the names that the item column of a file may have: as in `longplay prepare`, or `item_id`."""
    chosen = dataset.manifest.source.get("options", {}).get("item")
    return list(dict.fromkeys([chosen, "item_id"] if isinstance(chosen, str) else ["item_id"]))


def _kind(ids: IdColumn) -> str:
    return "string" if ids.is_text else "64-bit integer"
