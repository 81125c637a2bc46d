"""An exported model with inputs gives the same answers as the run, from the same times and features."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.commands import longplay
from support.datasets import log_normal_lengths
from support.feature_sets import random_dataset

import longplay as package
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.manifest import ITEMS_NAME
from longplay.serving.export_format import ExportError
from longplay.serving.exported_model import ExportedModel

ALL = [
    *("--inputs.features", "genre,hour,price", "--inputs.time_gap", "true", "--inputs.time_of_day", "true"),
    *("--inputs.item_categories", "artist", "--inputs.item_vectors", "vector"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inputs") / "set"
    random_dataset(out, log_normal_lengths(80, median=12), num_shards=12)
    table, rng = pl.read_parquet(out / ITEMS_NAME), np.random.default_rng(0)
    table.with_columns(
        artist=pl.Series([None if n % 7 == 3 else f"artist {n % 11}" for n in range(len(table))]),
        vector=pl.Series([rng.normal(size=3).tolist() for _ in range(len(table))]),
    ).write_parquet(out / ITEMS_NAME)
    return out


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    words = ["train", "small", "--data", str(data), "--run", str(folder / "run"), *ALL]
    longplay([*words, "--train.max_epochs", "1", "--train.lr", "0.01"], folder / "log")
    return folder / "run"


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    longplay(["export", str(run), "--out", str(run.parent / "out")], run.parent / "export.log")
    return run.parent / "out"


@pytest.fixture
def model(exported: Path) -> ExportedModel:
    return package.load(exported, verify=True)


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def user_events(data: Path, user: int) -> tuple[list[int], list[int], dict[str, list[Any]]]:
    """Return the original item ids, times and features of a user, as a caller knows them."""
    dataset = Dataset.open(data)
    items, times = dataset.sequence(user)
    features = dataset.features_of(user, ["genre", "hour", "price"])
    given: dict[str, list[Any]] = {"price": features["price"].tolist()}
    for name in ("genre", "hour"):
        values = [None, *dataset.feature_values(name)["value"].to_list()]
        given[name] = [values[code] for code in features[name]]
    return dataset.items.originals(items).tolist(), times.tolist(), given


def first_events(given: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    return {name: values[:count] for name, values in given.items()}


def test_recommendations_with_inputs_equal_those_of_the_command(
    run: Path, data: Path, model: ExportedModel, tmp_path: Path
) -> None:
    user = int(np.argmax(Dataset.open(data).lengths))
    history, times, features = user_events(data, user)
    assert len(history) > model.config.encoder.context_length
    printed = longplay(["recommend", str(run), "--user", str(user), "--json", "--top", "9"], tmp_path / "log")
    expected = json.loads(printed.splitlines()[-1])
    item_ids, scores = model.recommend(history, times=times, features=features, top=9)
    assert item_ids.tolist() == [one["item_id"] for one in expected]
    assert scores.tolist() == pytest.approx([one["score"] for one in expected], abs=2e-6)
    chosen = model.scores(history, item_ids, times=times, features=features)
    assert chosen == pytest.approx(scores, rel=1e-5, abs=1e-6)


def test_several_histories_give_the_same_as_each_alone(data: Path, model: ExportedModel) -> None:
    several = [user_events(data, user) for user in range(6)]
    item_ids, scores = model.recommend(
        [[], *(one[0] for one in several)],
        times=[[], *(one[1] for one in several)],
        features=[{}, *(one[2] for one in several)],
        top=5,
    )
    assert np.isneginf(scores[0]).all()
    for number, (history, times, features) in enumerate(several, start=1):
        alone = model.recommend(history, times=times, features=features, top=5)
        assert alone[0].tolist() == item_ids[number].tolist()
        assert alone[1] == pytest.approx(scores[number], rel=1e-5, abs=1e-6)


def test_a_session_equals_the_whole_history(data: Path, model: ExportedModel) -> None:
    history, times, features = user_events(data, 3)
    count = min(len(history), model.config.encoder.context_length)
    session = model.session(history[:2], times=times[:2], features=first_events(features, 2))
    for at in range(2, count):
        of_event = {name: values[at] for name, values in features.items()}
        model.step(session, history[at], time=times[at], features=of_event)
    expected = model.recommend(history[:count], times=times[:count], features=first_events(features, count))
    assert session.recommend()[1] == pytest.approx(expected[1], rel=1e-4, abs=1e-5)
    with pytest.raises(
        ValueError, match=rf"time: 7 is before the time of the event before, {times[count - 1]}"
    ):
        model.step(session, history[0], time=7)


def test_every_input_counts_and_the_type_of_times_does_not(data: Path, model: ExportedModel) -> None:
    history, times, features = user_events(data, 1)
    expected = model.recommend(history, times=times, features=features)[1]
    as_dates = np.array(times, "datetime64[s]").astype("datetime64[ns]")
    assert model.recommend(history, times=as_dates, features=features)[1].tolist() == expected.tolist()
    changed: list[dict[str, Any]] = [
        {"times": [times[0], *(time + 90_000 for time in times[1:])], "features": features},
        *({"times": times, "features": {**features, name: [None] * len(history)}} for name in features),
    ]
    for given in changed:
        assert model.recommend(history, **given)[1].tolist() != expected.tolist()
    absent = model.recommend(history, times=times)[1]
    missing = {name: [None] * len(history) for name in features}
    assert model.recommend(history, times=times, features=missing)[1].tolist() == absent.tolist()
    unseen = {**missing, "genre": ["polka"] * len(history)}
    assert model.recommend(history, times=times, features=unseen)[1].tolist() == absent.tolist()


def test_an_unknown_item_takes_its_time_and_features_with_it(data: Path, model: ExportedModel) -> None:
    history, times, features = user_events(data, 2)
    expected = model.recommend(history, times=times, features=features)[1]
    more = {name: [values[0], None, *values[1:]] for name, values in features.items()}
    with pytest.warns(UserWarning, match="1 of .* items are not in this model"):
        _, scores = model.recommend(
            [history[0], -5, *history[1:]], times=[times[0], times[0], *times[1:]], features=more
        )
    assert scores.tolist() == expected.tolist()


def test_times_that_are_not_given_are_missing_with_a_warning(data: Path, model: ExportedModel) -> None:
    history, _, features = user_events(data, 2)
    with pytest.warns(
        UserWarning, match="history: has no times, which this model reads; they count as missing"
    ):
        model.recommend(history, features=features)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"times": [1, 2]}, "times of history: has 2 values for 3 events"),
        ({"times": [3, 2, 1]}, "times of history: decrease; give events oldest first"),
        ({"times": ["a", "b", "c"]}, r"times of history: are not a list of integers .*\(s\)"),
        ({"times": [1.5, 2.5, 3.5]}, "are not a list of integers"),
        ({"times": [1, 2, 3], "features": {"color": [1, 2, 3]}}, "this model reads genre, hour, price"),
        ({"times": [1, 2, 3], "features": {"genre": [1, 2, 3]}}, "feature genre of history: .* strings"),
        ({"times": [1, 2, 3], "features": {"hour": [1, 2]}}, "feature hour of history: has 2 values"),
        ({"times": [1, 2, 3], "features": {"price": [1, 2, float("inf")]}}, "not a list of finite numbers"),
        ({"times": [1, 2, 3], "features": {"price": ["cheap", 2, 3]}}, "not a list of finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(
    data: Path, model: ExportedModel, given: dict[str, Any], message: str
) -> None:
    history = user_events(data, 2)[0][:3]
    with pytest.raises(ValueError, match=message):
        model.recommend(history, **given)


def test_several_histories_need_several_times(data: Path, model: ExportedModel) -> None:
    history, times, features = user_events(data, 2)
    message = "give a list with an entry for each of the 2 histories"
    with pytest.raises(ValueError, match=f"times: {message}"):
        model.recommend([history, history], times=[times])
    with pytest.raises(ValueError, match=f"times: {message}"):
        model.recommend([history, history], times=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"features: {message}"):
        model.recommend([history, history], times=[times, times], features=features)


@pytest.mark.parametrize("name", ["item_inputs.safetensors", "feature-genre.parquet"])
def test_damaged_inputs_are_refused(exported: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in exported.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ExportError, match=f"{name}: is damaged"):
        package.load(copy)


def test_a_model_of_items_only_takes_neither(data: Path, tmp_path: Path) -> None:
    words = ["train", "small", "--data", str(data), "--run", str(tmp_path / "run"), "--train.max_steps", "1"]
    longplay(words, tmp_path / "log")
    longplay(["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")], tmp_path / "log")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"inputs", "time_unit"} & set(config)
    model = package.load(tmp_path / "out")
    history = user_events(data, 2)[0]
    with pytest.raises(ValueError, match="this model does not read times"):
        model.recommend(history, times=list(range(len(history))))
    with pytest.raises(ValueError, match="feature genre of history: this model reads no features"):
        model.recommend(history, features={"genre": ["rock"] * len(history)})
