"""Measure what the item table costs per step, by its size, its exchange and its optimizer.

python -m benchmarks.table size --data data/ml1m       one rank, tables of 0.1 to 30 million rows (12 GB)
python -m benchmarks.table exchange --data data/ml1m   2 ranks: row_sparse, zero_dense, a gathered table
python -m benchmarks.table optimizers                  update of touched rows against torch's optimizers
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.longplay_loop import LongplayLoop
from benchmarks.measure import interleaved, machine, median, seconds, spread
from benchmarks.turns import take_turns, workers
from longplay.data_shards.stream.train_stream import Batch
from longplay.distributed.engine import EncoderEngine
from longplay.distributed.runtime.world import World, init_world
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.row_optimizers import LazyAdam, RowAdagrad, RowOptimizerConfig
from longplay.distributed.zero.deepspeed_env import deepspeed
from longplay.distributed.zero.zero_engine import deepspeed_config
from longplay.launch.training.step_pipeline import keys_of_rows
from longplay.models.encoder import build_encoder
from longplay.models.losses.base import LOSSES

_LOSS = ["--loss.name", "bce"]
_ADAGRAD = ["--table.optimizer.name", "adagrad"]


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["size", "exchange", "optimizers"])
    parser.add_argument("--data", type=Path, help="a prepared dataset, for `size` and `exchange`")
    parser.add_argument("--rows", type=int, nargs="+", help="rows of the table")
    parser.add_argument("--touched", type=int, default=20_000, help="touched rows per step, for `optimizers`")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--first-core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--turns", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turns:
        take_turns(args.turns, args.first_core, lambda world: _prepare(args, world))
        return
    if args.part != "optimizers" and args.data is None:
        parser.error(f"{args.part} needs --data, for example data/ml1m")
    print(machine())
    {"size": _size, "exchange": _exchange, "optimizers": _optimizers}[args.part](args)


def with_rows(own: LongplayLoop, num_rows: int) -> LongplayLoop:
    """Replace the loop's table by one of `num_rows` rows and return the loop.

    Only the dataset's own items occur as inputs and targets.
    """
    config, world = own.config, own.world
    encoder = build_encoder(config.encoder, torch.Generator().manual_seed(config.seed))
    table = ItemTable(config.table, num_items=num_rows, width=config.encoder.d_model, world=world)
    engine = EncoderEngine(encoder, table, config.engine, world)
    loss = LOSSES[config.loss.name](config.loss, num_items=num_rows)
    own.model.engine.close()
    own.model = dataclasses.replace(own.model, encoder=encoder, table=table, engine=engine, loss=loss)
    return own


def _size(args: argparse.Namespace) -> None:
    """Print milliseconds per step, with negatives drawn from the whole table."""
    world = init_world(device="auto")
    sizes = args.rows or [100_000, 1_000_000, 10_000_000, 30_000_000]
    pieces = {}
    for num_rows in sizes:
        own = with_rows(LongplayLoop(args.data, "mambarec", [*_LOSS, *_ADAGRAD], world), num_rows)
        pieces[f"{num_rows:,}"] = lambda own=own: 1e3 * seconds(lambda: own.steps(4)) / 4
    times = interleaved(pieces, repeats=args.repeats)
    base = median(next(iter(times.values())))
    for name, values in times.items():
        middle = median(values)
        print(f"{name:>12} rows {middle:8.1f} ms/step {middle / base:6.3f}  ({spread(values)})")


def _exchange(args: argparse.Namespace) -> None:
    """Print milliseconds per step on 2 ranks, by how the table's rows reach them."""
    for num_rows in args.rows or [200_000, 1_000_000]:
        with workers() as start:
            pieces = {}
            for mode in ("row_sparse", "zero_dense", "gathered"):
                words = ["exchange", "--mode", mode, "--data", str(args.data), "--rows", str(num_rows)]
                pieces[mode] = start("benchmarks.table", words, world_size=2).turn
            times = interleaved(pieces, repeats=args.repeats)
        base = median(times["row_sparse"])
        for mode, values in times.items():
            middle = median(values)
            line = f"{num_rows:>10,} rows {mode:<12}{middle:9.1f} ms/step {middle / base:7.2f}"
            print(f"{line}  ({spread(values)})", flush=True)


def _prepare(args: argparse.Namespace, world: World) -> Callable[[], float]:
    """Return a function that trains for one turn of `exchange` and returns milliseconds per step."""
    (num_rows,) = args.rows
    if args.mode == "gathered":
        steps = _gathered(num_rows, args.data, world)
    else:
        words = [*_LOSS, "--table.update", args.mode, "--engine.zero_stage", "3"]
        steps = with_rows(LongplayLoop(args.data, "mambarec", words, world), num_rows).steps
    return lambda: 1e3 * seconds(lambda: steps(3)) / 3


class _Gathered(nn.Module):
    """The table as an ordinary embedding that ZeRO-3 shards and gathers whole at each use."""

    def __init__(self, encoder: nn.Module, num_rows: int, width: int) -> None:
        super().__init__()
        self.encoder, self.table = encoder, nn.Embedding(num_rows + 1, width)

    def forward(self, batch: Batch, keys: Tensor, negatives: Tensor) -> Tensor:
        valid = batch.targets > 0
        items = [batch.item_ids, batch.targets, negatives]
        inputs, positive, negative = self.table(torch.stack(items)).unbind()
        hidden = self.encoder(inputs, batch.seq_idx, keys)
        for_one, for_other = ((hidden * rows).sum(-1)[valid] for rows in (positive, negative))
        return F.softplus(-for_one).sum() + F.softplus(for_other).sum()


def _gathered(num_rows: int, data: Path, world: World) -> Callable[[int], None]:
    """Return a function that runs steps in which DeepSpeed treats the table as any other weight."""
    own = LongplayLoop(data, "mambarec", [*_LOSS, "--engine.zero_stage", "3"], world)
    config = own.config
    model = _Gathered(own.model.encoder, num_rows, config.encoder.d_model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        config=deepspeed_config(
            zero_stage=config.engine.zero_stage,
            gradient_accumulation_steps=config.engine.gradient_accumulation_steps,
            max_grad_norm=config.engine.max_grad_norm,
            reduce_bucket_elements=1 << 30,  # DeepSpeed cannot prefetch a parameter larger than the bucket
            overlap_comm=False,
        ),
    )
    batches = iter(own.stream)

    def steps(number: int) -> None:
        for _ in range(number):
            batch = next(batches)
            negatives = torch.randint(1, num_rows + 1, batch.targets.shape)
            engine.backward(
                engine(batch, keys_of_rows(own.model, batch, 1), negatives) / batch.targets.numel()
            )
            engine.step()

    return steps


def _optimizers(args: argparse.Namespace) -> None:
    """Print milliseconds per update of `touched` rows."""
    (num_rows,) = args.rows or [1_000_000]
    width = 64
    config = RowOptimizerConfig()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(num_rows, generator=generator)[: args.touched].sort().values
    grads = torch.randn(args.touched, width, generator=generator)
    pieces: dict[str, Callable[[], float]] = {}
    for name, kind in (("lazy Adam", LazyAdam), ("row Adagrad", RowAdagrad)):
        weight = torch.zeros(num_rows, width)
        optimizer = kind(config, weight)
        pieces[name] = lambda o=optimizer, w=weight: seconds(lambda: o.step(w, rows, grads, lr=1e-3, step=9))
    sparse, dense = (nn.Parameter(torch.zeros(num_rows, width)) for _ in range(2))
    sparse.grad = torch.sparse_coo_tensor(rows.unsqueeze(0), grads, (num_rows, width), is_coalesced=True)
    dense.grad = torch.zeros(num_rows, width).index_copy_(0, rows, grads)
    pieces["torch's SparseAdam"] = _timed(torch.optim.SparseAdam([sparse], lr=1e-3))
    pieces["torch's Adam, whole table"] = _timed(torch.optim.Adam([dense], lr=1e-3))
    times = interleaved(pieces, repeats=args.repeats)
    base = median(times["lazy Adam"])
    print(f"{args.touched:,} touched rows of {num_rows:,} x {width}")
    for name, values in times.items():
        print(f"{name:<28}{1e3 * median(values):9.2f} ms {median(values) / base:8.2f}")


def _timed(optimizer: torch.optim.Optimizer) -> Callable[[], float]:
    return lambda: seconds(optimizer.step)


if __name__ == "__main__":
    main()
