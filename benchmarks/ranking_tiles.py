"""Time the kernel that counts scores, by its tile, on one block of rows.

    python -m benchmarks.ranking_tiles                            one minute on a GPU
    TRITON_INTERPRET=1 python -m benchmarks.ranking_tiles --small    the same code on a CPU

TFLOP/s are those of one product of queries and rows. The kernel computes three in fp16, so it reaches at most
a third of the card's rate in fp16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.measure import machine, median, seconds
from longplay.distributed.table import score_kernel
from longplay.distributed.table.score_kernel import Tile
from longplay.models.scores import exact_dot
from longplay.native.triton_runtime import can_run_triton

_TILES = (
    Tile(128, 64, num_warps=8),
    Tile(128, 64, num_warps=8, num_stages=2),
    Tile(128, 64),
    Tile(128, 128, num_warps=8),
    Tile(128, 128, num_warps=8, num_stages=2),
    Tile(128, 128, num_warps=8, num_stages=2, maxnreg=128),
    Tile(256, 64, num_warps=8),
    Tile(256, 64, num_warps=8, num_stages=2, maxnreg=128),
    Tile(256, 128, num_warps=8, num_stages=2),
    Tile(64, 64),
    Tile(64, 128),
    Tile(64, 64, num_stages=2),
)


def main() -> None:
    """Print one line per product and tile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="use sizes that fit any machine")
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=1 << 22)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.small:
        args.queries, args.rows = 130, 500
    print(machine())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for width in args.widths:
        generator = torch.Generator(device).manual_seed(0)
        queries, rows = (
            torch.randn(n, width, device=device, generator=generator) for n in (args.queries, args.rows)
        )
        _products(queries, rows, args.repeats)
        if can_run_triton(device.type):
            _tiles(queries, rows, args.repeats)
        else:
            print("the kernel needs a GPU, or TRITON_INTERPRET=1")


def _products(queries: Tensor, rows: Tensor, repeats: int) -> None:
    """Time PyTorch's products, which store the scores, on the rows that leave 2^29 scores in memory."""
    rows = rows[: (1 << 29) // queries.shape[0]]
    for name in ("float16", "bfloat16", "float32"):
        q, r = (each.to(getattr(torch, name)) for each in (queries, rows))
        took = _time(lambda q=q, r=r: q @ r.T, repeats)
        _line(f"PyTorch's {name} product", took, q, r)


def _tiles(queries: Tensor, rows: Tensor, repeats: int) -> None:
    """Time the kernel for targets that rank high, as in a trained model, then for targets of any rank."""
    own = torch.arange(queries.shape[0], device=queries.device) % rows.shape[0]
    high = queries + rows[own]
    score = exact_dot(high, rows[own])
    took = _time(lambda: score_kernel.split_rows(rows, 64), repeats)
    print(f"width {rows.shape[1]}: {1e3 * took:.2f} ms to split the rows, which is part of the times below")
    for tile in _TILES:
        try:
            took = _time(lambda tile=tile: score_kernel.count_above(high, rows, score, tile), repeats)
        except Exception as error:  # the tile may need more shared memory than the GPU has
            print(f"{tile}: {str(error).splitlines()[0]}")
            continue
        _line(str(tile), took, queries, rows)
    for name, q in (("high", high), ("any", queries)):
        score = exact_dot(q, rows[own])
        counted = score_kernel.count_above(q, rows, score)
        pairs = "too many" if counted is None else f"{counted[1].shape[0]:,}"
        took = _time(lambda q=q, score=score: score_kernel.count_above(q, rows, score), repeats)
        _line(f"targets of {name} rank, {pairs} undecided pairs", took, q, rows)


def _time(work: Callable[[], object], repeats: int) -> float:
    """Return the median seconds of `work`, after one warm-up call."""

    def timed() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    timed()
    return median([seconds(timed) for _ in range(repeats)])


def _line(name: str, took: float, queries: Tensor, rows: Tensor) -> None:
    rate = 2 * queries.numel() * rows.shape[0] / took / 1e12
    print(f"width {rows.shape[1]}: {name:<75}{1e3 * took:9.2f} ms {rate:8.1f} TFLOP/s", flush=True)


if __name__ == "__main__":
    main()
