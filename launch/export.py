"""`longplay export RUN --out DIR`: a run's model as plain files, which `longplay.load` opens."""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.checkpoints.checkpoint import Checkpoint
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.table.row_order import RowOrder
from longplay.launch.evaluation.evaluate_run import find_checkpoint, open_dataset
from longplay.launch.run_folders.metrics_file import read_scalars
from longplay.launch.settings.data_arguments import data_location
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.saved import read_config
from longplay.serving.export_format import (
    CONFIG_NAME,
    ENCODER_NAME,
    FORMAT,
    ITEMS_NAME,
    TABLE_NAME,
    ExportConfig,
    sha256_of,
    table_header,
)

_BLOCK_BYTES = 1 << 30  # of the table in memory at once; a larger table is read once per block
_READ_ROWS = 1 << 17


def register(subparsers: Any) -> None:
    """Add `export` to the `longplay` command."""
    parser = subparsers.add_parser("export", help="a run's model as plain files", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `longplay train --run`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to be made")
    parser.add_argument("--overwrite", action="store_true", help="replace the export at --out")
    parser.add_argument(
        "--data", type=data_location, help="prepared dataset, where it has moved since training"
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, or a name such as step-000000120"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    check_output(args.out, args.overwrite)
    config = read_config(args.run)
    dataset = open_dataset(args.run, args.data)
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    for field, value in (("num_items", dataset.num_items), ("width", config.encoder.d_model)):
        if checkpoint.state[field] != value:
            raise CheckpointError(f"{checkpoint.path}: its {field} is {checkpoint.state[field]}, not {value}")
    gib = 4 * (dataset.num_items + 1) * config.encoder.d_model / 2**30
    print(
        f"model    {config.encoder.model} of {args.run}, {checkpoint.path.name}; item table "
        f"{dataset.num_items:,} x {config.encoder.d_model}, {gib:.2f} GiB",
        flush=True,
    )
    partial = args.out.with_name(f".{args.out.name}.writing")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = write_files(partial, checkpoint, dataset)
        described = ExportConfig(
            encoder=config.encoder,
            num_items=dataset.num_items,
            dataset_id=dataset.dataset_id,
            recipe=config.recipe,
            checkpoint={
                "name": checkpoint.path.name,
                "step": checkpoint.step,
                "metrics": validation_metrics(args.run, checkpoint.step),
            },
            longplay_version=metadata.version("longplay"),
            files=files,
        )
        with open(partial / CONFIG_NAME, "w") as file:
            json.dump(described.to_json(), file, indent=2)
            file.write("\n")
            os.fsync(file.fileno())
        put_in_place(partial, args.out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    size = sum(int(recorded["bytes"]) for recorded in files.values())
    print(f"exported {args.out} ({size / 2**20:,.1f} MiB); in Python: longplay.load({str(args.out)!r})")
    return 0


def check_output(out: Path, overwrite: bool) -> None:
    """See that `out` may be written.

    Raises:
        ConfigError: something is there that is not an export, or an export without `overwrite`.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        is_export = json.loads((out / CONFIG_NAME).read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_export = False
    if not is_export:
        raise ConfigError(f"--out {out}: is there and no export; give another folder")
    if not overwrite:
        raise ConfigError(f"--out {out}: holds an export; add --overwrite, or give another folder")


def write_files(folder: Path, checkpoint: Checkpoint, dataset: Dataset) -> dict[str, Mapping[str, Any]]:
    """Write the encoder, the item table and the items; each file's size and sha256 by name."""
    saved = load_file(checkpoint.path / "encoder.safetensors")
    weights = {
        name.removeprefix("weight/"): value.float().contiguous()
        for name, value in saved.items()
        if name.startswith("weight/")
    }
    save_file(weights, folder / ENCODER_NAME, metadata={"format": "pt"})
    items = pl.DataFrame(
        {
            "item_id": pl.arange(1, dataset.num_items + 1, dtype=pl.Int64, eager=True),
            "original_id": dataset.items.original_ids,
            "count": dataset.items.counts,
        }
    )
    items.write_parquet(folder / ITEMS_NAME)
    sums = {name: sha256_of(folder / name) for name in (ENCODER_NAME, ITEMS_NAME)}
    sums[TABLE_NAME] = write_table(folder / TABLE_NAME, checkpoint)
    for name in sums:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": sums[name]} for name in sorted(sums)}


def write_table(file: Path, checkpoint: Checkpoint, block_bytes: int = _BLOCK_BYTES) -> str:
    """Write the item table in item-id order behind a row of zeros; the file's sha256.

    The checkpoint holds rows by position, where neighbours in item order lie far apart. A block of items is
    gathered in memory by one sequential pass over the checkpoint, so that memory is bounded and neither side
    is read or written at random.

    Args:
        block_bytes: of the table in memory at once.
    Raises:
        CheckpointError: the checkpoint lacks rows.
    """
    num_items, width = int(checkpoint.state["num_items"]), int(checkpoint.state["width"])
    rows_per_block = max(1, block_bytes // (4 * width))
    digest = hashlib.sha256()
    with open(file, "wb") as out:

        def write(data: bytes | memoryview) -> None:
            digest.update(data)
            out.write(data)

        write(table_header(num_items + 1, width))
        write(bytes(4 * width))
        for first in range(1, num_items + 1, rows_per_block):
            block = gather_items(checkpoint, first, min(first + rows_per_block, num_items + 1))
            write(block.numpy().data)
    return digest.hexdigest()


def gather_items(checkpoint: Checkpoint, first: int, last: int) -> Tensor:
    """Rows (last - first, D) fp32 of the items first..last - 1."""
    order = RowOrder(int(checkpoint.state["num_items"]))
    block = torch.empty(last - first, int(checkpoint.state["width"]))
    filled = 0
    for start, rows in rows_by_position(checkpoint):
        items = order.items(torch.arange(start, start + rows.shape[0]))
        here = ((items >= first) & (items < last)).nonzero().squeeze(1)
        block[items[here] - first] = rows[here]
        filled += len(here)
    if filled != last - first:
        raise CheckpointError(f"{checkpoint.path}: lacks {last - first - filled} rows of the item table")
    return block


def rows_by_position(checkpoint: Checkpoint) -> Iterator[tuple[int, Tensor]]:
    """The table's weights as (first row position, rows (n, D) fp32), a limited number at a time, in order."""
    for file in sorted(checkpoint.path.glob("table-*.safetensors")):
        start, stop = (int(part) for part in file.stem.split("-")[1:])
        with safe_open(file, framework="pt") as tensors:
            weight = tensors.get_slice("weight")
            for at in range(start, stop, _READ_ROWS):
                yield at, weight[at - start : min(at + _READ_ROWS, stop) - start].float()


def validation_metrics(run: Path, step: int) -> dict[str, float]:
    """The validation at `step` in the run's log, as {"full/ndcg@10": ...}; empty if there was none."""
    return {
        tag.removeprefix("eval_"): series[step]
        for tag, series in read_scalars(run).items()
        if tag.startswith("eval_") and step in series
    }


def put_in_place(partial: Path, out: Path) -> None:
    """Give a whole folder its final name; what was there before goes only then."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
