"""`longplay recommend RUN --history ids.txt --top 20`: the best next items after a history."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.runtime.world import close_world, init_world
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.table.ranking import top_items
from longplay.launch.evaluation.evaluate_run import find_checkpoint, load_model, open_dataset
from longplay.launch.settings.data_arguments import data_location
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import add_import_argument
from longplay.launch.settings.saved import read_config


def register(subparsers: Any) -> None:
    """Add `recommend` to the `longplay` command."""
    parser = subparsers.add_parser("recommend", help="next items after a history", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of `longplay train --run`")
    add_import_argument(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--history", type=Path, help="text file of original item ids, oldest first; - reads stdin"
    )
    source.add_argument(
        "--user", type=int, help="original id of a user of the dataset; the whole history counts"
    )
    parser.add_argument("--top", type=int, default=20, help="how many items (default 20)")
    parser.add_argument("--keep-seen", action="store_true", help="allow items of the history")
    parser.add_argument(
        "--data", type=data_location, help="prepared dataset, where it has moved since training"
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (default), last, or a name such as step-000000120"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--json", action="store_true", help="print one JSON array and nothing else")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """The command; returns its exit code."""
    if args.top < 1:
        raise ConfigError(f"--top {args.top}: must be at least 1")
    config = read_config(args.run)
    dataset = open_dataset(args.run, args.data)
    history = (
        user_history(dataset, args.user) if args.history is None else read_history(dataset, args.history)
    )
    checkpoint = find_checkpoint(args.run, args.checkpoint)
    world = init_world(device=args.device)
    encoder, table = load_model(config, dataset, checkpoint, world)
    recent = history[-config.context_length :].to(world.device)
    with torch.inference_mode():
        hidden = encode(encoder, table, recent)
        excluded = None
        if not args.keep_seen:
            seen = history.unique().to(world.device)
            excluded = torch.stack([torch.zeros_like(seen), seen], 1)
        items, scores = top_items(hidden, table, args.top, excluded)
    found = items[0] > 0
    originals = dataset.items.originals(items[0][found].cpu().numpy()).tolist()
    ranked = list(zip(originals, scores[0][found].tolist(), strict=True))
    if world.is_rank0:
        if args.json:
            print(json.dumps([{"item_id": item, "score": round(score, 6)} for item, score in ranked]))
        else:
            for place, (item, score) in enumerate(ranked, 1):
                print(f"{place:>4}  {item:>12}  {score:9.4f}")
    close_world()
    return 0


def encode(encoder: torch.nn.Module, table: ItemTable, history: Tensor) -> Tensor:
    """The state (1, D) after `history` (n,) of item ids. Every rank must call."""
    plan, index = table.plan(history)
    rows = plan.rows_from_owners(table.shard)
    seq_idx = torch.zeros(1, history.shape[0], dtype=torch.int32, device=history.device)
    last = seq_idx.new_tensor([seq_idx.numel() - 1], dtype=torch.int64)
    return encoder(torch.nn.functional.embedding(index.unsqueeze(0), rows), seq_idx, None, last).float()


def read_history(dataset: Dataset, path: Path) -> Tensor:
    """Item ids (n,) of the original ids in a text file, separated by white space or commas, oldest first.

    Unknown items are left out with a warning.

    Raises:
        ConfigError: the file cannot be read, holds something else than integers, or no known item.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        cause = "not text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ConfigError(
            f"--history {name}: cannot be read ({cause}); give a text file of original item ids"
        ) from None
    originals = []
    for number, line in enumerate(text.splitlines(), 1):
        for word in line.replace(",", " ").split():
            try:
                originals.append(int(word))
            except ValueError:
                raise ConfigError(
                    f"{name}, line {number}: {word!r} is not an integer item id; separate ids by white space"
                ) from None
            if not -(2**63) <= originals[-1] < 2**63:
                raise ConfigError(f"{name}, line {number}: {word} is beyond 64 bits; give original item ids")
    ids = dataset.items.item_ids(np.array(originals, dtype=np.int64))
    unknown = [original for original, item in zip(originals, ids.tolist(), strict=True) if item == 0]
    if unknown and len(unknown) < len(originals):
        shown = ", ".join(map(str, unknown[:5]))
        print(
            f"longplay: warning: {len(unknown)} of {len(originals)} items are not in the dataset ({shown})",
            file=sys.stderr,
        )
    ids = ids[ids > 0]
    if ids.size == 0:
        raise ConfigError(f"{name}: holds no item of the dataset; give original item ids, oldest first")
    return torch.from_numpy(ids.astype(np.int64))


def user_history(dataset: Dataset, original: int) -> Tensor:
    """Item ids (n,) of a user's whole history.

    Raises:
        ConfigError: the dataset has no such user.
    """
    where = np.flatnonzero(dataset.user_original_ids == original)
    if where.size == 0:
        raise ConfigError(
            f"--user {original}: is not a user of {dataset.path}; give an original user id, or --history FILE"
        )
    items, _ = dataset.sequence(int(where[0]))
    return torch.from_numpy(items.astype(np.int64))


if __name__ == "__main__":
    from longplay.launch.cli import main

    sys.exit(main(["recommend", *sys.argv[1:]]))
