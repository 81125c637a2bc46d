"""Measure training, the row update, ranking and memory on a GPU, and the limits of the card.

    python -m benchmarks.gpu                       everything, ten minutes on one 80 GB card
    python -m benchmarks.gpu update rank trace     some parts
    python -m benchmarks.gpu --small               the same code at sizes that any machine can run

The script first measures two limits of the card: the bandwidth of a copy in its memory and the rate of a bf16
matrix product. It prints each rate with the fraction of the limit that it reaches.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.baselines import PlainLoop, plain_models
from benchmarks.gpu.timer import Timer
from benchmarks.gpu.trace import print_trace
from benchmarks.longplay_loop import LongplayLoop
from benchmarks.measure import interleaved, machine, median, seconds
from benchmarks.stream import lfm_lengths, write_dataset
from benchmarks.table import with_rows
from longplay.distributed.runtime.world import World, init_world
from longplay.distributed.table.row_optimizers import LazyAdam, RowOptimizerConfig
from longplay.distributed.table.score_counts import count_beating_rows
from longplay.models.scores import exact_dot

WIDTH = 64
# Lower bound on the bytes of device memory traffic per trained event, for one bf16 block of MambaRec:
# 250 M events/s at 4.3 TB/s.
_TRAFFIC_PER_EVENT = 17_200
_TRACED_STEPS = 3
_STUDY_EVENTS_PER_S, _STUDY_BYTES = 0.375e6, 24e9  # published for MambaRec at L = 5000, batch 64


@dataclass(frozen=True)
class Sizes:
    """The sizes to measure."""

    num_rows: int
    touched: int
    users: int
    queries_at_once: int
    events: int
    batch: int
    lengths: tuple[int, ...]
    limit_elements: int


PARTS = ("update", "rank", "train", "models", "baselines", "variants", "trace")
_FULL = Sizes(31_634_450, 160_000, 120_000, 8192, 50_000_000, 64, (250, 500, 1000, 2000, 5000), 1 << 28)
_SMALL = Sizes(5_000, 500, 60, 32, 20_000, 8, (16, 32), 1 << 14)


def main() -> None:
    """Print one line per measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all of them")
    parser.add_argument("--small", action="store_true", help="use sizes that fit any machine")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the trace of `trace`")
    args = parser.parse_args()
    if not (args.small or torch.cuda.is_available()):
        parser.error("PyTorch finds no GPU; use --small to run the same code on a CPU")
    sizes = _SMALL if args.small else _FULL
    world = init_world(device="auto")
    timer = Timer(world.device, args.repeats)
    print(machine())
    copy_rate, product_rate = _limits(sizes, timer)
    parts = args.parts or PARTS
    if "update" in parts:
        _update(sizes, timer, copy_rate)
    if "rank" in parts:
        _rank(sizes, timer, product_rate)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        if {"train", "models", "baselines", "variants", "trace"} & set(parts):
            write_dataset(data, lfm_lengths(sizes.events))
        if "train" in parts:
            _train(sizes, data, world, timer, copy_rate)
        if "models" in parts:
            _models(sizes, data, world, timer)
        if "baselines" in parts:
            _baselines(sizes, data, world, timer)
        if "variants" in parts:
            _variants(sizes, data, world, timer)
        if "trace" in parts:
            _trace(sizes, data, world, args.out)


def _limits(sizes: Sizes, timer: Timer) -> tuple[float, float]:
    """Return the bytes/s of a copy (read plus write) and the FLOP/s of a bf16 matrix product."""
    source = torch.ones(sizes.limit_elements, device=timer.device)
    target = torch.empty_like(source)
    copy_rate = 8 * source.numel() / timer(lambda: target.copy_(source))
    side = int(sizes.limit_elements**0.5)
    factor = torch.ones(side, side, device=timer.device, dtype=torch.bfloat16)
    product_rate = 2 * side**3 / timer(lambda: factor @ factor)
    print(f"limits: copies {copy_rate / 1e12:.2f} TB/s, bf16 products {product_rate / 1e12:.0f} TFLOP/s")
    return copy_rate, product_rate


def _update(sizes: Sizes, timer: Timer, copy_rate: float) -> None:
    """Time lazy Adam on the touched rows of a large table."""
    weight = torch.zeros(sizes.num_rows, WIDTH, device=timer.device)
    optimizer = LazyAdam(RowOptimizerConfig(), weight)
    rows = torch.randperm(sizes.num_rows, device=timer.device)[: sizes.touched].sort().values
    grads = torch.randn(sizes.touched, WIDTH, device=timer.device)
    took = timer(lambda: optimizer.step(weight, rows, grads, lr=1e-3, step=9))
    limit = 7 * grads.numel() * 4 / copy_rate
    print(
        f"update of {sizes.touched:,} rows of {sizes.num_rows:,} x {WIDTH}: {1e3 * took:.3f} ms, "
        f"{limit / took:.0%} of the limit"
    )


def _rank(sizes: Sizes, timer: Timer, product_rate: float) -> None:
    """Time the exact ranking of each user's target among all rows."""
    generator = torch.Generator(timer.device).manual_seed(0)
    rows = torch.randn(sizes.num_rows, WIDTH, device=timer.device, generator=generator)
    hidden = torch.randn(sizes.users, WIDTH, device=timer.device, generator=generator)
    own = torch.randint(sizes.num_rows, (sizes.users,), device=timer.device, generator=generator)
    # Add the target's row to the query, so that targets rank high, as in a trained model.
    hidden += rows[own]
    score = exact_dot(hidden, rows[own])
    timer.reset_peak()
    before = timer.peak_bytes()

    def rank() -> None:
        parts = (each.split(sizes.queries_at_once) for each in (hidden, score, own))
        for some, scores, owns in zip(*parts, strict=True):
            count_beating_rows(some, rows, scores, owns)

    took = timer(rank)
    limit = 2 * sizes.users * sizes.num_rows * WIDTH / product_rate
    extra = (timer.peak_bytes() - before) / 2**30
    print(
        f"exact positions of {sizes.users:,} users among {sizes.num_rows:,} items: {took:.2f} s, "
        f"{limit / took:.0%} of the limit, {extra:.2f} GiB beyond the table"
    )


def _train(sizes: Sizes, data: Path, world: World, timer: Timer, copy_rate: float) -> None:
    """Print events/s of training from tar shards with a full-size table, and the memory beyond the table."""
    slots = sizes.batch * max(sizes.lengths)
    for length in sizes.lengths:
        for recipe in ("mambarec", "sasrec"):
            timer.reset_peak()
            own = with_rows(LongplayLoop(data, recipe, _words(sizes, length), world), sizes.num_rows)
            table = sum(own.model.table.bytes_per_rank().values())
            took = timer(lambda own=own: own.steps(4))
            rate = 4 * slots / took
            line = f"{recipe:<9} L={length:<6,}{rate / 1e6:9.2f} M slots/s"
            if recipe == "mambarec":
                line += f", {rate * _TRAFFIC_PER_EVENT / copy_rate:.0%} of the limit"
                if length == max(sizes.lengths):
                    memory = timer.peak_bytes() - table
                    line += f", {rate / _STUDY_EVENTS_PER_S:.0f} x the study's rate"
                    line += f"; {memory / 1e9:.2f} GB beyond the table"
                    line += f", {memory / _STUDY_BYTES:.2f} of the study's memory"
            print(line, flush=True)
            own.close()


def _words(sizes: Sizes, length: int) -> list[str]:
    rows = sizes.batch * max(sizes.lengths) // length
    words = ["--context_length", str(length), "--data.rows_per_step", str(rows), "--data.num_lanes", "8"]
    return [*words, "--loss.name", "bce", "--engine.precision", "bf16"]


def _models(sizes: Sizes, data: Path, world: World, timer: Timer) -> None:
    """Compare blocks of MambaRec at the largest context length, over a smaller table."""
    length = max(sizes.lengths)
    for words in (
        [],
        ["--encoder.num_blocks", "2"],
        ["--encoder.scan_backend", "kernel"],
        ["--encoder.mixer", "mamba2"],
        ["--encoder.mixer", "mamba2", "--encoder.num_blocks", "2"],
    ):
        if "kernel" in words and world.device.type == "cpu":
            continue
        loop = LongplayLoop(data, "mambarec", [*_words(sizes, length), *words], world)
        own = with_rows(loop, sizes.num_rows // 4)
        own.steps(2)
        took = timer(lambda own=own: own.steps(8)) / 8
        rate = sizes.batch * length / took
        figures = f"{1e3 * took:9.2f} ms/step {rate / 1e6:8.2f} M slots/s"
        print(f"mambarec L={length:<6,}{' '.join(words):<48}{figures}")
        own.close()


def _baselines(sizes: Sizes, data: Path, world: World, timer: Timer) -> None:
    """Compare Longplay's step with plain PyTorch at the largest context length and table."""
    length = max(sizes.lengths)

    def report(name: str, step: Callable[[], object], steps: int) -> None:
        timer.reset_peak()
        took = timer(step) / steps
        rate, peak = sizes.batch * length / took, timer.peak_bytes()
        print(f"{name:<56}{1e3 * took:9.2f} ms/step {rate / 1e6:8.3f} M slots/s, peak {peak / 1e9:.1f} GB")

    for name, build in plain_models(sizes.num_rows, WIDTH, length, world.device).items():
        plain = PlainLoop(build(), sizes.num_rows, (sizes.batch, length), world.device)
        report(f"nn.Embedding and Adam: {name}", plain.step, 1)
        del plain
        gc.collect()
    for recipe, blocks in (("sasrec", "2"), ("mambarec", "1")):
        words = [*_words(sizes, length), "--encoder.num_blocks", blocks]
        own = with_rows(LongplayLoop(data, recipe, words, world), sizes.num_rows)
        report(f"Longplay: {recipe}, num_blocks {blocks}", lambda own=own: own.steps(4), 4)
        own.close()


def _trace(sizes: Sizes, data: Path, world: World, out: Path | None) -> None:
    """Print where the time of MambaRec's step goes at the largest context length."""
    own = with_rows(
        LongplayLoop(data, "mambarec", _words(sizes, max(sizes.lengths)), world), sizes.num_rows // 8
    )
    own.steps(6)
    print_trace(lambda: own.steps(_TRACED_STEPS), _TRACED_STEPS, out)
    own.close()


def _variants(sizes: Sizes, data: Path, world: World, timer: Timer) -> None:
    """Compare variants of MambaRec's step at one context length, over a smaller table."""
    length, rows = sizes.lengths[len(sizes.lengths) // 2], sizes.num_rows // 8
    words = {
        "default": [],
        "no pipelining of the next step": [],
        "encoder through torch.compile": [],
        "table in host memory": ["--table.placement", "host"],
        "and 30,000 rows on the device": ["--table.placement", "host", "--table.cached_rows", "30000"],
    }
    if timer.device.type == "cuda":
        words["encoder as CUDA graphs"] = ["--engine.cuda_graph", "true"]
    loops: list[LongplayLoop] = []
    pieces: dict[str, Callable[[], float]] = {}
    for name, more in words.items():
        pipelined = name != "no pipelining of the next step"
        loop = LongplayLoop(data, "mambarec", [*_words(sizes, length), *more], world, plan_ahead=pipelined)
        own = with_rows(loop, rows)
        loops.append(own)
        if name == "encoder through torch.compile":
            # On a CPU, inductor would spend a minute in the C++ compiler.
            own.model.encoder.compile(backend="inductor" if timer.device.type == "cuda" else "aot_eager")

        def step(own: LongplayLoop = own) -> float:
            timer.wait()
            return 1e3 * seconds(lambda: (own.steps(4), timer.wait())) / 4

        pieces[name] = step
    times = interleaved(pieces, repeats=timer.repeats)
    base = median(times["default"])
    for name, values in times.items():
        middle = median(values)
        print(f"mambarec L={length:<6,}{name:<32}{middle:9.2f} ms/step {middle / base:6.2f}")
    for own in loops:
        own.close()


if __name__ == "__main__":
    main()
