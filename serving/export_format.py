"""The folder that `longplay export` writes: its files and their checks.

config.json               format version, encoder, metrics, dataset id, and every file's size and sha256
encoder.safetensors       the encoder's fp32 weights, by parameter name
item_table.safetensors    "weight" (num_items + 1, D) fp32: row i is item i, row 0 (padding) is zeros
items.parquet             item_id, original_id, count, ordered by item_id from 1

A model with other inputs than the items has more files:

feature-NAME.parquet      the values of a categorical feature, in the order of their codes from 1
item_inputs.safetensors   item_NAME (num_items + 1,) int32 codes, item_vectors (num_items + 1, V) fp32
"""

import dataclasses
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from longplay.common.checksums import FileInfo, sha256_of
from longplay.common.json_files import JsonFileError, JsonObject, check_json, read_json
from longplay.common.kinds import not_a
from longplay.common.settings import Count
from longplay.models.base.config import EncoderConfig
from longplay.models.base.registry import ENCODERS
from longplay.models.inputs.spec import ITEMS_ONLY, InputSpec

FORMAT = "longplay-export"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
ENCODER_NAME = "encoder.safetensors"
TABLE_NAME = "item_table.safetensors"
ITEMS_NAME = "items.parquet"
ITEM_INPUTS_NAME = "item_inputs.safetensors"
TABLE_TENSOR = "weight"
_GIVE_AN_EXPORT = "give the folder that `longplay export --out` wrote"


class ExportError(ValueError):
    """A folder is not an export, has an unsupported format version, or is damaged."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The content of config.json.

    Attributes:
        encoder: the encoder's settings.
        num_items: items are 1..num_items.
        dataset_id: fingerprint of the dataset that defines the item ids.
        recipe: the run's recipe.
        checkpoint: the checkpoint's "name", "step" and "metrics" (validation metrics at that step).
        longplay_version: the version that wrote it.
        files: name -> {"bytes", "sha256"} of every other file.
        inputs: the times, features and item columns that the encoder reads.
        time_unit: unit of the dataset's times; None if it is unknown, or if the encoder reads items only.
    """

    encoder: EncoderConfig
    num_items: Count
    dataset_id: str
    recipe: str
    checkpoint: JsonObject
    longplay_version: str
    files: dict[Annotated[str, Field(pattern=r"^[a-z0-9_-]+\.[a-z]+$")], FileInfo]
    inputs: InputSpec = ITEMS_ONLY
    time_unit: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of config.json."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "longplay_version": self.longplay_version,
            "recipe": self.recipe,
            "dataset_id": self.dataset_id,
            "context_length": self.encoder.context_length,
            "num_items": self.num_items,
            "encoder": dataclasses.asdict(self.encoder),
            "checkpoint": self.checkpoint,
            "files": self.files,
            **(
                {"inputs": dataclasses.asdict(self.inputs), "time_unit": self.time_unit}
                if self.inputs
                else {}
            ),
        }


def read_export_config(path: Path) -> ExportConfig:
    """Read config.json and check that every file it lists exists and has its size.

    Raises:
        ExportError: the folder is not an export, its format version or settings are not supported, or a file
            is missing or has another size.
    """
    other = not_a("export", path)
    if other is not None:
        raise ExportError(f"{other}; {_GIVE_AN_EXPORT}")
    file = path / CONFIG_NAME
    try:
        saved = read_json(file, object)
    except FileNotFoundError:
        raise ExportError(
            f"{path}: is not an export, because it has no {CONFIG_NAME}; {_GIVE_AN_EXPORT}"
        ) from None
    except JsonFileError as error:
        raise ExportError(f"{error}; export the run again") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ExportError(
            f"{path}: is not an export, because its format is not {FORMAT!r}; {_GIVE_AN_EXPORT}"
        )
    version = saved.get("format_version")
    if version != FORMAT_VERSION:
        raise ExportError(
            f"{path}: format version {reprlib.repr(version)} is not {FORMAT_VERSION}; export the run "
            "again with this version of longplay"
        )
    encoder = _renamed(saved.get("encoder"))
    _check_registered(encoder, path)
    try:
        config = check_json({**saved, "encoder": encoder}, ExportConfig, file)
    except JsonFileError as error:
        raise ExportError(f"{error}; export the run again") from None
    absent = {ENCODER_NAME, TABLE_NAME, ITEMS_NAME} - set(config.files)
    if absent:
        raise ExportError(f"{file}: does not list {sorted(absent)[0]}; export the run again")
    for name, recorded in config.files.items():
        if not (path / name).is_file():
            raise ExportError(f"{path / name}: is missing; export the run again")
        if (path / name).stat().st_size != recorded["bytes"]:
            raise ExportError(f"{path / name}: is not {recorded['bytes']} bytes long; export the run again")
    return config


def _check_registered(encoder: Any, path: Path) -> None:
    """Check that the export's encoder is registered.

    Raises:
        ExportError: it is an encoder of the user's, whose module is not imported.
    """
    model = encoder.get("model") if isinstance(encoder, dict) else None
    if isinstance(model, str) and model not in ENCODERS:
        raise ExportError(
            f"{path}: its encoder {model!r} is not registered; import the module that registers it before "
            f"longplay.load. Registered: {', '.join(ENCODERS)}"
        )


def _renamed(encoder: Any) -> Any:
    """Return the encoder's settings by their current names; `scan` is the former name of `scan_backend`."""
    if not isinstance(encoder, dict):
        return encoder
    return {{"scan": "scan_backend"}.get(name, name): value for name, value in encoder.items()}


def check_sha256(path: Path, config: ExportConfig, name: str) -> None:
    """Compare the sha256 of the file `name` with the recorded one.

    Raises:
        ExportError: they differ.
    """
    if sha256_of(path / name) != config.files[name]["sha256"]:
        raise ExportError(f"{path / name}: is damaged, its sha256 differs; export the run again")
