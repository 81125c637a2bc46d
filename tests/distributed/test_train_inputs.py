"""Runs with event features, times and item columns: any number of ranks, resume, evaluation, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from support.commands import longplay
from support.datasets import log_normal_lengths
from support.feature_sets import random_dataset
from support.json_edits import edit_json
from support.ranks import run_ranks
from support.runs import read_metrics, small_config

from longplay.data_shards.errors import DataError
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.manifest import ITEMS_NAME, MANIFEST_NAME
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.world import World
from longplay.launch.cli import main
from longplay.launch.estimates.estimate_run import estimate_run
from longplay.launch.evaluation.evaluation import evaluate
from longplay.launch.evaluation.histories import user_history
from longplay.launch.inputs.event_inputs import load_inputs
from longplay.launch.settings.errors import ConfigError
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step
from longplay.models.encoder_size import num_parameters
from longplay.models.inputs.config import InputConfig

ALL = [
    *("--inputs.features", "genre,hour,price", "--inputs.time_gap", "true", "--inputs.time_of_day", "true"),
    *("--inputs.item_categories", "artist", "--inputs.item_vectors", "vector"),
]
STEPS = 6


def dataset_with_item_columns(out: Path) -> Path:
    """Write 120 users with features, and item columns of which every seventh value is missing."""
    random_dataset(out, log_normal_lengths(120, median=12), num_shards=12)
    table, rng = pl.read_parquet(out / ITEMS_NAME), np.random.default_rng(0)
    numbers = range(len(table))
    table.with_columns(
        artist=pl.Series([None if n % 7 == 3 else f"artist {n % 11}" for n in numbers]),
        vector=pl.Series([None if n % 7 == 5 else rng.normal(size=3).tolist() for n in numbers]),
        year=pl.Series([1990 + n % 4 for n in numbers]),
    ).write_parquet(out / ITEMS_NAME)
    return out


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset_with_item_columns(tmp_path_factory.mktemp("inputs") / "set")


def train(world: World, data: Path, overrides: list[str], model: str) -> list[tuple[float, float]]:
    """Return (loss, gradient norm) of each step, then (hit@10, mrr) of a validation."""
    config, dataset = small_config(*overrides, model=model), Dataset.open(data)
    trained = build_model(config, dataset, world)
    stream = TrainStream(
        dataset,
        config.data,
        rank=world.rank,
        world_size=world.world_size,
        columns=trained.inputs.columns,
    )
    pipeline, history = StepPipeline(trained, iter(stream)), []
    for _ in range(STEPS):
        result = train_step(trained, pipeline.take(), lr=0.01, pipeline=pipeline)
        history.append((result.loss, result.grad_norm))
    trained.engine.train(False)
    metrics = evaluate(trained.engine, trained.table, dataset, config, "validation").metrics
    return [*history, (metrics["full"]["hit@10"], metrics["sampled100"]["mrr"])]


@pytest.mark.parametrize("model", ["sasrec", "mambarec"])
def test_ranks_zero_stages_and_micro_batches_give_the_same_losses(data: Path, model: str) -> None:
    expected = run_ranks(train, 1, data, ALL, model)[0]
    more = ["--engine.zero_stage", "3", "--engine.gradient_accumulation_steps", "2"]
    for history in run_ranks(train, 2, data, ALL + more, model):
        torch.testing.assert_close(torch.tensor(history), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_ranks_without_rows_take_part_in_every_collective(data: Path) -> None:
    """Some of three ranks have no batch in the last round of the evaluation."""
    settings = [*ALL, "--evaluation.rows_per_batch", "2", "--engine.zero_stage", "3"]
    expected = run_ranks(train, 1, data, settings, "gru4rec")[0]
    for history in run_ranks(train, 3, data, settings, "gru4rec"):
        torch.testing.assert_close(torch.tensor(history), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one_bitwise_on_as_many_ranks(
    data: Path, tmp_path: Path
) -> None:
    def run_until(run: Path, steps: int, world_size: int = 1) -> None:
        settings = ["--train.max_steps", str(steps), "--train.eval_every_steps", "4", *ALL]
        words = ["train", "small", "--data", str(data), "--run", str(run), *settings]
        longplay(words, run.with_suffix(".log"), world_size=world_size)

    run_until(tmp_path / "whole", 8)
    run_until(tmp_path / "parts", 3)
    run_until(tmp_path / "parts", 8)
    for tag in ("train/loss", "optim/grad_norm", "eval_full/ndcg@10"):
        whole = read_metrics(tmp_path / "whole", tag)
        parts = read_metrics(tmp_path / "parts", tag)
        assert {step: parts[step] for step in whole} == whole, tag
    run_until(tmp_path / "two", 3, world_size=2)
    run_until(tmp_path / "two", 8)
    losses, whole = (list(read_metrics(tmp_path / name, "train/loss").values()) for name in ("two", "whole"))
    assert losses == pytest.approx(whole, rel=1e-5)
    line = "inputs   features genre,hour,price, time_gap bucket, time_of_day true, item_categories artist"
    assert line in (tmp_path / "parts.log").read_text()


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    settings = ["--train.max_steps", "3", *ALL]
    longplay(["train", "small", "--data", str(data), "--run", str(run), *settings], run.with_suffix(".log"))
    return run


def recommended(run: Path, capsys: pytest.CaptureFixture[str], *more: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["recommend", str(run), "--json", "--device", "cpu", *more]) == 0
    found = capsys.readouterr()
    sys.stderr.write(found.err)
    return json.loads(found.out)


def test_a_history_has_the_features_that_its_file_has(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Dataset.open(data)
    items = dataset.items.originals(dataset.sequence(3)[0])
    (tmp_path / "ids.txt").write_text(" ".join(map(str, items)))
    of_user = recommended(run, capsys, "--user", "3")
    typed = recommended(run, capsys, "--history", str(tmp_path / "ids.txt"))
    assert len(of_user) == len(typed) > 0
    assert "the history has no times, genre, hour, price; the model treats" in capsys.readouterr().err
    assert of_user != typed
    table: dict[str, Any] = {"item_id": items, "timestamp": dataset.sequence(3)[1]} | dataset.features_of(
        3, ["price"]
    )
    for name in ("genre", "hour"):
        values = [None, *dataset.feature_values(name)["value"]]
        table[name] = [values[code] for code in dataset.features_of(3, [name])[name]]
    pl.DataFrame(table, nan_to_null=True).write_csv(tmp_path / "events.csv")
    assert recommended(run, capsys, "--history", str(tmp_path / "events.csv")) == of_user
    assert "the history has no" not in capsys.readouterr().err


def test_a_user_is_encoded_as_in_the_evaluation(data: Path) -> None:
    dataset = Dataset.open(data)
    inputs = load_inputs(small_config(*ALL).inputs, dataset)
    recent = user_history(dataset, 3, inputs.columns)[-5:]
    found = inputs.of_known(recent.item_ids, recent.times, recent.features, torch.device("cpu"))
    assert found is not None
    items, times = dataset.sequence(3)
    assert found["times"].tolist() == times[-5:].tolist()
    names = inputs.columns.names
    for name, values in dataset.features_of(3, names).items():
        assert np.array_equal(found[f"feature_{name}"], values[-5:], equal_nan=True)
    assert torch.equal(
        found["item_vectors"], inputs.items.gather(torch.from_numpy(items[-5:]))["item_vectors"]
    )


def test_changed_item_columns_are_refused(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "set"))
    table = pl.read_parquet(moved / ITEMS_NAME)
    table.with_columns(artist=table["artist"].reverse()).write_parquet(moved / ITEMS_NAME)
    assert main(["evaluate", str(run), "--data", str(moved), "--device", "cpu"]) == 2
    assert "the run's inputs have changed in items.parquet or in the manifest" in capsys.readouterr().err


REFUSALS = [
    (["--inputs.features", "mood"], "feature 'mood': the dataset's features are: genre, hour, price"),
    (
        ["--inputs.item_vectors", "artist"],
        "item_vectors artist: is String; give a column of lists of numbers",
    ),
    (
        ["--inputs.item_categories", "vector"],
        r"item_categories vector: is List\(Float64\); give columns of text",
    ),
    (
        ["--inputs.item_categories", "label"],
        "has no item column 'label'; it has: artist, vector, year",
    ),
    (["--inputs.item_vectors", "count"], "has no item column 'count'"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSALS, ids=lambda value: str(value[-1])[:20])
def test_an_input_that_the_dataset_lacks_is_refused(data: Path, overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        load_inputs(small_config(*overrides).inputs, Dataset.open(data))


@pytest.mark.parametrize(
    ("unit", "why"), [(None, "the unit of its times is unknown"), ("index", "row numbers")]
)
def test_times_without_a_unit_have_gaps_but_no_time_of_day(
    data: Path, tmp_path: Path, unit: str | None, why: str
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "set"))
    edit_json(copy / MANIFEST_NAME, time_unit=unit)
    dataset = Dataset.open(copy)
    assert load_inputs(InputConfig(time_gap="fourier"), dataset).columns.times
    with pytest.raises(ConfigError, match=f"inputs.time_of_day=true: .* {why}"):
        load_inputs(InputConfig(time_of_day=True), dataset)


def test_settings_are_typed_as_a_user_expects() -> None:
    assert small_config("--inputs.time_gap", "true").inputs.time_gap == "bucket"
    assert small_config("--inputs.time_gap", "none").inputs == InputConfig()
    assert small_config("--inputs.time_gap", "fourier").inputs.time_gap == "fourier"
    assert small_config("--inputs.features", "hour").inputs.features == ("hour",)
    assert small_config("--inputs.features", "none").inputs.features == ()
    with pytest.raises(ConfigError, match="a name occurs twice"):
        small_config("--inputs.features", "hour,hour")
    with pytest.raises(ConfigError, match=r"inputs\.time_gap"):
        small_config("--inputs.time_gap", "log")


def test_the_estimate_counts_the_inputs(data: Path) -> None:
    dataset = Dataset.open(data)
    plain, config = small_config(), small_config(*ALL)
    bare, full = (estimate_run(each, dataset, device_type="cpu") for each in (plain, config))
    spec = load_inputs(config.inputs, dataset).spec
    weights = num_parameters(config.encoder, spec) - num_parameters(config.encoder)
    assert full.transient["encoder gradients"] - bare.transient["encoder gradients"] == 4 * weights
    assert full.host["item categories and vectors"] > 4 * 4 * dataset.num_items
    for name in ("prefetched batches", "stream: decoded shards"):
        assert full.host[name] > bare.host[name]
    assert full.transient["activations saved for backward"] > bare.transient["activations saved for backward"]
