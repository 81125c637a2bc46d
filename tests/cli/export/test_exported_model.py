"""`longplay.load`: an exported model recommends what the run recommends."""

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import longplay
from support.exports import histories, recommended, trained
from support.json_edits import edit_json

import longplay as package
from longplay.serving.exported_model import ExportedModel


def test_recommendations_equal_those_of_the_command(
    run: Path, data: Path, exported: Path, tmp_path: Path
) -> None:
    model = package.load(exported)
    several = histories(data, 3)
    for number, history in enumerate(several):
        folder = tmp_path / str(number)
        folder.mkdir()
        expected = recommended(run, history, folder, "--top", "15")
        item_ids, scores = model.recommend(history, top=15)
        assert item_ids.tolist() == [one["item_id"] for one in expected]
        assert scores.round(6).tolist() == pytest.approx([one["score"] for one in expected], abs=2e-6)
        assert not set(item_ids.tolist()) & set(history)
    expected = recommended(run, several[0], tmp_path, "--top", "5", "--keep-seen")
    item_ids, _ = model.recommend(several[0], top=5, exclude_seen=False)
    assert item_ids.tolist() == [one["item_id"] for one in expected]


def test_a_batch_gives_the_same_as_each_history_alone(data: Path, exported: Path) -> None:
    model = package.load(exported)
    several = histories(data, 12)
    item_ids, scores = model.recommend(several, top=10)
    assert item_ids.shape == scores.shape == (12, 10)
    chosen = model.scores(several, item_ids[0])
    assert chosen[0] == pytest.approx(scores[0], rel=1e-5, abs=1e-6)
    for number, history in enumerate(several):
        alone, alone_scores = model.recommend(history, top=10)
        assert alone_scores == pytest.approx(scores[number], rel=1e-5, abs=1e-6)
        assert alone.tolist() == item_ids[number].tolist()
        assert model.scores(history, item_ids[0]) == pytest.approx(chosen[number], rel=1e-5, abs=1e-6)


def test_top_is_shorter_when_nearly_every_item_was_seen(exported: Path) -> None:
    model = package.load(exported)
    every = model.items.original_ids.tolist()
    item_ids, scores = model.recommend(every[3:], top=20)
    assert sorted(item_ids.tolist()) == sorted(every[:3])
    assert len(scores) == 3
    item_ids, scores = model.recommend([every[3:], every[:1]], top=len(every) + 9)
    assert item_ids.shape == (2, len(every))
    assert (item_ids[0, 3:] == -1).all()
    assert np.isneginf(scores[0, 3:]).all()
    assert len(model.recommend(every, top=20)[0]) == 0


@pytest.mark.parametrize("model_name", ["gru4rec", "recmamba", "mambarec"])
def test_a_session_equals_the_whole_history(
    data: Path, exported: Path, tmp_path: Path, model_name: str
) -> None:
    folder = exported
    if model_name != "mambarec":
        run = trained(data, tmp_path, "--encoder.model", model_name, "--train.max_steps", "3")
        folder = tmp_path / "out"
        longplay(["export", str(run), "--out", str(folder), "--checkpoint", "last"], tmp_path / "log")
    model = package.load(folder)
    history = histories(data, 1)[0][:30]
    session = model.session(history[:20])
    earlier = session.copy()
    for item in history[20:]:
        assert model.step(session, item) is session
    expected_ids, expected = model.recommend(history, top=10)
    item_ids, scores = session.recommend(top=10)
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert item_ids.tolist() == expected_ids.tolist()
    assert earlier.recommend(top=10)[0].tolist() == model.recommend(history[:20], top=10)[0].tolist()

    fresh = model.session()
    with pytest.raises(ValueError, match="no event yet"):
        fresh.recommend()
    for item in history:
        model.step(fresh, item)
    assert fresh.recommend(top=10)[1] == pytest.approx(scores, rel=1e-4, abs=1e-5)


def test_a_model_with_attention_has_no_sessions_but_recommends(data: Path, tmp_path: Path) -> None:
    run = trained(data, tmp_path, "--encoder.model", "sasrec", "--train.max_steps", "3")
    longplay(["export", str(run), "--out", str(tmp_path / "out")], tmp_path / "log")
    model = package.load(tmp_path / "out")
    history = histories(data, 1)[0]
    with pytest.raises(TypeError, match="sasrec"):
        model.session(history)
    expected = recommended(run, history, tmp_path, "--top", "5")
    assert model.recommend(history, top=5)[0].tolist() == [one["item_id"] for one in expected]


def test_unknown_items_are_dropped_with_a_warning(data: Path, exported: Path) -> None:
    model = package.load(exported)
    history = histories(data, 1)[0]
    unknown = int(max(model.items.original_ids)) + 1
    expected = model.recommend(history)[0].tolist()
    with pytest.warns(UserWarning, match=f"1 of {len(history) + 1} items are not in this model"):
        assert model.recommend([*history, unknown])[0].tolist() == expected
    session = model.session(history)
    with pytest.warns(UserWarning, match=f"item {unknown} is not an item"):
        model.step(session, unknown)
    assert session.recommend()[0].tolist() == expected
    for wrong, message in (
        ([unknown], "has no item"),
        ([], "is empty"),
        ([[history[0]], [unknown]], "history 1: has no item"),
        (["a"], "not a list of 64-bit integers"),
        ([1.5], "not a list of 64-bit integers"),
        (np.array([2**64 - 1], np.uint64), "not a list of 64-bit integers"),
        (50, r"history: 50 is not a list; give original item ids, oldest first, such as \[\d+\]"),
        (None, "history: None is not a list"),
        ({history[0]}, "is not a list"),
    ):
        with pytest.raises(ValueError, match=message):
            model.recommend(wrong)  # pyright: ignore[reportArgumentType] -- what is tested
    with pytest.raises(ValueError, match="top=0"):
        model.recommend(history, top=0)
    with pytest.raises(ValueError, match=f"{unknown} is not an item"):
        model.scores(history, [unknown])
    with pytest.raises(ValueError, match="history 1: is empty"):
        model.scores([history, []], history[:1])
    with pytest.raises(ValueError, match="history: is not a list"):
        model.session(50)  # pyright: ignore[reportArgumentType] -- what is tested


def test_an_empty_history_in_a_batch_has_an_empty_row(data: Path, exported: Path) -> None:
    model = package.load(exported)
    first, second = histories(data, 2)
    expected = model.recommend([first, second], top=5)
    for number, batch in enumerate(([[], first, second], [first, [], second], [first, second, []])):
        item_ids, scores = model.recommend(batch, top=5)
        assert item_ids.dtype == np.int64
        assert item_ids[number].tolist() == [-1] * 5
        assert np.isneginf(scores[number]).all()
        assert np.array_equal(np.delete(item_ids, number, 0), expected[0])
        assert np.array_equal(np.delete(scores, number, 0), expected[1])
    assert (model.recommend([[], []], top=5)[0] == -1).all()


def test_a_model_and_a_session_are_shown_in_one_short_line(data: Path, exported: Path) -> None:
    model = package.load(exported)
    session = model.session(histories(data, 1)[0])
    model.step(session, int(model.items.original_ids[0]))
    assert re.fullmatch(r"<ExportedModel mambarec of step-\d+, 300 items x 16, .*, cpu>", repr(model))
    assert re.fullmatch(r"<Session of <ExportedModel .*>, \d+ different items seen>", repr(session))


def test_equal_scores_are_ordered_by_item(exported: Path) -> None:
    rows = package.load(exported).rows
    rows.weight = rows.weight.clone()  # in memory: the file keeps its content
    rows.weight[1:200] = rows.weight[1]
    hidden = torch.randn(7, rows.width, generator=torch.Generator().manual_seed(3))
    hidden[0] = rows.weight[1] * 50
    excluded = [[1, 5], [], [], [250], [], [], []]
    scores = (hidden.double().unsqueeze(1) * rows.weight[1:].double()).sum(2)
    scores[[0, 0, 3], [0, 4, 249]] = -torch.inf
    expected_scores, expected = scores.sort(dim=1, descending=True, stable=True)
    items, best = rows.top(hidden, 40, excluded)
    assert items[0, :5].tolist() == [2, 3, 4, 6, 7]
    assert np.array_equal(items, expected[:, :40] + 1)
    assert np.array_equal(best, expected_scores[:, :40])


def test_load_imports_no_deepspeed_and_unpickles_nothing(exported: Path, data: Path) -> None:
    history = histories(data, 1)[0]
    code = f"""
import pickle, sys

def refuse(*args, **kwargs):
    raise AssertionError("something was unpickled")

import longplay
assert "torch" not in sys.modules
import torch
torch.load = pickle.load = pickle.loads = pickle.Unpickler = refuse
model = longplay.load({str(exported)!r}, verify=True)
print(model.recommend({history!r}, top=3)[0].tolist())
assert "deepspeed" not in sys.modules
assert not torch.distributed.is_initialized()
assert not any(name.startswith(("longplay.distributed", "longplay.launch")) for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == package.load(exported).recommend(history, top=3)[0].tolist()


def test_the_table_is_memory_mapped_not_copied(exported: Path) -> None:
    model = package.load(exported)
    assert isinstance(model, ExportedModel)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(exported) in line]
    begin, end = (int(part, 16) for part in mapped[0].split()[0].split("-"))
    assert begin <= model.rows.weight.data_ptr() < end


def test_the_package_has_a_version() -> None:
    assert package.__version__ == metadata.version("longplay")


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "is not a device"), ("cuda", "finds no CUDA device")]
)
def test_an_unusable_device_is_named(
    exported: Path, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device='{device}': .*{message}"):
        package.load(exported, device=device)


def test_an_encoder_that_is_not_imported_is_named(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    encoder = json.loads((copy / "config.json").read_text())["encoder"]
    edit_json(copy / "config.json", encoder={**encoder, "model": "my_encoder"})
    with pytest.raises(ValueError, match="'my_encoder' is not registered; import the module"):
        package.load(copy)


def test_warnings_point_to_the_calling_line(data: Path, exported: Path) -> None:
    model = package.load(exported)
    known = histories(data, 1)[0]
    session = model.session(known)
    for call in (
        lambda: model.recommend([*known, 10**12]),
        lambda: model.recommend([known, [*known, 10**12]]),
        lambda: model.step(session, 10**12),
    ):
        with pytest.warns(UserWarning, match="not") as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}
