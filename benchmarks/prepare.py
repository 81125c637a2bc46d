"""Measure the rate, memory and disk use of `longplay prepare` on generated LFM-1b events of two sizes.

    python -m benchmarks.prepare                                     100 M and 300 M events: 18 GB of raw text
    python -m benchmarks.prepare --events 10M 30M --format kuairand  smaller, another format
    python -m benchmarks.prepare --events 100M --string-ids          the ids read as strings

`longplay synth` generates the raw files; they are deleted afterwards unless --raw keeps them. Each run of
`longplay prepare` is a separate process, whose peak memory the operating system reports.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from longplay.data_shards.storage.manifest import Manifest
from longplay.launch.synth import parse_count

_POLL_S = 0.5
_STRING_IDS = shlex.split(
    "--sep tab --header none --quote none --user 1 --item 4 --time 5 --user-type string --item-type string"
)


@dataclass(frozen=True)
class Measured:
    """One run: seconds, peak resident bytes, peak disk bytes, and the resulting manifest."""

    seconds: float
    cpu_s: float
    rss_bytes: int
    disk_bytes: int
    manifest: Manifest


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", nargs="+", default=["100M", "300M"], metavar="N")
    parser.add_argument("--format", choices=["lfm1b", "kuairand"], default="lfm1b")
    parser.add_argument("--string-ids", action="store_true", help="read LFM-1b's ids as strings")
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--raw", type=Path, help="keep raw files in this folder and reuse existing ones")
    parser.add_argument("--scratch", type=Path, help="scratch folder on a disk with enough space")
    args = parser.parse_args()
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("polars", "pyarrow", "numpy", "duckdb")
    )
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {versions}")
    ids = " with string ids" if args.string_ids else ""
    print(f"longplay prepare {args.format}{ids} --memory {args.memory}, medians of {args.repeats}\n")
    print("      events       s M events/s   CPU s  RSS GiB disk B/event shard B/event")
    results: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as temporary:
        for text in args.events:
            events = parse_count("events", text)
            raw = (args.raw or Path(temporary)) / f"{args.format}-{events}"
            _make_raw(args.format, events, raw)
            read = [args.format, str(raw)]
            if args.string_ids:
                read = ["csv", str(raw / "LFM-1b_LEs.txt"), *_STRING_IDS]
            runs = [_run(read, Path(temporary), args.memory) for _ in range(args.repeats)]
            rate = events / statistics.median(run.seconds for run in runs)
            rss = max(run.rss_bytes for run in runs)
            manifest = runs[0].manifest
            print(
                f"{events:>12,} {events / rate:>7.1f} {rate / 1e6:>10.2f} "
                f"{statistics.median(run.cpu_s for run in runs):>7.1f} {rss / 2**30:>8.2f} "
                f"{max(run.disk_bytes for run in runs) / events:>12.1f} "
                f"{manifest.num_bytes / manifest.num_events:>13.2f}",
                flush=True,
            )
            results.append((rate, rss))
            if args.raw is None:
                shutil.rmtree(raw)
    (first_rate, first_rss), (last_rate, last_rss) = results[0], results[-1]
    print(f"\nlast against first: rate {last_rate / first_rate:.2f}, peak memory {last_rss / first_rss:.2f}")


def _make_raw(form: str, events: int, raw: Path) -> None:
    if not raw.exists():
        command = ["synth", form, "--events", str(events), "--out", str(raw)]
        subprocess.run(
            [sys.executable, "-m", "longplay.launch.cli", *command], check=True, stdout=subprocess.DEVNULL
        )


def _run(read: list[str], temporary: Path, memory: str) -> Measured:
    """Run `longplay prepare` once, with the arguments `read`."""
    work = temporary / "work"
    work.mkdir()
    command = ["prepare", *read, "--out", str(work / "set"), "--memory", memory]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "longplay.launch.cli", *command], stdout=subprocess.DEVNULL
    )
    fullest, stop = [0], threading.Event()
    watcher = threading.Thread(target=_watch_disk, args=(work, fullest, stop))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    stop.set()
    watcher.join()
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"longplay {' '.join(command)}: failed with exit code {code}")
    process.returncode = 0
    manifest = Manifest.read(work / "set")
    shutil.rmtree(work)
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, fullest[0], manifest)


def _watch_disk(folder: Path, fullest: list[int], stop: threading.Event) -> None:
    """Record the peak size of `folder` in bytes."""
    while not stop.wait(_POLL_S):
        total = 0
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    total += os.stat(os.path.join(root, name)).st_size
                except FileNotFoundError:
                    continue
        fullest[0] = max(fullest[0], total)


if __name__ == "__main__":
    main()
