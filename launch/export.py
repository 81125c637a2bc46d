"""`longplay export RUN --out DIR`: a run's model as plain files, which `longplay.load` opens."""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from longplay.common.atomic import atomic_file, replace_folder, temporary_name, write_json
from longplay.common.checksums import sha256_of
from longplay.common.sizes import gib, mib
from longplay.common.tensor_file import TensorBlocks, TensorFile, WrittenFile, read_tensors, write_tensors
from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.checkpoints.checkpoint import Checkpoint
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.table.row_order import RowOrder
from longplay.launch.evaluation.evaluate_run import find_checkpoint, open_dataset
from longplay.launch.run_folders.metrics_file import read_scalars
from longplay.launch.settings.data_arguments import data_location
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import add_import_argument
from longplay.launch.settings.saved import read_config
from longplay.serving.export_format import (
    CONFIG_NAME,
    ENCODER_NAME,
    FORMAT,
    ITEMS_NAME,
    TABLE_NAME,
    TABLE_TENSOR,
    ExportConfig,
)

_BLOCK_BYTES = 1 << 30  # of the table in memory at once; a larger table is read once per block
_READ_ROWS = 1 << 17


def register(subparsers: Any) -> None:
    """Add `export` to the `longplay` command."""
    parser = subparsers.add_parser("export", help="a run's model as plain files", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `longplay train --run`")
    add_import_argument(parser)
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
    table_bytes = 4 * (dataset.num_items + 1) * config.encoder.d_model
    print(
        f"model    {config.encoder.model} of {args.run}, {checkpoint.path.name}; item table "
        f"{dataset.num_items:,} x {config.encoder.d_model}, {gib(table_bytes)}",
        flush=True,
    )
    partial = temporary_name(args.out)
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
        write_json(partial / CONFIG_NAME, described.to_json())
        replace_folder(partial, args.out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    size = sum(int(recorded["bytes"]) for recorded in files.values())
    print(f"exported {args.out} ({mib(size)}); in Python: longplay.load({str(args.out)!r})")
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
    """Write the encoder, the item table and the items; return each file's size and sha256 by name."""
    saved = read_tensors(checkpoint.path / "encoder.safetensors")
    weights = {
        name.removeprefix("weight/"): value.float()
        for name, value in saved.items()
        if name.startswith("weight/")
    }
    items = pl.DataFrame(
        {
            "item_id": pl.arange(1, dataset.num_items + 1, dtype=pl.Int64, eager=True),
            "original_id": dataset.items.original_ids,
            "count": dataset.items.counts,
        }
    )
    with atomic_file(folder / ITEMS_NAME) as file:
        items.write_parquet(file)
    num_bytes = (folder / ITEMS_NAME).stat().st_size
    written = [
        write_tensors(folder / ENCODER_NAME, weights),
        write_table(folder / TABLE_NAME, checkpoint),
        WrittenFile(name=ITEMS_NAME, num_bytes=num_bytes, sha256=sha256_of(folder / ITEMS_NAME)),
    ]
    return {
        file.name: {"bytes": file.num_bytes, "sha256": file.sha256}
        for file in sorted(written, key=lambda file: file.name)
    }


def write_table(file: Path, checkpoint: Checkpoint, block_bytes: int = _BLOCK_BYTES) -> WrittenFile:
    """Write the item table in item-id order behind a row of zeros.

    The checkpoint holds rows by row position, where neighbours in item order lie far apart. One sequential
    pass over the checkpoint gathers a block of items in memory, so memory is bounded and nothing is read or
    written at random.

    Args:
        block_bytes: bytes of the table in memory at a time.
    Raises:
        CheckpointError: the checkpoint lacks rows.
    """
    num_items, width = int(checkpoint.state["num_items"]), int(checkpoint.state["width"])
    rows_per_block = max(1, block_bytes // (4 * width))

    def blocks() -> Iterator[Tensor]:
        yield torch.zeros(1, width)
        for first in range(1, num_items + 1, rows_per_block):
            yield gather_items(checkpoint, first, min(first + rows_per_block, num_items + 1))

    table = TensorBlocks((num_items + 1, width), torch.float32, blocks())
    return write_tensors(file, {TABLE_TENSOR: table})


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
    """Yield the table's weights as (first row position, rows (n, D) fp32) in order, n bounded."""
    width = int(checkpoint.state["width"])
    for file in sorted(checkpoint.path.glob("table-*.safetensors")):
        start, stop = (int(part) for part in file.stem.split("-")[1:])
        with TensorFile(file) as tensors:
            for at in range(start, stop, _READ_ROWS):
                rows = torch.empty(min(_READ_ROWS, stop - at), width)
                tensors.read_rows("weight", at - start, rows)
                yield at, rows


def validation_metrics(run: Path, step: int) -> dict[str, float]:
    """The validation at `step` in the run's log, as {"full/ndcg@10": ...}; empty if there was none."""
    return {
        tag.removeprefix("eval_"): series[step]
        for tag, series in read_scalars(run).items()
        if tag.startswith("eval_") and step in series
    }


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["export", *sys.argv[1:]]))
