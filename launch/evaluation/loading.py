"""Open the dataset, the checkpoints and the model of a run folder."""

from pathlib import Path

import torch

from longplay.common.tensor_file import TensorFile
from longplay.data_shards.errors import OnBadShard
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, trusted_location
from longplay.distributed.checkpoints.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    load_encoder_weights,
    open_checkpoint,
)
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable
from longplay.launch.inputs.event_inputs import check_recorded, load_inputs
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.saved import changed_since, from_json, read_config, read_saved_run
from longplay.models.encoder import SequenceEncoder, build_encoder
from longplay.models.encoder_checks import check_packages
from longplay.models.encoder_size import num_parameters


def open_dataset(run: Path, data: Location | None, on_bad_shard: OnBadShard = "stop") -> Dataset:
    """Open the dataset that a run was trained on.

    Args:
        data: where the dataset is now; None = where it was in training.

    Raises:
        ConfigError: the dataset is not there, `data` is another dataset, or the run's inputs have changed.
    """
    saved = read_saved_run(run)
    location = data or trusted_location(saved.data, run / "config.json")
    if data is None and isinstance(location, Path) and not location.is_dir():
        raise ConfigError(f"{saved.data}: the dataset of {run} is not there; give its folder with --data")
    dataset = Dataset.open(location, on_bad_shard=on_bad_shard)
    if dataset.dataset_id != saved.dataset_id:
        raise ConfigError(
            f"--data {dataset.path}: is not the dataset that {run} was trained on; give that dataset, which "
            f"was at {saved.data}"
        )
    if saved.inputs is not None:
        check_recorded(saved.inputs, load_inputs(from_json(saved.config).inputs, dataset), dataset)
    return dataset


def find_checkpoint(run: Path, name: str) -> Checkpoint:
    """Open a checkpoint of a run.

    Args:
        name: "last", a name such as "step-000000120", or "best": the best by validation, or the last one if
            the run has no validation.

    Raises:
        ConfigError: the run has no such checkpoint.
        CheckpointError: the checkpoint is damaged or another run's; for "last", every checkpoint is.
    """
    checkpoint = _open_checkpoint(RunFolder(run), name)
    changed = changed_since(checkpoint.state.get("config", {}), read_config(run))
    if changed:
        raise ConfigError(
            f"{run / 'config.json'}: has other settings than {checkpoint.path.name} was trained with "
            f"({'; '.join(changed[:3])}); restore the file"
        )
    return checkpoint


def _open_checkpoint(folder: RunFolder, name: str) -> Checkpoint:
    if name == "best":
        best = folder.read_best()
        name = best.checkpoint if best else "last"
    if name != "last":
        if not (folder.checkpoints / name / "state.json").is_file():
            steps = (path for path in folder.checkpoints.glob("step-*") if (path / "state.json").is_file())
            names = ["best", "last", *sorted(path.name for path in steps)]
            raise ConfigError(
                f"--checkpoint {name}: is not in {folder.checkpoints}; give one of {', '.join(names)}"
            )
        return open_checkpoint(folder.checkpoints / name, owner=folder.owner())
    checkpoint, _ = latest_checkpoint(folder.checkpoints, owner=folder.owner())
    if checkpoint is None:
        raise ConfigError(f"{folder.path}: has no checkpoint yet; train first")
    return checkpoint


def load_model(
    config: RunConfig, dataset: Dataset, checkpoint: Checkpoint, world: World
) -> tuple[SequenceEncoder, ItemTable]:
    """Return the checkpoint's encoder in eval mode and its item table, read-only. Collective.

    Raises:
        ValueError: a package with kernels for this device is not installed.
        CheckpointError: the checkpoint is of another model.
    """
    inputs = load_inputs(config.inputs, dataset).spec
    with TensorFile(checkpoint.path / "encoder.safetensors") as file:
        saved, expected = file.num_elements("weight/"), num_parameters(config.encoder, inputs)
    if saved != expected:
        raise CheckpointError(
            f"{checkpoint.path}: has {saved:,} encoder weights, but the settings in the run's "
            f"config.json give {expected:,}; restore config.json"
        )
    encoder = build_encoder(config.encoder, torch.Generator().manual_seed(config.seed), inputs=inputs)
    check_packages(encoder, world.device)
    load_encoder_weights(checkpoint, encoder)
    table = ItemTable(
        config.table,
        num_items=dataset.num_items,
        width=config.encoder.d_model,
        world=world,
        initial_rows=False,
        read_only=True,
    )
    load_checkpoint(checkpoint, None, table)
    return encoder.to(world.device).eval(), table
