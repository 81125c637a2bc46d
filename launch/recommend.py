"""`longplay recommend RUN --history ids.txt`: print the best next items for a history."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.text import Text
from torch import Tensor

from longplay.common.printable import printable
from longplay.distributed.runtime.world import close_world, init_world
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.ranking import top_items
from longplay.launch.console.tables import new_table, print_table
from longplay.launch.evaluation.histories import find_user, read_history, user_history
from longplay.launch.evaluation.loading import find_checkpoint, load_model, open_dataset
from longplay.launch.evaluation.queries import embed
from longplay.launch.inputs.event_inputs import load_inputs
from longplay.launch.settings.common_arguments import (
    Once,
    add_device_argument,
    add_run_arguments,
    at_least,
)
from longplay.launch.settings.saved import read_config
from longplay.models.inputs.stage import Inputs


def register(subparsers: Any) -> None:
    """Add `recommend` to the `longplay` command."""
    parser = subparsers.add_parser(
        "recommend",
        description="Print the best next items after a history.",
    )
    add_run_arguments(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--history",
        type=Path,
        action=Once,
        metavar="FILE",
        help="original item ids, oldest first, separated by whitespace or commas (one per line if ids of the "
        "dataset contain those): a text file, or - for stdin; also a .csv, .tsv, .parquet, .json or .jsonl "
        "file with the item column of `longplay prepare` or item_id, and the times and features that the "
        "model reads",
    )
    source.add_argument(
        "--user",
        action=Once,
        metavar="ID",
        help="original id of a user of the dataset, whose whole history is used",
    )
    parser.add_argument(
        "--top", type=at_least(1), default=20, metavar="N", help="number of items (default: 20)"
    )
    parser.add_argument("--keep-seen", action="store_true", help="also recommend items of the history")
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON array and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    config = read_config(args.run)
    dataset = open_dataset(args.run, args.data)
    inputs = load_inputs(config.inputs, dataset)
    if args.history is None:
        history = user_history(dataset, find_user(dataset, args.user), inputs.columns)
    else:
        history = read_history(dataset, args.history, inputs.columns)
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    world = init_world(device=args.device)
    encoder, table = load_model(config, dataset, checkpoint, world)
    recent = history[-config.context_length :]
    absent = ["times"] if inputs.columns.times and history.times is None else []
    absent += [name for name in inputs.columns.names if name not in history.features]
    if absent and world.is_rank0:
        print(
            f"longplay: note: the history has no {', '.join(absent)}; the model treats them as missing",
            file=sys.stderr,
        )
    with torch.inference_mode():
        known = inputs.of_known(recent.item_ids, recent.times, recent.features, world.device)
        hidden = encode(encoder, table, recent.item_ids.to(world.device), known)
        excluded = None
        if not args.keep_seen:
            seen = history.item_ids.unique().to(world.device)
            excluded = torch.stack([torch.zeros_like(seen), seen], 1)
        items, scores = top_items(hidden, table, args.top, excluded)
    found = items[0] > 0
    if world.is_rank0:
        item_ids = items[0][found].cpu().numpy()
        originals = dataset.items.originals(item_ids).tolist()
        titles = dataset.items.columns.titles(item_ids)
        if args.json:
            print(json.dumps(as_objects(originals, scores[0][found].tolist(), titles)))
        else:
            print_ranking(originals, scores[0][found].tolist(), titles)
    close_world(world)
    return 0


def encode(encoder: torch.nn.Module, table: ItemTable, history: Tensor, inputs: Inputs | None) -> Tensor:
    """Return the hidden state (1, D) after a history (n,) of item ids with inputs (n,). Collective."""
    seq_idx = torch.zeros(1, history.shape[0], dtype=torch.int32, device=history.device)
    last = seq_idx.new_tensor([seq_idx.numel() - 1], dtype=torch.int64)
    of_row = inputs and {key: values.unsqueeze(0) for key, values in inputs.items()}
    return encoder(embed(history.unsqueeze(0), table), seq_idx, None, last, of_row).float()


def as_objects(
    originals: list[int | str], scores: list[float], titles: list[str | None] | None
) -> list[dict[str, Any]]:
    """Return the JSON objects of recommended items; they have a title if the dataset has titles."""
    rows: list[dict[str, Any]] = [
        {"item_id": item, "score": round(score, 6)} for item, score in zip(originals, scores, strict=True)
    ]
    if titles is None:
        return rows
    return [{**row, "title": title} for row, title in zip(rows, titles, strict=True)]


def print_ranking(originals: list[int | str], scores: list[float], titles: list[str | None] | None) -> None:
    """Print original item ids, scores and titles, best first. Piped output has no header."""
    table = new_table("position", "item", "score", widths=(4, 12, 9), align_first="right")
    if titles is not None:
        table.add_column(" title", no_wrap=True)
    table.show_header = sys.stdout.isatty()
    rows = zip(originals, scores, titles or [None] * len(originals), strict=True)
    for position, (item, score, title) in enumerate(rows, 1):
        cells = [Text(printable(str(item))), f"{score:.4f}"]
        if titles is not None:
            cells.append(Text(f" {printable(title or '')}"))
        table.add_row(str(position), *cells)
    print_table(table)


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["recommend", *sys.argv[1:]]))
