"""Refuse runs that need far more memory than any machine has, before a sweep submits them."""

from collections.abc import Iterable
from pathlib import Path

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.locations import parse_location
from longplay.launch.estimates.possible import check_possible
from longplay.launch.settings.errors import ConfigError
from longplay.launch.sweeps.cluster import Resources
from longplay.launch.sweeps.grid import SweepJobSpec

_LIMIT = 1 << 40, "the memory of a large machine"  # the nodes may have more memory than this machine


def check_runs(specs: Iterable[SweepJobSpec], resources: Resources) -> None:
    """Check every run on a dataset in a folder. Datasets behind a URL are not read.

    Raises:
        ConfigError: a run needs far more memory than a large machine has.
        DataError: a dataset is damaged.
    """
    device_type = "cuda" if resources.gpus_per_node else "cpu"
    datasets: dict[Path, Dataset] = {}
    for spec in specs:
        location = parse_location(spec.data)
        if not isinstance(location, Path):
            continue
        config = spec.config
        if location not in datasets:
            datasets[location] = Dataset.open(location, on_bad_shard=config.data.on_bad_shard)
        try:
            check_possible(
                config,
                datasets[location],
                world_size=resources.world_size,
                device_type=device_type,
                limit=_LIMIT,
            )
        except ConfigError as error:
            raise ConfigError(f"{spec.name}: {error}") from None
