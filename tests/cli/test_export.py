"""`longplay export` and `longplay.load`: an exported model recommends what the run recommends."""

import json
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from support.commands import Command, longplay
from support.runs import small_dataset

import longplay as package
from longplay.data_shards.storage.dataset import Dataset
from longplay.distributed.checkpoints.checkpoint import Checkpoint, open_checkpoint
from longplay.distributed.runtime.errors import CheckpointError
from longplay.distributed.table.row_order import RowOrder
from longplay.launch.cli import main
from longplay.launch.exports.item_table import write_table
from longplay.serving.export_format import ExportError
from longplay.serving.exported_model import ExportedModel

pytestmark = pytest.mark.xdist_group("export")  # one worker: the fixtures of the module are slow

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(data, tmp_path_factory.mktemp("run"), world_size=2)


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    printed = longplay(["export", str(run), "--out", str(folder)], folder.parent / "log")
    assert f"longplay.load({str(folder)!r})" in printed
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    return folder


def trained(data: Path, folder: Path, *overrides: str, world_size: int = 1) -> Path:
    words = ["train", "small", "--data", str(data), "--run", str(folder / "run"), "--train.max_epochs", "2"]
    longplay([*words, *overrides], folder / "train.log", world_size=world_size)
    return folder / "run"


def recommended(run: Path, history: list[int], folder: Path, *words: str) -> list[dict[str, Any]]:
    """Return what `longplay recommend --json` prints after a history."""
    (folder / "ids.txt").write_text(" ".join(map(str, history)))
    words = ("recommend", str(run), "--history", str(folder / "ids.txt"), "--json", *words)
    return json.loads(longplay(list(words), folder / "recommend.log").splitlines()[-1])


def histories(data: Path, count: int) -> list[list[int]]:
    dataset = Dataset.open(data)
    users = np.argsort(-dataset.lengths)[:: dataset.num_users // count][:count]
    return [dataset.items.originals(dataset.sequence(int(user))[0]).tolist() for user in users]


def test_the_files_hold_the_checkpoint_in_item_order(run: Path, data: Path, exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    dataset = Dataset.open(data)
    assert config["dataset_id"] == dataset.dataset_id
    assert (config["num_items"], config["context_length"], config["format_version"]) == (
        dataset.num_items,
        40,
        1,
    )
    best = json.loads((run / "best.json").read_text())
    assert config["checkpoint"]["name"] == best["checkpoint"]
    assert config["checkpoint"]["metrics"][best["metric"]] == best["value"]

    table = load_file(exported / "item_table.safetensors")["weight"]
    assert table.shape == (dataset.num_items + 1, 16)
    assert torch.equal(table[0], torch.zeros(16))
    checkpoint = open_checkpoint(run / "checkpoints" / best["checkpoint"])
    files = [load_file(file)["weight"] for file in sorted(checkpoint.path.glob("table-*"))]
    assert len(files) == 2
    by_position = torch.cat(files)
    model = package.load(exported, verify=True)
    assert torch.equal(model.rows.weight, table)
    assert torch.equal(
        table[1:], by_position[RowOrder(dataset.num_items).positions(torch.arange(1, len(table)))]
    )
    items = pl.read_parquet(exported / "items.parquet")
    assert items.equals(pl.read_parquet(data / "items.parquet").select(items.columns).cast(items.schema))  # pyright: ignore[reportArgumentType] -- a schema is a mapping


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
    excluded = torch.tensor([[0, 1], [0, 5], [3, 250]])
    scores = (hidden.double().unsqueeze(1) * rows.weight[1:].double()).sum(2)
    scores[excluded[:, 0], excluded[:, 1] - 1] = -torch.inf
    expected_scores, expected = scores.sort(dim=1, descending=True, stable=True)
    items, best = rows.top(hidden, 40, excluded)
    assert items[0, :5].tolist() == [2, 3, 4, 6, 7]
    assert torch.equal(items, expected[:, :40] + 1)
    assert torch.equal(best, expected_scores[:, :40])


def test_block_size_does_not_change_the_written_table(run: Path, exported: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(max((run / "checkpoints").glob("step-*")))
    sums = [write_table(tmp_path / "table", checkpoint, block_bytes) for block_bytes in (64, 4096, 1 << 30)]
    assert len({written.sha256 for written in sums}) == 1
    shutil.copytree(checkpoint.path, tmp_path / "copy")
    (tmp_path / "copy" / "table-junk.safetensors").write_text("junk")
    copy = Checkpoint(path=tmp_path / "copy", state=checkpoint.state)
    assert write_table(tmp_path / "table", copy).sha256 == sums[0].sha256
    files = dict(checkpoint.state["files"])
    del files[min(name for name in files if name.startswith("table-"))]
    torn = Checkpoint(path=checkpoint.path, state={**checkpoint.state, "files": files})
    with pytest.raises(CheckpointError, match="lacks 150 rows"):
        write_table(tmp_path / "table", torn)


def test_overwrite_replaces_an_export_and_nothing_else(run: Path, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    words = ["export", str(run), "--out", str(folder)]
    command = Command(words, tmp_path / "log")
    assert command.wait() == 2
    assert "add --overwrite" in command.output.read_text()
    before = json.loads((folder / "config.json").read_text())
    longplay([*words, "--overwrite", "--checkpoint", "last"], tmp_path / "log")
    assert json.loads((folder / "config.json").read_text())["files"].keys() == before["files"].keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "model"]

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    command = Command(["export", str(run), "--out", str(tmp_path / "other"), "--overwrite"], tmp_path / "log")
    assert command.wait() == 2
    assert "exists and is not an export; give another folder" in command.output.read_text()
    assert (tmp_path / "other" / "thesis.txt").exists()


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("kib", [1, 8, 16])
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(
    run: Path, tmp_path: Path, kib: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of the size of files stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, limits[1]))
    try:
        assert main(["export", str(run), "--out", str(tmp_path / "model")]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(
        r"--out .*model: cannot be written \(.*File too large.*\); free disk space, or give", line
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "is not an export"),
        (lambda folder: (folder / "config.json").unlink(), "is not an export"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "is not an export"),
        (lambda folder: edit_config(folder, format_version=2), "format version 2 is not 1"),
        (lambda folder: edit_config(folder, encoder={"model": "bert4rec"}), "is damaged"),
        (lambda folder: edit_config(folder, files={}), "does not list"),
        (lambda folder: edit_config(folder, num_items=299), "is not an fp32 table of 300 x 16"),
        (lambda folder: (folder / "items.parquet").unlink(), "is missing"),
        (lambda folder: flip(folder / "encoder.safetensors", -1), "sha256 differs"),
        (lambda folder: flip(folder / "item_table.safetensors", 0), "invalid header"),
        (lambda folder: flip(folder / "items.parquet", 99), "sha256 differs"),
        (lambda folder: (folder / "item_table.safetensors").write_bytes(b"abc"), "bytes long"),
    ],
)
def test_a_damaged_export_is_refused(exported: Path, tmp_path: Path, harm: Any, message: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    harm(folder)
    with pytest.raises(ExportError, match=message):
        package.load(folder)


def test_verify_finds_a_changed_row(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    flip(folder / "item_table.safetensors", -1)
    package.load(folder)
    with pytest.raises(ExportError, match="sha256 differs"):
        package.load(folder, verify=True)


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 0xFF
    file.write_bytes(content)


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


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_all_folders(tmp_path: Path) -> None:
    source = tmp_path / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        wanted = name.endswith((".py", ".cpp", ".toml", "README.md", "LICENSE", "py.typed"))
        if wanted and not name.startswith(".typing"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True, timeout=120
    )
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(target)
    assert {"longplay/__init__.py", "longplay/py.typed"} <= set(names)
    for folder in ("data_shards", "models", "distributed", "serving", "launch"):
        ours = {f"longplay/{folder}/{path.name}" for path in (source / folder).glob("*.py")}
        assert ours <= set(names)
    code = "import longplay, longplay.launch.cli, longplay.serving.exported_model as e; print(e.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {[str(target), *sys.path]!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.stdout.startswith(str(target))
