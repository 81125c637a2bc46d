"""Histories to recommend from: a text file of original item ids, or a user of the dataset."""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.readers.fields import parse_ids
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.settings.errors import ConfigError


def read_history(dataset: Dataset, path: Path) -> Tensor:
    """Read original item ids, oldest first, separated by whitespace or commas; return item ids (n,) int64.

    Ids are read as `longplay prepare` reads them: 10.0 is 10. Items that the dataset does not contain are
    dropped with a warning.

    Args:
        path: a text file; "-" reads stdin.

    Raises:
        ConfigError: the file cannot be read, holds something other than integers, or holds no known item.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = "not text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(
            f"--history {name}: cannot be read ({cause}); give a text file of original item ids"
        ) from None
    lines = text.removeprefix("\ufeff").splitlines()
    words = [
        (number, word) for number, line in enumerate(lines, 1) for word in line.replace(",", " ").split()
    ]
    parsed = parse_ids([word for _, word in words])
    for number, word in itertools.compress(words, parsed.is_null()):
        raise ConfigError(
            f"{name}, line {number}: {word!r} is not a 64-bit integer item id; separate ids with whitespace"
        )
    originals = parsed.to_list()
    ids = dataset.items.item_ids(np.array(originals, dtype=np.int64))
    unknown = [original for original, item in zip(originals, ids.tolist(), strict=True) if item == 0]
    ids = ids[ids > 0]
    if ids.size == 0:
        raise ConfigError(f"{name}: holds no item of the dataset; give original item ids, oldest first")
    if unknown:
        shown = ", ".join(map(str, unknown[:5]))
        print(
            f"longplay: warning: {len(unknown)} of {len(originals)} items are not in the dataset ({shown})",
            file=sys.stderr,
        )
    return torch.from_numpy(ids.astype(np.int64))


def original_id(text: str) -> int:
    """Return the original id that `text` gives, read as `longplay prepare` reads ids."""
    (value,) = parse_ids([text])
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a 64-bit integer id")
    return value


def user_history(dataset: Dataset, original: int) -> Tensor:
    """Return the item ids (n,) int64 of a user's whole history.

    Args:
        original: the user's original id.

    Raises:
        ConfigError: the dataset has no such user.
    """
    where = np.flatnonzero(dataset.user_original_ids == original)
    if where.size == 0:
        raise ConfigError(
            f"--user {original}: is not a user of {dataset.path}; give an original user id, or --history FILE"
        )
    items, _ = dataset.sequence(int(where[0]))
    return torch.from_numpy(items.astype(np.int64))
