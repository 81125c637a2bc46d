"""Compare engines for an out-of-core `longplay prepare`: Polars, DuckDB, and PyArrow with NumPy.

The task: convert raw LFM-1b text (TAB, no header, `user artist album track unix_s`) to an uncompressed
Parquet file of user, item and time. Each user's events are contiguous and sorted by (time, position in the
file); items are renumbered by falling frequency, ties by id. Each engine runs in its own process, alternating
with the others, and the outputs are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from longplay.common.sizes import parse_bytes

# Each engine imports its own libraries, so that its peak memory includes only those.

NUM_THREADS = 2
_COLUMNS: tuple[str, ...] = ("user", "artist", "album", "item", "time")
_KEPT = ("user", "item", "time")
_BLOCK_BYTES = 64 << 20
_SAMPLE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one engine: its input, its output, its memory limit and its scratch folder."""

    raw: Path
    out: Path
    temporary: Path
    memory_bytes: int


def run_polars(job: Job) -> None:
    """Run two passes of the streaming engine: count the items, then join, sort and sink."""
    import polars as pl

    schema = {name: pl.Int64 for name in _COLUMNS}
    rows = pl.scan_csv(job.raw, separator="\t", has_header=False, schema=schema, quote_char=None)
    events = rows.select(_KEPT).with_row_index("place")
    counts = events.group_by("item").len().sort(["len", "item"], descending=[True, False])
    items = counts.select("item", item_id=pl.int_range(1, pl.len() + 1, dtype=pl.Int32))
    numbered = events.join(items.collect(engine="streaming").lazy(), on="item")
    ordered = numbered.sort("user", "time", "place").select("user", pl.col("item_id").alias("item"), "time")
    ordered.sink_parquet(job.out, compression="uncompressed", engine="streaming")


def run_duckdb(job: Job) -> None:
    """Load a table on disk, whose row ids are positions in the file; then join, sort and copy."""
    import duckdb  # pyright: ignore[reportMissingImports]  # installed by the extra [bench]

    settings = {
        "memory_limit": f"{job.memory_bytes >> 20}MiB",
        "threads": NUM_THREADS,
        "temp_directory": str(job.temporary / "spill"),
    }
    columns = "{" + ", ".join(f"'{name}': 'BIGINT'" for name in _COLUMNS) + "}"
    with duckdb.connect(job.temporary / "events.duckdb", config=settings) as connection:
        connection.execute(
            f"CREATE TABLE events AS SELECT {', '.join(_KEPT)} FROM "
            f"read_csv('{job.raw}', delim = '\t', header = false, quote = '', columns = {columns})"
        )
        connection.execute(
            "CREATE TABLE items AS SELECT item, (row_number() OVER (ORDER BY count(*) DESC, item))::INTEGER "
            "AS item_id FROM events GROUP BY item"
        )
        connection.execute(
            "COPY (SELECT user, item_id AS item, time FROM events JOIN items USING (item) "
            f"ORDER BY user, time, events.rowid) TO '{job.out}' (FORMAT parquet, COMPRESSION uncompressed)"
        )


def run_arrow_numpy(job: Job) -> None:
    """Parse blocks with PyArrow, partition them by user into buckets on disk, then sort each bucket."""
    import concurrent.futures

    import numpy as np
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    pa.set_cpu_count(NUM_THREADS)
    # A thread holds a bucket, its key, its order and its sorted columns: about 5 times 24 bytes per event.
    # Use twice as many buckets as this needs, because their sizes differ. A row takes at least 20 bytes.
    most_events = job.raw.stat().st_size // 20
    num_buckets = max(2, 2 * -(-most_events * 24 * 5 * NUM_THREADS // job.memory_bytes))
    paths = [job.temporary / f"bucket-{number}" for number in range(num_buckets)]
    buckets = [path.open("wb", buffering=0) for path in paths]
    item_counts = np.zeros(1 << 20, np.int32)
    reader = pyarrow.csv.open_csv(
        job.raw,
        read_options=pyarrow.csv.ReadOptions(column_names=list(_COLUMNS), block_size=_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(_KEPT), column_types=dict.fromkeys(_COLUMNS, pa.int64())
        ),
    )
    for batch in reader:
        user, item, when = (batch.column(name).to_numpy() for name in _KEPT)
        if item.max() >= len(item_counts):
            item_counts = np.concatenate([item_counts, np.zeros(item.max(), np.int32)])
        np.add.at(item_counts, item, np.int32(1))
        # Fibonacci hashing: the product's upper bits, scaled to the number of buckets.
        mixed = (user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
        bucket = ((mixed * np.uint64(num_buckets)) >> np.uint64(24)).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")
        rows = np.stack([user, item, when], axis=1)[order]
        for file, part in zip(buckets, np.split(rows, _ends(bucket, num_buckets)), strict=True):
            file.write(part.data)
    for file in buckets:
        file.close()
    present = np.flatnonzero(item_counts)
    by_count = present[np.argsort(-item_counts[present], kind="stable")]
    item_ids = np.zeros(len(item_counts), np.int32)
    item_ids[by_count] = np.arange(1, len(by_count) + 1, dtype=np.int32)

    def sorted_bucket(path: Path) -> pa.Table:
        user, item, when = np.fromfile(path, np.int64).reshape(-1, 3).T
        path.unlink()
        order = _order(user, when)
        columns = {"user": user[order], "item": item_ids[item[order]], "time": when[order]}
        return pa.table(columns)

    schema = pa.schema([("user", pa.int64()), ("item", pa.int32()), ("time", pa.int64())])
    with (
        pq.ParquetWriter(job.out, schema, compression="none", use_dictionary=False) as writer,
        concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as threads,
    ):
        # Sort at most one bucket per thread ahead, or sorted buckets would pile up in memory.
        for begin in range(0, num_buckets, NUM_THREADS):
            for table in threads.map(sorted_bucket, paths[begin : begin + NUM_THREADS]):
                writer.write_table(table)


def _ends(bucket, num_buckets: int):
    """Return the ends (num_buckets - 1,) of all buckets but the last, in rows ordered by bucket."""
    import numpy as np

    return np.cumsum(np.bincount(bucket, minlength=num_buckets))[:-1]


def _order(user, when):
    """Return the order by (user, time, position), from one packed key if it fits into 64 bits."""
    import numpy as np

    if len(user) == 0:
        return np.empty(0, np.int64)
    users, user_rank = np.unique(user, return_inverse=True)
    after = when - when.min()
    place_bits, time_bits = len(user).bit_length(), int(after.max()).bit_length()
    if len(users).bit_length() + time_bits + place_bits > 63:
        return np.lexsort((when, user))
    key = (user_rank << (time_bits + place_bits)) | (after << place_bits) | np.arange(len(user))
    key.sort()
    return key & ((1 << place_bits) - 1)


ENGINES = {"polars": run_polars, "duckdb": run_duckdb, "arrow+numpy": run_arrow_numpy}


def checksum(path: Path) -> str:
    """Return a checksum of users, items and times, with users by rising id.

    Raises:
        ValueError: a user's events are not contiguous.
    """
    import numpy as np
    import polars as pl

    events = pl.read_parquet(path)
    user = events["user"].to_numpy()
    if np.count_nonzero(np.diff(user)) + 1 != len(np.unique(user)):
        raise ValueError(f"{path}: a user's events are not contiguous")
    order = np.argsort(user, kind="stable")
    digest = hashlib.sha256()
    for name, dtype in (("user", "<i8"), ("item", "<i4"), ("time", "<i8")):
        digest.update(events[name].to_numpy()[order].astype(dtype).tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of one engine.

    Attributes:
        seconds: wall time of the process, Python's start included.
        cpu_seconds: CPU time of all threads, less sensitive to other work on the machine.
        peak_bytes: peak of resident memory, mapped files included.
        peak_own_bytes: the same without mapped files, sampled.
        peak_disk_bytes: peak size of the scratch folder, sampled.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    peak_own_bytes: int
    peak_disk_bytes: int


def measure(engine: str, job: Job) -> Measured:
    """Run an engine in its own process."""
    words = [sys.executable, "-m", "benchmarks.prepare_engines", "--one", engine]
    words += ["--raw", str(job.raw), "--out", str(job.out), "--scratch", str(job.temporary)]
    environment = {
        **os.environ,
        "POLARS_MAX_THREADS": str(NUM_THREADS),
        "POLARS_OOC_MEMORY_BUDGET_MB": str(job.memory_bytes >> 20),
        "POLARS_OOC_SPILL_DIR": str(job.temporary),
        "OMP_NUM_THREADS": "1",
    }
    began, cpu_before = time.perf_counter(), _children_cpu_s()
    process = subprocess.Popen(
        [*words, "--memory", str(job.memory_bytes)], env=environment, stdout=subprocess.PIPE, text=True
    )
    with _sampled(process.pid, job.temporary) as peaks:
        output, _ = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode != 0:
        raise RuntimeError(f"{engine} failed with exit code {process.returncode}")
    peak = json.loads(output)["peak_bytes"]
    return Measured(
        seconds=seconds,
        cpu_seconds=_children_cpu_s() - cpu_before,
        peak_bytes=peak,
        peak_own_bytes=peaks["own"],
        peak_disk_bytes=peaks["disk"],
    )


def _children_cpu_s() -> float:
    """Return the CPU seconds of child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _sampled(process: int, folder: Path) -> Iterator[dict[str, int]]:
    """Sample the peaks of a process's own memory and of a folder's size while the block runs."""
    peaks, done = {"own": 0, "disk": 0}, threading.Event()

    def sample() -> None:
        while not done.wait(_SAMPLE_S):
            peaks["own"] = max(peaks["own"], _status_bytes(process, "RssAnon"))
            peaks["disk"] = max(peaks["disk"], _folder_bytes(folder))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def _status_bytes(process: int | str, field: str) -> int:
    """Return a field of /proc/PID/status in bytes; 0 once the process has ended."""
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_blocks * 512
        except OSError:  # removed after it was listed
            continue
    return total


def compare(args: argparse.Namespace, scratch: Path) -> None:
    """Alternate the engines and print a table of medians."""
    raw = args.raw or _generate(args.events, scratch / "raw")
    runs: dict[str, list[Measured]] = {engine: [] for engine in args.engines}
    for repeat in range(args.repeats):
        sums = {}
        for engine in args.engines:
            temporary, out = scratch / "temporary", scratch / "events.parquet"
            temporary.mkdir()
            job = Job(raw=raw, out=out, temporary=temporary, memory_bytes=args.memory)
            runs[engine].append(measure(engine, job))
            print(
                f"run {repeat + 1}, {engine}: {runs[engine][-1].seconds:.1f} s", file=sys.stderr, flush=True
            )
            if repeat == 0:
                words = [sys.executable, "-m", "benchmarks.prepare_engines", "--checksum", str(out)]
                sums[engine] = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            shutil.rmtree(temporary)
            out.unlink()
        if len(set(sums.values())) > 1:
            raise RuntimeError(f"the engines wrote different events: {sums}")
    print(_report(raw, args, runs))


def _report(raw: Path, args: argparse.Namespace, runs: dict[str, list[Measured]]) -> str:
    def median(engine: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[engine])

    fastest = min(median(engine, "seconds") for engine in runs)
    versions = " ".join(f"{name} {version(name)}" for name in ("polars", "duckdb", "pyarrow", "numpy"))
    lines = [
        f"{raw.stat().st_size:,} bytes of text, memory bound {args.memory >> 20} MiB, {NUM_THREADS} threads, "
        f"medians of {args.repeats} alternating runs; all engines wrote the same events",
        f"{_cpu_model()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB; "
        f"Python {platform.python_version()}, {versions}",
        "",
        "| engine | s | all runs, s | relative | CPU s | RSS, MiB | without files, MiB | disk, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for engine in runs:
        seconds, cpu = median(engine, "seconds"), median(engine, "cpu_seconds")
        every = " ".join(f"{run.seconds:.1f}" for run in runs[engine])
        sizes = " | ".join(
            f"{median(engine, field) / (1 << 20):,.0f}"
            for field in ("peak_bytes", "peak_own_bytes", "peak_disk_bytes")
        )
        lines.append(
            f"| {engine} | {seconds:.1f} | {every} | {seconds / fastest:.2f} | {cpu:.1f} | {sizes} |"
        )
    return "\n".join(lines)


def _generate(events: str, folder: Path) -> Path:
    """Generate raw text of about `events` rows with `longplay synth`."""
    words = [sys.executable, "-m", "longplay.launch.synth", "lfm1b", "--events", events, "--out", str(folder)]
    subprocess.run(words, check=True, stdout=sys.stderr)
    (path,) = (path for path in folder.rglob("*") if path.is_file() and path.name.startswith("LFM-1b_LEs"))
    return path


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def main() -> None:
    """Measure; or, in a child process, run one engine or compute one checksum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--events", default="10M", metavar="N", help="rows to generate (default: %(default)s)"
    )
    parser.add_argument("--raw", type=Path, metavar="FILE", help="use this file instead of generating one")
    parser.add_argument(
        "--memory", type=parse_bytes, default="1GiB", metavar="N", help="(default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--engines", nargs="+", choices=[*ENGINES], default=[*ENGINES])
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="scratch folder (default: a temporary folder)"
    )
    for internal in ("--one", "--out", "--checksum"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.checksum:
        print(checksum(Path(args.checksum)))
    elif args.one:
        job = Job(raw=args.raw, out=Path(args.out), temporary=args.scratch, memory_bytes=args.memory)
        ENGINES[args.one](job)
        # getrusage would include the parent's peak before exec.
        print(json.dumps({"peak_bytes": _status_bytes("self", "VmHWM")}))
    else:
        with tempfile.TemporaryDirectory(dir=args.scratch, prefix="prepare-engines-") as scratch:
            compare(args, Path(scratch))


if __name__ == "__main__":
    main()
