"""Write the folder of an exported model; its format is in `longplay.serving.export_format`."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import polars as pl
import torch

from longplay.common.atomic import atomic_file, replace_folder, temporary_name, write_json
from longplay.common.checksums import FileInfo, sha256_of
from longplay.common.json_files import JsonFileError, JsonObject, read_json, sealed
from longplay.common.locks import FolderLock, FolderLockedError, is_lock_file, lock_file
from longplay.common.tensor_file import WrittenFile, write_tensors
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.features import vocabulary_name
from longplay.distributed.checkpoints.checkpoint import Checkpoint
from longplay.distributed.checkpoints.encoder_file import WEIGHTS, read_encoder
from longplay.distributed.runtime.errors import CheckpointError
from longplay.launch.exports.item_table import check_finite, write_table
from longplay.launch.inputs.event_inputs import EventInputs, load_inputs
from longplay.launch.run_folders.metrics_file import read_scalars
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.models.encoder import build_encoder
from longplay.models.inputs.spec import VECTORS, category_key
from longplay.serving.export_format import (
    CONFIG_NAME,
    ENCODER_NAME,
    FORMAT,
    ITEM_INPUTS_NAME,
    ITEMS_NAME,
    TABLE_NAME,
    ExportConfig,
)


def check_output(out: Path, overwrite: bool) -> None:
    """Check that an export may be written to `out`.

    Raises:
        ConfigError: `out` holds anything other than an export, holds an export and `overwrite` is false, or
            has no name, such as `.`.
    """
    if out.name in ("", ".."):  # the export is renamed to it, which a folder in use does not allow
        raise ConfigError(f"--out {out}: is not the name of a new folder; give one, such as {out / 'model'}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        is_export = read_json(out / CONFIG_NAME, JsonObject).get("format") == FORMAT
    except (FileNotFoundError, JsonFileError):
        is_export = False
    if not is_export:
        raise ConfigError(f"--out {out}: exists and is not an export; give another folder")
    if not overwrite:
        raise ConfigError(f"--out {out}: holds an export; add --overwrite, or give another folder")


def write_export(out: Path, run: Path, config: RunConfig, dataset: Dataset, checkpoint: Checkpoint) -> int:
    """Write a model to `out` and return its size in bytes. The folder appears complete or not at all.

    Args:
        run: the run folder, whose log holds the validation metrics.

    Raises:
        CheckpointError: the checkpoint does not fit the run's configuration, or lacks rows.
        ConfigError: the folder cannot be written, or another process is writing it.
    """
    for field, value in (("num_items", dataset.num_items), ("width", config.encoder.d_model)):
        if checkpoint.state[field] != value:
            raise CheckpointError(f"{checkpoint.path}: its {field} is {checkpoint.state[field]}, not {value}")
    try:
        with _whole_folder(out) as partial:
            inputs = load_inputs(config.inputs, dataset)
            files = write_files(partial, config, checkpoint, dataset, inputs)
            described = ExportConfig(
                encoder=config.encoder,
                num_items=dataset.num_items,
                dataset_id=dataset.dataset_id,
                recipe=config.recipe,
                checkpoint={
                    "name": checkpoint.path.name,
                    "step": checkpoint.step,
                    "metrics": validation_metrics(run, checkpoint.step),
                },
                longplay_version=metadata.version("longplay"),
                files=files,
                inputs=inputs.spec,
                time_unit=dataset.manifest.time_unit if inputs.spec else None,
            )
            write_json(partial / CONFIG_NAME, sealed(described.to_json()))
    except (OSError, pl.exceptions.PolarsError) as error:
        cause = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"--out {out}: cannot be written ({cause}); free disk space, or give another folder"
        ) from error
    return sum(file["bytes"] for file in files.values())


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder, which becomes `out` when the context ends; an exception deletes it.

    Raises:
        ConfigError: another process is writing it.
    """
    partial = temporary_name(out)
    partial.mkdir(parents=True, exist_ok=True)
    try:
        with FolderLock(partial):
            for path in partial.iterdir():  # left by a process that was killed
                if not is_lock_file(path):
                    path.unlink()
            yield partial
            replace_folder(partial, out)
            lock_file(out).unlink()
    except FolderLockedError:
        raise ConfigError(
            f"--out {out}: another process is exporting to it; wait for it, or give another folder"
        ) from None
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_files(
    folder: Path, config: RunConfig, checkpoint: Checkpoint, dataset: Dataset, inputs: EventInputs
) -> dict[str, FileInfo]:
    """Write the encoder, the item table, the items and the inputs.

    Returns:
        The size and checksum of each file.

    Raises:
        CheckpointError: the checkpoint is of another encoder, lacks rows, or has weights that are not finite.
    """
    encoder = build_encoder(config.encoder, torch.Generator(), inputs=inputs.spec)
    saved = read_encoder(checkpoint.path, dict(encoder.named_parameters()), WEIGHTS)
    weights = {name.removeprefix("weight/"): value for name, value in saved.items()}
    for name, value in weights.items():
        check_finite(value, checkpoint, name)
    columns = dataset.items.columns
    items = pl.DataFrame(
        {
            "item_id": pl.arange(1, dataset.num_items + 1, dtype=pl.Int64, eager=True),
            "original_id": dataset.items.original_ids.values,
            "count": dataset.items.counts,
            **{name: columns.column(name) for name, dtype in columns.types.items() if not dtype.is_nested()},
        }
    )
    written = [
        write_tensors(folder / ENCODER_NAME, weights),
        write_table(folder / TABLE_NAME, checkpoint),
        _write_parquet(folder / ITEMS_NAME, items),
        *(
            _write_parquet(folder / vocabulary_name(name), dataset.feature_values(name))
            for name, _ in inputs.spec.categorical
        ),
    ]
    of_items = {category_key(name): codes for name, codes in inputs.items.categories.items()}
    if inputs.items.vectors is not None:
        of_items[VECTORS] = inputs.items.vectors
    if of_items:
        written.append(write_tensors(folder / ITEM_INPUTS_NAME, of_items))
    return {
        file.name: FileInfo(bytes=file.num_bytes, sha256=file.sha256)
        for file in sorted(written, key=lambda file: file.name)
    }


def _write_parquet(path: Path, table: pl.DataFrame) -> WrittenFile:
    with atomic_file(path) as file:
        table.write_parquet(file)
    return WrittenFile(name=path.name, num_bytes=path.stat().st_size, sha256=sha256_of(path))


def validation_metrics(run: Path, step: int) -> dict[str, float]:
    """Return the logged validation metrics of `step` as {"full/ndcg@10": ...}; empty without a validation."""
    return {
        tag.removeprefix("eval_"): series[step]
        for tag, series in read_scalars(run).items()
        if tag.startswith("eval_") and step in series
    }
