"""Longplay. Loading an exported model is all that lives here; the rest is in the packages below.

import longplay

model = longplay.load("exports/ml1m")
item_ids, scores = model.recommend([2858, 260, 480], top=10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from longplay.serving.exported_model import ExportedModel

__all__ = ["load"]


def load(path: str | PathLike[str], *, verify: bool = False, device: str = "cpu") -> ExportedModel:
    """Open a folder written by `longplay export`, on one machine, without DeepSpeed or a process group.

    The item table stays on disk and is mapped into memory: nothing of it is read before it is asked for.

    Args:
        verify: also read the whole item table and compare its sha256 with the one recorded; the other files
            are always compared.
        device: where the encoder runs and items are scored; the table comes there a block at a time.
    Raises:
        ValueError: the folder is no export, of an unknown format version, or damaged.
    """
    from longplay.serving.exported_model import ExportedModel  # torch is imported when a model is wanted

    return ExportedModel.load(path, verify=verify, device=device)
