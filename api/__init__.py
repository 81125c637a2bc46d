"""Longplay: distributed training of sequential recommenders.

This module loads exported models:

    import longplay

    model = longplay.load("exports/ml1m")
    item_ids, scores = model.recommend([2858, 260, 480], top=10)
"""

from __future__ import annotations

TYPE_CHECKING = False  # without `typing`, whose import would delay the handling of Ctrl-C
if TYPE_CHECKING:
    from os import PathLike

    from longplay.serving.exported_model import ExportedModel

    __version__: str

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> str:
    """Return `__version__`, which is read from the installed package only when it is used."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import metadata

    return metadata.version("longplay")


def load(path: str | PathLike[str], *, verify: bool = False, device: str = "cpu") -> ExportedModel:
    """Open a folder written by `longplay export`, on one machine, without DeepSpeed or a process group.

    The item table is memory-mapped: rows are read from disk when they are needed.

    Args:
        path: the export's folder.
        verify: also check the sha256 of the item table, which reads the whole file. The other files are
            always checked.
        device: device of the encoder and of scoring; blocks of the item table are copied to it.
    Raises:
        ValueError: the folder is not an export, has an unsupported format version, or is damaged.
    """
    from longplay.serving.exported_model import ExportedModel  # `import longplay` does not import torch

    return ExportedModel.load(path, verify=verify, device=device)
