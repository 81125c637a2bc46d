"""What commands that read a prepared dataset have in common: its place, and what becomes of bad shards."""

import argparse

import torch

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import Location, parse_location
from longplay.data_shards.stream.splits import split_bounds
from longplay.distributed.runtime.collectives import all_reduce_max
from longplay.distributed.runtime.world import World
from longplay.launch.settings.config import RunConfig


def data_location(text: str) -> Location:
    """A folder or a URL, as an argument's type."""
    try:
        return parse_location(text)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def agree_on_bad_shards(dataset: Dataset, config: RunConfig, world: World) -> None:
    """Before anything is computed from shards that every rank reads, let all ranks skip the same ones. Every
    rank must call; costs nothing unless bad shards are to be skipped.
    """
    if dataset.store.on_bad_shard == "stop" or world.world_size == 1:
        return
    if _every_rank_reads_all(config):
        for index in range(world.rank, dataset.num_shards, world.world_size):
            dataset.shard(index, with_times=False)
    share_skipped(dataset, world)
    split_bounds.cache_clear()


def check_agreement(dataset: Dataset, agreed: set[int], config: RunConfig, world: World) -> None:
    """Once such things are computed, make sure that no rank skipped more meanwhile. Every rank must call.

    Raises:
        DataError: a shard that only some ranks can read, so that their splits differ.
    """
    share_skipped(dataset, world)
    late = sorted(set(dataset.store.skipped) - agreed)
    if late and world.world_size > 1 and _every_rank_reads_all(config):
        raise DataError(
            f"{dataset.manifest.shards[late[0]].name}: can be read by some ranks only; make all copies of "
            "the dataset alike"
        )


def share_skipped(dataset: Dataset, world: World) -> None:
    """Let every rank skip what any rank skips. Every rank must call; costs nothing unless bad shards are to
    be skipped.
    """
    store = dataset.store
    if store.on_bad_shard == "stop" or world.world_size == 1:
        return
    bad = torch.zeros(dataset.num_shards, dtype=torch.int32, device=world.device)
    bad[list(store.skipped)] = 1
    for index in all_reduce_max(bad, world).nonzero().flatten().tolist():
        store.skip(index, f"{dataset.manifest.shards[index].name}: shard cannot be read by another rank")


def _every_rank_reads_all(config: RunConfig) -> bool:
    return config.data.split.kind == "temporal" or config.loss.draws_by_count
