"""Every command works with string ids, takes them exactly and gives them back exactly."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from support.commands import Command, longplay
from support.runs import small_dataset
from support.string_ids import STRANGE, add_item_columns, give_string_ids

import longplay as package
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.evaluation.histories import read_history
from longplay.serving.exported_model import ExportedModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same dataset and run twice: with integer ids, and with string ids."""
    folder = tmp_path_factory.mktemp("ids")
    small_dataset(folder).rename(folder / "integers")
    give_string_ids(Path(shutil.copytree(folder / "integers", folder / "strings")), strange=True)
    plain = Path(shutil.copytree(folder / "integers", folder / "plain"))
    add_item_columns(give_string_ids(plain))
    for name in ("integers", "strings", "plain"):
        words = ["train", "small", "--data", str(folder / name), "--run", str(folder / f"run-{name}")]
        longplay([*words, "--train.max_steps", "2"], folder / "log")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ExportedModel:
    longplay(["export", str(folder / "run-strings"), "--out", str(folder / "export")], folder / "log")
    return package.load(folder / "export", verify=True)


def recommend(folder: Path, name: str, *words: str) -> list[dict[str, Any]]:
    printed = longplay(["recommend", str(folder / f"run-{name}"), "--json", *words], folder / "log")
    return json.loads(printed.splitlines()[-1])


def same_items(folder: Path, integers: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Translate recommendations from the run with integer ids to the other run's ids."""
    old, new = (Dataset.open(folder / kind).items for kind in ("integers", name))
    ids = old.item_ids([one["item_id"] for one in integers])
    return [
        {"item_id": item, "score": one["score"]}
        for item, one in zip(new.originals(ids).tolist(), integers, strict=True)
    ]


def test_a_user_is_chosen_by_a_string(folder: Path) -> None:
    users = [Dataset.open(folder / name).user_original_ids[7] for name in ("integers", "strings")]
    integers, strings = (
        recommend(folder, name, "--user", str(user), "--keep-seen", "--top", "300")
        for name, user in zip(("integers", "strings"), users, strict=True)
    )
    assert strings == same_items(folder, integers, "strings")
    assert {*STRANGE} <= {one["item_id"] for one in strings}


HISTORY_FILES = {
    "a.txt": lambda ids: " ".join(ids),
    "b.txt": lambda ids: "\ufeff" + "\r\n".join(ids) + "\r\n",
    "c.txt": lambda ids: ",".join(ids),
    "d.csv": lambda ids: "item_id,time\n" + "".join(f"{one},5\n" for one in ids),
    "e.tsv": lambda ids: "time\titem_id\n" + "".join(f"5\t{one}\n" for one in ids),
    "f.csv": lambda ids: "\n".join(ids),
    "g.json": json.dumps,
    "h.json": lambda ids: json.dumps([{"item_id": one, "score": 1.0} for one in ids]),
    "i.jsonl": lambda ids: "".join(f"{json.dumps(one)}\n" for one in ids),
    "j.jsonl": lambda ids: "".join(f"{json.dumps({'item_id': one})}\n" for one in ids),
}


@pytest.mark.parametrize("name", ["integers", "plain"])
def test_a_history_file_has_any_form(folder: Path, tmp_path: Path, name: str) -> None:
    dataset = Dataset.open(folder / name)
    ids = dataset.items.originals(np.array([5, 3, 4, 3])).tolist()
    for file, write in HISTORY_FILES.items():
        (tmp_path / file).write_bytes(write(list(map(str, ids))).encode())
    pl.DataFrame({"user": [1] * 4, "item_id": ids}).write_parquet(tmp_path / "k.parquet")
    pl.DataFrame({"any name": ids}).write_parquet(tmp_path / "l.parquet")
    for file in [*HISTORY_FILES, "k.parquet", "l.parquet"]:
        assert read_history(dataset, tmp_path / file).item_ids.tolist() == [5, 3, 4, 3], file


def test_ids_with_separators_stand_one_per_line_or_quoted(folder: Path, tmp_path: Path) -> None:
    dataset = Dataset.open(folder / "strings")
    lines = [one for one in STRANGE if one and "\n" not in one]
    (tmp_path / "ids.txt").write_text("\n".join(lines))
    (tmp_path / "ids.json").write_text(json.dumps(STRANGE))
    (tmp_path / "ids.csv").write_text(
        "item_id\n" + "".join('"{}"\n'.format(one.replace('"', '""')) for one in STRANGE)
    )
    assert (
        read_history(dataset, tmp_path / "ids.txt").item_ids.tolist()
        == dataset.items.item_ids(lines).tolist()
    )
    every = list(range(1, len(STRANGE) + 1))
    assert read_history(dataset, tmp_path / "ids.json").item_ids.tolist() == every
    assert read_history(dataset, tmp_path / "ids.csv").item_ids.tolist() == every


@pytest.mark.parametrize(
    ("run", "words", "content", "message"),
    [
        ("plain", "--user 7", "", r"--user '7': is not a user of .*, whose ids are strings such as '"),
        ("integers", "--user B7", "", r"--user: 'B7' is not a 64-bit integer id; users are integers such as"),
        ("plain", "--history ids.txt", "5 3", r"holds no item .*; its ids are strings such as 'B0"),
        ("plain", "--history ids.json", "[5]", r"entry 1: 5 is not a string item id; .* strings such as 'B0"),
        ("integers", "--history ids.txt", "B000001", "'B000001' is not a 64-bit integer item id"),
        ("integers", "--history ids.json", "[1, true]", "entry 2: True is not a 64-bit integer item id"),
        ("integers", "--history ids.json", "{}", "is not a JSON list; give a list of original item ids"),
        ("integers", "--history ids.json", "[1", "cannot be read .Expecting"),
        ("integers", "--history ids.jsonl", '{"id": 1}', "line 1: has no 'item_id' .but 'id'."),
        ("integers", "--history ids.parquet", "PAR1", "cannot be read"),
    ],
)
def test_an_id_of_the_wrong_type_is_refused_in_one_line(
    folder: Path, tmp_path: Path, run: str, words: str, content: str, message: str
) -> None:
    option, value = words.split()
    if option == "--history":
        (tmp_path / value).write_text(content)
        value = str(tmp_path / value)
    command = Command(["recommend", str(folder / f"run-{run}"), option, value], tmp_path / "log")
    assert command.wait() == 2
    (line,) = command.output.read_text().splitlines()
    assert re.search(message, line), line


def test_printed_ids_are_whole_and_harmless(folder: Path, tmp_path: Path) -> None:
    words = ["recommend", str(folder / "run-strings"), "--user", "x", "--keep-seen", "--top", "300"]
    words[3] = str(Dataset.open(folder / "strings").user_original_ids[0])
    lines = longplay(words, tmp_path / "log").splitlines()
    assert len(lines) == 300
    text = "\n".join(lines)
    assert "x" * 99 in text
    assert r"\x1b[31mred" in text
    assert "\x1b" not in text


def test_inspect_shows_and_audits_string_ids(folder: Path, tmp_path: Path) -> None:
    words = ["inspect", str(folder / "plain"), "--verify", "--audit", "--png", str(tmp_path / "x.png")]
    text = longplay(words, tmp_path / "log")
    assert "  ids of items" in text
    assert "strings such as 'B0" in text
    assert "verified" in text
    found = json.loads(longplay([*words, "--json"], tmp_path / "log").rpartition("\n}")[0] + "}")
    assert found["original_ids"]["items"]["type"] == "string"
    assert found["audit"]["item_ids_present"] is None
    text = longplay(["inspect", str(folder / "integers"), "--png", str(tmp_path / "x.png")], tmp_path / "log")
    assert "strings such as" not in text


def test_evaluation_does_not_depend_on_the_type_of_ids(folder: Path, tmp_path: Path) -> None:
    integers, strings = (
        json.loads(longplay(["evaluate", str(folder / f"run-{name}"), "--json"], tmp_path / "log"))
        for name in ("integers", "strings")
    )
    assert integers["full"] == strings["full"]


def test_an_exported_model_takes_and_returns_strings(folder: Path, model: ExportedModel) -> None:
    longplay(["export", str(folder / "run-integers"), "--out", str(folder / "export-1")], folder / "log")
    integers = package.load(folder / "export-1")
    histories = [STRANGE[:5], [], STRANGE[3:4]]
    item_ids, scores = model.recommend(histories, top=30)
    assert item_ids.dtype == object
    assert item_ids[1].tolist() == [None] * 30
    assert all(isinstance(one, str) for one in item_ids[0])
    numbers = [integers.items.originals(model.items.item_ids(one)) for one in histories]
    expected, expected_scores = integers.recommend(numbers, top=30)
    assert np.array_equal(scores, expected_scores)
    rows = [0, 2]
    assert (
        integers.items.item_ids(expected[rows].ravel()) == model.items.item_ids(item_ids[rows].ravel())
    ).all()
    alone, _ = model.recommend(histories[0], top=30)
    assert alone.tolist() == item_ids[0].tolist()
    session = model.step(model.session(STRANGE[:4]), STRANGE[4])
    assert session.recommend(top=5)[0].tolist() == item_ids[0, :5].tolist()
    assert model.scores(STRANGE[:5], alone[:2]).shape == (2,)


def test_an_exported_model_refuses_ids_of_another_type(model: ExportedModel) -> None:
    for wrong, message in (
        ([1, 2], "history: is not a list of strings; ids here are strings such as ''"),
        ("a,b", "history: is not a list of strings"),
        (["a,b", 1], "history: is not a list of strings"),
        ([["a,b"], "a,b"], "history 1: is not a list of strings"),
    ):
        with pytest.raises(ValueError, match=message):
            model.recommend(wrong)
    with pytest.warns(UserWarning, match=r"1 of 2 items are not in this model \('unknown'\)"):
        model.recommend(["a,b", "unknown"])
    with pytest.warns(UserWarning, match="item 'unknown' is not an item"):
        model.step(model.session(["a,b"]), "unknown")


def test_titles_are_shown_and_exported(folder: Path, tmp_path: Path) -> None:
    items = Dataset.open(folder / "plain").items
    expected = dict(zip(items.original_ids, items.columns.column("title"), strict=True))
    (tmp_path / "ids").write_text(items.original_ids[4])
    words = ("--history", str(tmp_path / "ids"), "--keep-seen", "--top", "300")
    ranked = recommend(folder, "plain", *words)
    assert {one["item_id"]: one["title"] for one in ranked} == expected
    user = str(Dataset.open(folder / "integers").user_original_ids[0])
    assert not any("title" in one for one in recommend(folder, "integers", "--user", user))
    printed = longplay(["recommend", str(folder / "run-plain"), *words], tmp_path / "log").splitlines()
    for line, one in zip(printed, ranked, strict=True):
        title = "" if one["title"] is None else f"  Title \\x1b[1m{one['title'].rpartition('m')[2]}"
        assert line.rstrip().endswith(f"{one['score']:.4f}{title}")

    longplay(["export", str(folder / "run-plain"), "--out", str(tmp_path / "export")], tmp_path / "log")
    model = package.load(tmp_path / "export", verify=True)
    assert pl.read_parquet_schema(tmp_path / "export" / "items.parquet").keys() == {
        *("item_id", "original_id", "count", "title", "year")
    }
    item_ids, _ = model.recommend([[items.original_ids[4]], []], top=4)
    assert model.titles(item_ids[0]) == [expected[item] for item in item_ids[0]]
    assert model.titles([*item_ids[1], "unknown"]) == [None] * 5
    with pytest.raises(ValueError, match="item_ids: is not a list of strings"):
        model.titles([1])

    text = longplay(["inspect", str(folder / "plain"), "--png", str(tmp_path / "x.png")], tmp_path / "log")
    assert f"String, {299 / 300:.2%} of items" in text
    assert "most frequent items" in text
    assert "Title \\x1b[1m1" in text


def test_an_export_without_titles_says_so(model: ExportedModel) -> None:
    with pytest.raises(ValueError, match="has no titles, because the dataset's items have no column `title`"):
        model.titles(["a,b"])
