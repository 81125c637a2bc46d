"""Measure the cost of saving, and save and resume a table of 31.6 M rows on different numbers of ranks.

    python -m benchmarks.checkpoint overhead --data data/ml1m   compare saving every 50 steps with no saving
    python -m benchmarks.checkpoint large                       31.6 M x 64: 2 ranks, kill, 1, kill, 4

`large` writes and reads 8.1 GB three times and needs 20 GB of memory and 30 GB of disk. Before each start it
measures the disk with a file as large as a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from longplay.distributed.runtime.rendezvous import free_port
from longplay.launch.run_folders.metrics_file import read_scalars

_BLOCK = 64 << 20
_LONGPLAY = [sys.executable, "-m", "longplay.launch.cli"]


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["overhead", "large"])
    parser.add_argument("--data", type=Path, help="a prepared dataset, for `overhead`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--items", type=int, default=31_634_450)
    parser.add_argument("--scratch", type=Path, help="scratch folder on a disk with enough space")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as temporary:
        if args.part == "overhead":
            if args.data is None:
                parser.error("overhead needs --data, for example data/ml1m")
            _overhead(args.data, Path(temporary), args.repeats, args.steps)
        else:
            _large(Path(temporary), args.items)


def _overhead(data: Path, folder: Path, repeats: int, steps: int) -> None:
    """Print the median milliseconds per step with and without saving every 50 steps."""
    times: dict[str, list[float]] = {"never": [], "every 50 steps": [], "every 50, waiting": []}
    settings = {
        "never": [],
        "every 50 steps": ["--train.checkpoint_every_steps", "50"],
        "every 50, waiting": ["--train.checkpoint_every_steps", "50", "--train.background_save", "never"],
    }
    for number in range(repeats):
        for name, words in settings.items():
            run = folder / f"{name} {number}"
            bounds = ["--train.max_steps", str(steps), "--evaluation.max_validation_users", "1"]
            _train(["ml1m", "--data", str(data), "--run", str(run), *bounds, *words], 1, folder / "log")
            times[name].append(_seconds_of_training(run, steps))
    base = statistics.median(times["never"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"saving {name:<18} {1e3 * median / steps:7.1f} ms/step  {median / base:6.3f}")


def _seconds_of_training(run: Path, steps: int) -> float:
    """Return the seconds that `steps` steps took, from the wall times in the TensorBoard log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = {event.step: event.wall_time for event in events.Scalars("train/loss")}
    first, last = min(losses), max(losses)
    return (losses[last] - losses[first]) * steps / (last - first)


def _large(folder: Path, num_items: int) -> None:
    """Train 20 steps on 2 ranks, save, kill all ranks, then resume on 1 and on 4 ranks."""
    data, run, log = folder / "data", folder / "run", folder / "log"
    print(f"dataset: each of {num_items:,} items occurs once", flush=True)
    _make_dataset(data, num_items)
    table_gib = num_items * 64 * 4 / 2**30
    for world_size, steps, then in ((2, 20, "killed"), (1, 40, "killed"), (4, 60, "ended")):
        words = ["mambarec", "--data", str(data), "--run", str(run), *_large_settings()]

        def is_saved(step: int = steps) -> bool:
            return step in read_scalars(run).get("perf/save_stall_s", {})

        write_rate, read_rate = _disk_rates(folder, num_items * 65 * 4)
        print(f"disk: writes {write_rate / 1e6:.0f} MB/s, reads {read_rate / 1e6:.0f} MB/s", flush=True)
        began = time.perf_counter()
        if then == "killed":
            peaks = _train(words, world_size, log, kill_when=is_saved)
        else:
            peaks = _train([*words, "--train.max_steps", str(steps)], world_size, log)
        seconds = time.perf_counter() - began
        loaded = re.findall(r"read in ([\d.]+) s", log.read_text())
        stalls = read_scalars(run)["perf/save_stall_s"]
        shard = table_gib / world_size
        allowed = 1.25 * (shard + shard / 64) + 1.5
        print(
            f"{world_size} rank(s) to step {steps}, {then}: {seconds:.0f} s, "
            f"peak {max(peaks):.2f} GiB per rank (1.25 x shard and state + 1.5: {allowed:.2f}), "
            f"saved in {stalls[steps]:.1f} s" + (f", read in {loaded[0]} s" if loaded else ""),
            flush=True,
        )
    losses = read_scalars(run)["train/loss"]
    print("loss", " ".join(f"{step}: {losses[step]:.4f}" for step in (1, 20, 21, 40, 41, 60)))
    num_bytes = sum(path.stat().st_size for path in (run / "checkpoints").rglob("*.safetensors"))
    print(f"checkpoints {num_bytes / 1e9:.1f} GB")


def _large_settings() -> list[str]:
    chosen = {
        "encoder.d_model": 64,
        "context_length": 200,
        "table.optimizer.name": "adagrad",
        "loss.name": "sampled_softmax",
        "data.rows_per_step": 24,
        "train.checkpoint_every_steps": 20,
        "train.log_every_steps": 1,
        "train.device": "cpu",
        "evaluation.max_validation_users": 20,
        "evaluation.rows_per_batch": 4,
    }
    return [word for name, value in chosen.items() for word in (f"--{name}", str(value))]


def _make_dataset(data: Path, num_items: int) -> None:
    """Prepare a dataset in which each item occurs once, in histories of 5,000 events."""
    items = np.random.default_rng(0).permutation(num_items)
    table = {"user_id": np.arange(num_items) // 5000, "item_id": items, "timestamp": np.arange(num_items)}
    path = data.with_suffix(".parquet")
    pl.DataFrame(table).write_parquet(path)
    subprocess.run(
        [*_LONGPLAY, "prepare", "parquet", str(path), "--out", str(data)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    path.unlink()


def _disk_rates(folder: Path, total: int) -> tuple[float, float]:
    """Return bytes/s of writing a file of `total` bytes with fsync, and of reading it from the disk."""
    path = folder / "rate"
    block = os.urandom(_BLOCK)
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(total // _BLOCK):
            file.write(block)
        os.fsync(file.fileno())
        written = time.perf_counter() - began
        os.posix_fadvise(file.fileno(), 0, total, os.POSIX_FADV_DONTNEED)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(_BLOCK):
            pass
    read = time.perf_counter() - began
    path.unlink()
    return total / written, total / read


def _train(
    words: list[str], world_size: int, log: Path, kill_when: Callable[[], bool] | None = None
) -> list[float]:
    """Run `longplay train` until it ends or all ranks are killed. Return each rank's peak memory in GiB."""
    port, processes = free_port(), []
    with log.open("w") as output:
        for rank in range(world_size):
            env = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // world_size))}
            if world_size > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            processes.append(
                subprocess.Popen(
                    [*_LONGPLAY, "train", *words], env=env, stdout=output, stderr=subprocess.STDOUT
                )
            )
        while kill_when is not None and not kill_when():
            assert all(process.poll() is None for process in processes), log.read_text()
            time.sleep(0.2)
        if kill_when is not None:
            for process in processes:
                process.kill()
        peaks = []
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            peaks.append(usage.ru_maxrss / 2**20)
    expected = 0 if kill_when is None else -signal.SIGKILL
    assert all(process.returncode == expected for process in processes), log.read_text()
    return peaks


if __name__ == "__main__":
    main()
