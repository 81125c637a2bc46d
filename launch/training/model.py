"""The model of a run: the encoder under DeepSpeed, the sharded item table and the loss."""

from dataclasses import dataclass

import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.splits import train_item_counts
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.side_stream import SideStream
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable
from longplay.launch.inputs.event_inputs import EventInputs, load_inputs
from longplay.launch.settings.config import RunConfig
from longplay.models.encoder import SequenceEncoder, build_encoder
from longplay.models.encoder_checks import check_cuda_graph, check_deterministic, check_packages
from longplay.models.losses.base import LOSSES, Loss
from longplay.models.losses.negatives import shared_negatives


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a training step reads and updates.

    Attributes:
        config: settings of the run.
        world: this rank and its process group.
        encoder: the module that maps embedded rows to hidden states; `engine` trains it.
        table: the item table; this rank holds a shard of it.
        engine: runs and updates the encoder under DeepSpeed, and updates the table in the same step.
        loss: the loss of one micro-batch, summed over its targets.
        inputs: the encoder's inputs besides the items.
        side: the CUDA stream on which the next step is planned; on a CPU it does nothing.
    """

    config: RunConfig
    world: World
    encoder: SequenceEncoder
    table: ItemTable
    engine: EncoderEngine
    loss: Loss
    inputs: EventInputs
    side: SideStream


def build_model(config: RunConfig, dataset: Dataset, world: World, *, initial_rows: bool = True) -> Model:
    """Build encoder, table, engine and loss; the initial weights depend on the seed alone. Collective.

    Args:
        initial_rows: False if a checkpoint will fill the table; see `ItemTable`.

    Raises:
        ValueError: a package with kernels for this device is not installed, the dataset lacks an input, or
            the encoder does not support `train.deterministic` or `engine.cuda_graph` on this device.
    """
    inputs = load_inputs(config.inputs, dataset)
    generator = torch.Generator().manual_seed(config.seed)
    encoder = build_encoder(config.encoder, generator, inputs=inputs.spec)
    check_packages(encoder, world.device)
    if config.train.deterministic:
        check_deterministic(encoder, world.device)
    if config.engine.cuda_graph:
        check_cuda_graph(encoder, world.device)
    table = ItemTable(
        config.table,
        num_items=dataset.num_items,
        width=config.encoder.d_model,
        world=world,
        seed=config.seed,
        initial_rows=initial_rows,
    )
    engine = EncoderEngine(encoder, table, config.engine, world)
    return Model(
        config=config,
        world=world,
        encoder=encoder,
        table=table,
        engine=engine,
        loss=build_loss(config, dataset, world.device),
        inputs=inputs,
        side=SideStream(world.device),
    )


def build_loss(config: RunConfig, dataset: Dataset, device: torch.device) -> Loss:
    """Build the loss that `config` names, with the distribution of its shared negatives if it has one."""

    def item_counts() -> Tensor:
        return torch.from_numpy(train_item_counts(dataset, config.data.split)[1:])

    kind, shared = LOSSES[config.loss.name], None
    if kind.candidates == "shared":
        shared = shared_negatives(config.loss, dataset.num_items, item_counts).to(device)
    return kind(config.loss, num_items=dataset.num_items, shared=shared)
