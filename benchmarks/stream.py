"""Measure how fast the stream reads, seeks and packs, at history lengths like three public datasets'.

    python -m benchmarks.stream                 everything, a few minutes
    python -m benchmarks.stream read seek       some of: read, seek, padding, threads

The shards are generated in a temporary folder. Every number is the median of --repeats runs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from longplay.data_shards.preparation.writing import assign_users, default_num_shards
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.manifest import NUM_QUANTILES, Manifest
from longplay.data_shards.storage.shard_writer import write_shard
from longplay.data_shards.stream.config import StreamConfig
from longplay.data_shards.stream.epoch_order import EpochOrder
from longplay.data_shards.stream.train_stream import TrainStream

LFM_EVENTS, LFM_MEAN, LFM_CAP = 1_088_161_692, 9_044, 20_000
PARTS = ("read", "seek", "padding", "threads")
NUM_ITEMS = 100_000


def lfm_lengths(num_events: int, seed: int = 0) -> np.ndarray:
    """Return (users,) log-normal history lengths, about `num_events` in total: mean 9,044, at most 20,000."""
    draws = np.random.default_rng(seed).lognormal(np.log(LFM_MEAN) - 0.19, 1.0, num_events // LFM_MEAN)
    return np.clip(draws, 2, LFM_CAP).astype(np.int64)


def ml1m_lengths(num_users: int = 6_040, seed: int = 0) -> np.ndarray:
    """Return (users,) history lengths with MovieLens-1M's mean (165.6), minimum (20) and maximum (2,314)."""
    draws = np.random.default_rng(seed).lognormal(np.log(96), 1.05, num_users)
    return np.clip(draws, 20, 2_314).astype(np.int64)


def beauty_lengths(num_users: int = 22_363, seed: int = 0) -> np.ndarray:
    """Return (users,) history lengths with the mean (8.9) and the minimum (5) of Amazon Beauty."""
    return 4 + np.random.default_rng(seed).geometric(1 / 4.9, num_users)


def write_dataset(out: Path, lengths: np.ndarray, seed: int = 0) -> Dataset:
    """Write a dataset of random items for users of the given lengths, in the format of `longplay prepare`."""
    rng, out_shards, first = np.random.default_rng(seed), [], 0
    assignment = assign_users(lengths, default_num_shards(int(lengths.sum()), len(lengths)), seed)
    counts = np.zeros(NUM_ITEMS + 1, np.int64)
    out.mkdir(parents=True)
    for number, users in enumerate(assignment):
        of_shard = lengths[users]
        items = rng.integers(1, NUM_ITEMS + 1, of_shard.sum(), dtype=np.int32)
        counts += np.bincount(items, minlength=NUM_ITEMS + 1)
        times = np.arange(len(items))
        out_shards.append(write_shard(out / f"shard-{number:06d}.tar", first, of_shard, items, times))
        first += len(users)
    order = np.concatenate(assignment)
    users_table = {
        "user_index": np.arange(len(order)),
        "original_id": order,
        "num_events": lengths[order],
        "shard": np.repeat(np.arange(len(assignment)), [len(users) for users in assignment]),
        "position": np.concatenate([np.arange(len(users)) for users in assignment]),
    }
    pl.DataFrame(users_table).write_parquet(out / "users.parquet")
    items_table = {
        "item_id": np.arange(1, NUM_ITEMS + 1),
        "original_id": np.arange(1, NUM_ITEMS + 1),
        "count": counts[1:],
    }
    pl.DataFrame(items_table).write_parquet(out / "items.parquet")
    Manifest(
        dataset_id="benchmark",
        source={"format": "benchmark", "paths": [], "options": {}},
        rows_in=int(lengths.sum()),
        rows_dropped={},
        num_events=int(lengths.sum()),
        num_users=len(lengths),
        num_items=NUM_ITEMS,
        time_quantiles=list(range(NUM_QUANTILES + 1)),
        shards=tuple(out_shards),
    ).write(out)
    return Dataset.open(out)


def median_s(
    function: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the median seconds of a call."""
    times = []
    for _ in range(repeats):
        began = clock()
        function()
        times.append(clock() - began)
    return statistics.median(times)


def read_epoch(path: Path, config: StreamConfig) -> int:
    """Read one epoch without caching decoded shards and return its number of targets."""
    stream = TrainStream(Dataset.open(path, cache_bytes=0), config)
    batches = iter(stream)
    return sum(
        int((batch.targets > 0).sum()) for batch in itertools.islice(batches, stream.steps_per_epoch(0))
    )


def benchmark_read(sets: dict[str, Dataset], repeats: int) -> None:
    """Print the events/s of reading an epoch, and of decoding alone, in wall and in CPU time."""
    print("\nread, cut, pack and fill one epoch; warm page cache, no cached shards, one process, L = 1000")
    config = StreamConfig(context_length=1000, prefetch_steps=0)
    for name, dataset in sets.items():
        path, events = Path(dataset.path), dataset.num_events

        def decode(path: Path = path) -> None:
            Dataset.open(path, cache_bytes=0).verify()

        def whole(path: Path = path) -> None:
            read_epoch(path, config)

        for unit, clock in (("s", time.perf_counter), ("CPU-s", time.process_time)):
            rates = [events / median_s(job, repeats, clock) / 1e6 for job in (whole, decode)]
            print(
                f"  {name:<8} {rates[0]:6.1f} M events/{unit}; decoding and checksum alone {rates[1]:6.1f} "
                f"M events/{unit}"
            )
        print(f"  {name:<8} {dataset.manifest.num_bytes / events:6.2f} bytes/event on disk")


def benchmark_seek(sets: dict[str, Dataset], repeats: int) -> None:
    """Print the seconds from a new stream to the first, a middle and the last step's batch."""
    print("\nseconds from a new TrainStream (its epoch order included) to a step's batch, L = 1000")
    config = StreamConfig(context_length=1000, prefetch_steps=0)
    for name, dataset in sets.items():
        num_steps = TrainStream(dataset, config).steps_per_epoch(0)
        cells = []
        for label, step in (("first", 0), ("middle", num_steps // 2), ("last", num_steps - 1)):

            def seek(step: int = step, path: Path = Path(dataset.path)) -> None:
                stream = TrainStream(Dataset.open(path), config)
                stream.load_state_dict({"epoch": 0, "step": step})
                next(iter(stream))

            cells.append(f"{label} {median_s(seek, repeats):.2f} s")
        print(f"  {name:<8} {num_steps:>7,} steps: {', '.join(cells)}")
    lengths = lfm_lengths(LFM_EVENTS)
    num_shards = default_num_shards(int(lengths.sum()), len(lengths))
    assignment = assign_users(lengths, num_shards, 0)
    ordered, sizes = lengths[np.concatenate(assignment)], [len(users) for users in assignment]
    shard_ptr = np.cumsum([0, *sizes])

    def order() -> EpochOrder:
        return EpochOrder(ordered, ordered - 2, shard_ptr, config, num_lanes=config.num_lanes, epoch=0)

    print(
        f"  order of {lengths.sum():,} events of {len(lengths):,} users in {num_shards} shards: "
        f"{median_s(order, repeats):.2f} s, {order().num_steps:,} steps"
    )


def benchmark_padding(repeats: int) -> None:
    """Print the fraction of padding at several context lengths."""
    print("\npadding, and seconds to compute the epoch order")
    for name, lengths in {"LFM-like": lfm_lengths(20_000_000), "ML-1M": ml1m_lengths()}.items():
        assignment = assign_users(lengths, default_num_shards(int(lengths.sum()), len(lengths)), 0)
        ordered = lengths[np.concatenate(assignment)]
        shard_ptr = np.cumsum([0, *(len(users) for users in assignment)])
        for context_length in (250, 1000, 5000):
            config = StreamConfig(context_length=context_length)

            def order(ordered=ordered, shard_ptr=shard_ptr, config=config) -> EpochOrder:
                return EpochOrder(ordered, ordered - 2, shard_ptr, config, num_lanes=12, epoch=0)

            padding = 100 * order().padding_fraction
            print(f"  {name:<8} L = {context_length:>4}: {padding:5.2f} %  {median_s(order, repeats):.2f} s")


def benchmark_threads(sets: dict[str, Dataset], repeats: int) -> None:
    """Print the targets/s of an epoch with several numbers of reader threads."""
    print("\none epoch by several reader threads, L = 1000, prefetch_steps = 2")
    for name, dataset in sets.items():
        rates = []
        for threads in (0, 1, 2, 4):
            config = StreamConfig(context_length=1000, reader_threads=threads)

            def whole(config: StreamConfig = config, path: Path = Path(dataset.path)) -> None:
                read_epoch(path, config)

            rates.append(f"{threads}: {dataset.num_events / median_s(whole, repeats) / 1e6:.1f}")
        print(f"  {name:<8} M events/s with threads {', '.join(rates)}")


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--events", type=int, default=12_000_000, help="events of the LFM-like dataset")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder for temporary shards (default: the system's)")
    args = parser.parse_args()
    parts = args.parts or PARTS
    if not set(parts) <= set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "torch", "polars")]
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {', '.join(versions)}; load {os.getloadavg()[0]:.1f}; "
        f"median of {args.repeats}"
    )
    warnings.simplefilter("error")
    if "padding" in parts:
        benchmark_padding(args.repeats)
    if {"read", "seek", "threads"} & set(parts):
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            sets = {
                "LFM-like": write_dataset(Path(folder) / "lfm", lfm_lengths(args.events)),
                "ML-1M": write_dataset(Path(folder) / "ml1m", ml1m_lengths()),
                "Beauty": write_dataset(Path(folder) / "beauty", beauty_lengths(50 * 22_363)),
            }
            if "read" in parts:
                benchmark_read(sets, args.repeats)
            if "seek" in parts:
                benchmark_seek(sets, args.repeats)
            if "threads" in parts:
                benchmark_threads(sets, args.repeats)


if __name__ == "__main__":
    main()
