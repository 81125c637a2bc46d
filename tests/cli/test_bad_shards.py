"""Runs on datasets with bad shards, and on datasets behind a URL."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import Command, longplay
from support.ranks import run_ranks
from support.runs import read_metrics, small_config, small_dataset

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.world import World
from longplay.launch.settings.bad_shards import share_skipped
from longplay.launch.settings.errors import ConfigError
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step

SHORT = ["--train.max_steps", "3", "--train.eval_every_steps", "3"]


def flip(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)


def test_a_bad_shard_stops_train_by_default_and_is_counted_when_skipped(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    flip(data / "shard-000001.tar")
    (data / "shard-000004.tar").unlink()
    manifest = json.loads((data / "manifest.json").read_text())
    words = ["train", "small", "--data", str(data), "--run", str(tmp_path / "run"), *SHORT]
    stopped = Command(words, tmp_path / "out")
    assert stopped.wait() == 2
    assert "shard-000004.tar: shard is missing" in (tmp_path / "out").read_text()
    temporal = ["--data.split.kind", "temporal"]
    events = sum(manifest["shards"][index]["num_events"] for index in (1, 4))
    summary = f"skipped  2 bad shards with {events:,} events"
    for name, world_size, more in (("one", 1, []), ("two", 2, temporal)):
        run = tmp_path / name
        words = ["train", "small", "--data", str(data), "--run", str(run), *SHORT, *more]
        printed = longplay([*words, "--on-bad-shard", "skip"], tmp_path / "out", world_size=world_size)
        assert summary in printed
        assert set(read_metrics(run, "data/skipped_shards").values()) <= {1, 2}
        assert read_metrics(run, "data/skipped_shards")[3] == 2
        assert read_metrics(run, "data/skipped_events")[3] == events
    printed = longplay(["evaluate", str(tmp_path / "one"), "--baseline"], tmp_path / "out")
    assert summary in printed
    printed = longplay(["evaluate", str(tmp_path / "one"), "--json"], tmp_path / "out")
    report = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    bad_users = sum(manifest["shards"][index]["num_users"] for index in (1, 4))
    assert report["num_users"] == manifest["num_users"] - bad_users
    assert (report["skipped_shards"], report["skipped_events"]) == (2, events)
    stopped = Command(["evaluate", str(tmp_path / "one"), "--on-bad-shard", "stop"], tmp_path / "out")
    assert stopped.wait() == 2


LOSSES = [
    ["--loss.name", "full_softmax"],
    ["--loss.name", "bce", "--engine.gradient_accumulation_steps", "2"],
    ["--loss.name", "sampled_softmax", "--loss.negatives", "in_batch", "--loss.num_negatives", "8"],
]


def step_without_targets(world: World, data: Path) -> list[tuple[float, float, int]]:
    found = []
    for overrides in LOSSES:
        config, dataset = small_config(*overrides), Dataset.open(data)
        model = build_model(config, dataset, world)
        batch = next(iter(TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size)))
        empty = batch.map(torch.zeros_like)
        batch = replace(batch, item_ids=empty.item_ids, targets=empty.targets)
        planned = StepPipeline(model, iter([batch])).take()
        result = train_step(model, planned, lr=0.01)
        found.append((result.loss, result.grad_norm, result.num_targets))
        model.engine.close()
    return found


def test_a_step_without_targets_changes_nothing(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    for world_size in (1, 2):
        for found in run_ranks(step_without_targets, world_size, data):
            assert found == [(0.0, 0.0, 0)] * len(LOSSES)


def skip_own(world: World, data: Path) -> dict[int, str]:
    dataset = Dataset.open(data, on_bad_shard="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.store.skip(3 + world.rank, "bad")
        share_skipped(dataset, world)
    return dataset.store.skipped


def test_a_shard_skipped_on_one_rank_is_skipped_on_all(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    assert [sorted(found) for found in run_ranks(skip_own, 2, data)] == [[3, 4]] * 2


def test_a_run_reads_its_dataset_from_a_url_which_evaluate_uses_too(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    run, url = tmp_path / "run", f"pipe:cat {data}"
    longplay(["train", "small", "--data", url, "--run", str(run), *SHORT], tmp_path / "out")
    assert json.loads((run / "config.json").read_text())["data"] == url
    assert "hit@10" in longplay(["evaluate", str(run), "--data", url], tmp_path / "out")
    local = longplay(["evaluate", str(run), "--data", f"file://{data}", "--json"], tmp_path / "out")
    remote = longplay(["evaluate", str(run), "--data", url, "--json"], tmp_path / "out")
    assert json.loads(local)["full"] == json.loads(remote)["full"]


def test_the_alias_is_checked_like_the_setting() -> None:
    assert small_config("--on-bad-shard", "skip").data.on_bad_shard == "skip"
    with pytest.raises(ConfigError, match=r"data\.on_bad_shard='ignore': must be one of stop, skip"):
        small_config("--on-bad-shard", "ignore")
