"""`data.on_bad_shard` = skip on several ranks: every rank skips the shards that any rank cannot read."""

import torch

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.splits import split_bounds
from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World
from longplay.launch.settings.config import RunConfig


def agree_on_bad_shards(dataset: Dataset, config: RunConfig, world: World) -> None:
    """Make all ranks skip the same shards. Call it before anything that reads all shards. Collective.

    If bad shards are skipped and every rank reads all shards, each rank first reads its part of the shards.
    """
    if dataset.store.on_bad_shard == "stop" or world.world_size == 1:
        return
    if _every_rank_reads_all(config):
        for index in range(world.rank, dataset.num_shards, world.world_size):
            dataset.shard(index, with_times=False)
    share_skipped(dataset, world)
    split_bounds.cache_clear()


def check_agreement(dataset: Dataset, agreed: set[int], config: RunConfig, world: World) -> None:
    """Check that no rank has skipped more shards than the `agreed` ones. Collective.

    Call it after everything that reads all shards.

    Args:
        agreed: indices of the shards that were skipped after `agree_on_bad_shards`.

    Raises:
        DataError: only some ranks can read a shard, so their splits would differ.
    """
    share_skipped(dataset, world)
    late = sorted(set(dataset.store.skipped) - agreed)
    if late and world.world_size > 1 and _every_rank_reads_all(config):
        raise DataError(
            f"{dataset.manifest.shards[late[0]].name}: only some ranks can read it; make all copies of the "
            "dataset the same"
        )


def share_skipped(dataset: Dataset, world: World) -> None:
    """Skip on every rank each shard that any rank has skipped. Collective, unless bad shards stop the run."""
    store = dataset.store
    if store.on_bad_shard == "stop" or world.world_size == 1:
        return
    bad = torch.zeros(dataset.num_shards, dtype=torch.int32, device=world.device)
    bad[list(store.skipped)] = 1
    with waiting("the bad shards of the other ranks"):
        found = all_reduce_max(bad, world).nonzero().flatten().tolist()
    for index in found:
        store.skip(index, f"{dataset.manifest.shards[index].name}: shard cannot be read by another rank")


def _every_rank_reads_all(config: RunConfig) -> bool:
    return config.data.split.kind == "temporal" or config.loss.draws_by_count
