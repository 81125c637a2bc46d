"""The folder that `longplay export` writes: its files, their checks, and the item table's byte layout.

config.json               format version, encoder, metrics, dataset id, and every file's size and sha256
encoder.safetensors       the encoder's fp32 weights, by parameter name
item_table.safetensors    "weight" (num_items + 1, D) fp32: row i is item i, row 0 is padding, all zeros
items.parquet             item_id, original_id, count, by item_id from 1
"""

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longplay.models.base.config import EncoderConfig

FORMAT = "longplay-export"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
ENCODER_NAME = "encoder.safetensors"
TABLE_NAME = "item_table.safetensors"
ITEMS_NAME = "items.parquet"
_TENSOR = "weight"
_ALIGNMENT = 64  # bytes; where the table's rows begin in the file
_LONGEST_HEADER = 100_000_000  # as safetensors itself allows
_HASH_BLOCK = 1 << 22


class ExportError(ValueError):
    """A folder is no export, was written by another version, or is damaged."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What config.json says.

    Attributes:
        encoder: the model and its switches, `context_length` included.
        num_items: items are 1..num_items.
        dataset_id: fingerprint of the dataset whose item ids these are.
        recipe: what the run was begun as.
        checkpoint: the checkpoint's "name", "step" and "metrics" (validation metrics at that step).
        longplay_version: what wrote it.
        files: name -> {"bytes", "sha256"} of every other file.
    """

    encoder: EncoderConfig
    num_items: int
    dataset_id: str
    recipe: str
    checkpoint: Mapping[str, Any]
    longplay_version: str
    files: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "longplay_version": self.longplay_version,
            "recipe": self.recipe,
            "dataset_id": self.dataset_id,
            "context_length": self.encoder.context_length,
            "num_items": self.num_items,
            "encoder": dataclasses.asdict(self.encoder),
            "checkpoint": dict(self.checkpoint),
            "files": {name: dict(recorded) for name, recorded in self.files.items()},
        }


def read_export_config(path: Path) -> ExportConfig:
    """Read config.json and check that every file it lists is there and of its size.

    Raises:
        ExportError: no export, another format version, settings unknown here, a file missing or torn.
    """
    file = path / CONFIG_NAME
    try:
        saved = json.loads(file.read_text())
    except FileNotFoundError:
        raise ExportError(f"{path}: is no export (no {CONFIG_NAME}); give --out of an export") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{file}: cannot be read ({error}); export the run again") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ExportError(f"{path}: is no export (format is not {FORMAT!r}); give --out of an export")
    if saved.get("format_version") != FORMAT_VERSION:
        raise ExportError(
            f"{path}: format version {saved.get('format_version')!r} is not {FORMAT_VERSION}; export the run "
            "again with this version of longplay"
        )
    try:
        config = ExportConfig(
            encoder=encoder_config(saved["encoder"]),
            **{field.name: saved[field.name] for field in dataclasses.fields(ExportConfig)[1:]},
        )
        sizes = {name: int(recorded["bytes"]) for name, recorded in config.files.items()}
        absent = {ENCODER_NAME, TABLE_NAME, ITEMS_NAME} - set(sizes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(f"{file}: cannot be used ({error}); export the run again") from None
    if absent:
        raise ExportError(f"{file}: lists no {sorted(absent)[0]}; export the run again")
    for name, size in sizes.items():
        if not (path / name).is_file():
            raise ExportError(f"{path / name}: is missing; export the run again")
        if (path / name).stat().st_size != size:
            raise ExportError(f"{path / name}: is not {size} bytes long, it is torn; export the run again")
    return config


def encoder_config(saved: Mapping[str, Any]) -> EncoderConfig:
    """Rebuild the encoder's configuration; `scan` is the former name of `scan_backend`."""
    return EncoderConfig(**{{"scan": "scan_backend"}.get(name, name): value for name, value in saved.items()})


def check_sha256(path: Path, config: ExportConfig, name: str) -> None:
    """Read the file `name` whole and compare.

    Raises:
        ExportError: its content is not what was written.
    """
    if sha256_of(path / name) != config.files[name]["sha256"]:
        raise ExportError(f"{path / name}: is damaged, its sha256 differs; export the run again")


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def table_header(num_rows: int, width: int) -> bytes:
    """What a safetensors file of one fp32 tensor (num_rows, width) begins with; rows follow directly."""
    described = {
        "__metadata__": {"format": "pt"},
        _TENSOR: {
            "dtype": "F32",
            "shape": [num_rows, width],
            "data_offsets": [0, 4 * num_rows * width],
        },
    }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def table_offset(path: Path, num_rows: int, width: int) -> int:
    """The byte at which the rows of an item table's file begin.

    Raises:
        ExportError: it holds no fp32 tensor of (num_rows, width), whole.
    """
    size = 4 * num_rows * width
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            found = json.loads(file.read(length))[_TENSOR]
        described = (found["dtype"], list(found["shape"]), list(found["data_offsets"]))
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path}: is damaged, its header cannot be read ({error})") from None
    if described != ("F32", [num_rows, width], [0, size]) or path.stat().st_size != 8 + length + size:
        raise ExportError(f"{path}: holds no fp32 table of {num_rows} x {width}; export the run again")
    return 8 + length
