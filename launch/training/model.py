"""What a run trains: the encoder under DeepSpeed and the sharded item table, with its loss's negatives."""

from dataclasses import dataclass

import torch

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.splits import train_item_counts
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.side_stream import SideStream
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable
from longplay.launch.settings.config import RunConfig
from longplay.models.build import build_encoder
from longplay.models.encoder import SequenceEncoder
from longplay.models.losses.losses import LossConfig
from longplay.models.losses.negatives import SharedNegatives


@dataclass(frozen=True, kw_only=True)
class Model:
    """What one training step works on; on `side` the next one is planned."""

    config: RunConfig
    world: World
    encoder: SequenceEncoder
    table: ItemTable
    engine: EncoderEngine
    negatives: SharedNegatives | None
    side: SideStream


def build_model(config: RunConfig, dataset: Dataset, world: World, *, initial_rows: bool = True) -> Model:
    """Build encoder, table and engine; the initial weights depend on the seed alone. Every rank must call.

    Args:
        initial_rows: False where a checkpoint's rows follow, see `ItemTable`.
    """
    encoder = build_encoder(config.encoder, torch.Generator().manual_seed(config.seed))
    table = ItemTable(
        config.table,
        num_items=dataset.num_items,
        width=config.encoder.d_model,
        world=world,
        seed=config.seed,
        initial_rows=initial_rows,
    )
    engine = EncoderEngine(encoder, table, config.engine, world)
    negatives = shared_negatives(config.loss, dataset, config)
    return Model(
        config=config,
        world=world,
        encoder=encoder,
        table=table,
        engine=engine,
        negatives=None if negatives is None else negatives.to(world.device),
        side=SideStream(world.device),
    )


def shared_negatives(loss: LossConfig, dataset: Dataset, config: RunConfig) -> SharedNegatives | None:
    """The distribution of sampled softmax's negatives; None where the loss draws its own or none.

    For in-batch negatives it is only the estimate of how often an item occurs in a batch.
    """
    if loss.name != "sampled_softmax":
        return None
    if loss.negatives == "uniform":
        return SharedNegatives(dataset.num_items)
    counts = torch.from_numpy(train_item_counts(dataset, config.data.split)[1:])
    return SharedNegatives.by_frequency(counts, 1.0 if loss.negatives == "in_batch" else loss.frequency_alpha)
