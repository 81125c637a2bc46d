"""Histories to recommend from: a file of original item ids, or a user of the dataset."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.id_column import IdColumn
from longplay.data_shards.stream.columns import EventColumns
from longplay.launch.evaluation.history_columns import column_names, read_columns
from longplay.launch.evaluation.history_files import read_rows
from longplay.launch.settings.errors import ConfigError

_SEPARATORS = r"[\s,\x1c-\x1f]"
"""The characters that separate ids in text: commas, and all that `str.split` splits at."""


@dataclass(frozen=True)
class History:
    """The events of one user, oldest first.

    Attributes:
        item_ids: (n,) int64.
        times: (n,) int64 in the dataset's unit; None if they are not known or not requested.
        features: name -> (n,) int32 codes or float32 values of each requested feature that is known.
    """

    item_ids: Tensor
    times: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item_ids)

    def __getitem__(self, events: slice | Tensor) -> History:
        times = None if self.times is None else self.times[events]
        return History(self.item_ids[events], times, {name: of[events] for name, of in self.features.items()})


def read_history(
    dataset: Dataset,
    path: Path,
    columns: EventColumns = EventColumns(),  # noqa: B008 -- immutable
) -> History:
    """Read original item ids, oldest first, and the requested columns that the file has.

    Integer ids are read as `longplay prepare` reads them: 10.0 is 10. String ids are taken as they are. Text
    is split at whitespace and commas, or only into lines if an id of the dataset contains such a character.
    Items that the dataset does not contain are dropped with a warning.

    Args:
        path: see `read_rows`.
        columns: the features and times that the model reads.

    Raises:
        ConfigError: the file cannot be read, holds something other than ids, times or features, or holds no
            known item.
    """
    name = "standard input" if str(path) == "-" else str(path)
    ids = dataset.items.original_ids
    one_per_line = ids.is_text and bool(ids.values.str.contains(_SEPARATORS).any())
    names = column_names(dataset)
    requested = [*columns.names, *(["time"] if columns.times else [])]
    more = [name for role in requested for name in names[role]]
    rows = read_rows(path, names["item"], one_per_line=one_per_line, more=more)
    originals = ids.read([row.item for row in rows])
    if originals.null_count():
        row = rows[originals.is_null().arg_true()[0]]
        remedy = (
            f"ids of this dataset are {ids.description}" if ids.is_text else "separate ids with whitespace"
        )
        raise ConfigError(f"{name}, {row.place}: {row.item!r} is not a {_kind(ids)} item id; {remedy}")
    item_ids = dataset.items.item_ids(originals)
    unknown = originals.filter(item_ids == 0)
    if len(unknown) == len(originals):
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
    found = History(torch.from_numpy(item_ids), *read_columns(rows, names, dataset, columns, name))
    return found[found.item_ids > 0]


def user_history(dataset: Dataset, user: int, columns: EventColumns) -> History:
    """Return the whole history of a user of the dataset, with the requested columns."""
    items, times = dataset.sequence(user)
    features = dataset.features_of(user, columns.names)
    return History(
        torch.from_numpy(items.astype(np.int64)),
        torch.from_numpy(times) if columns.times else None,
        {name: torch.from_numpy(values) for name, values in features.items()},
    )


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


def _kind(ids: IdColumn) -> str:
    return "string" if ids.is_text else "64-bit integer"
