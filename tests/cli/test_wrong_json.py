"""JSON files with any content: one clear line that names the file, or the checkpoint before is taken."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from support.commands import longplay
from support.made_up_sweeps import MadeUpSweep, made_up_run
from support.runs import small_config, small_dataset
from support.wrong_json import NOT_OBJECTS, contents, edits

from longplay.common.json_files import JsonObject, read_json, sealed
from longplay.common.tensor_file import TensorFile
from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.storage.inspection import inspect_dataset
from longplay.distributed.checkpoints.checkpoint import latest_checkpoint
from longplay.launch.cli import main
from longplay.launch.evaluation.loading import find_checkpoint, open_dataset
from longplay.launch.reports.data import collect
from longplay.launch.run_folders.metrics_file import METRICS_FILE, drop_scalars_after, read_scalars
from longplay.launch.run_folders.run_folder import RunFolder
from longplay.launch.settings.saved import changed_on_resume, changed_settings, read_config
from longplay.launch.sweeps.folder import open_sweep
from longplay.launch.sweeps.status import sweep_status
from longplay.launch.training.progress import RunState, read_progress
from longplay.serving.export_format import ExportError, read_export_config
from longplay.serving.exported_model import ExportedModel

EXAMPLES = hypothesis.settings(max_examples=int(os.environ.get("LONGPLAY_EXAMPLES", "100")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, an evaluated run of two epochs, its export and a sweep of two runs."""
    folder = tmp_path_factory.mktemp("json")
    data, run = small_dataset(folder), folder / "run"
    words = ["train", "small", "--data", str(data), "--run", str(run), "--train.max_epochs", "2"]
    longplay([*words, "--train.keep_checkpoints", "2"], folder / "log")
    longplay(["evaluate", str(run)], folder / "log")
    longplay(["export", str(run), "--out", str(folder / "export")], folder / "log")
    sweep = MadeUpSweep(folder / "sweep")
    made_up_run(sweep.add(seed=0, job_id="4000000"), seed=0)
    made_up_run(sweep.add(seed=1), seed=1, hit10=None)
    sweep.write()
    return folder


def check_refusal(use: Callable[[], Any], file: Path) -> None:
    """Check that `use` succeeds, or raises what a command prints as one line with the file's name."""
    try:
        use()
    except ValueError as error:
        message = str(error)
        assert file.name in message or file.parent.name in message
        assert len(message) < 800
        assert "\n" not in message


def damaged(file: Path, content: bytes, use: Callable[[], Any]) -> None:
    """Check `use` while `file` has another content."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        check_refusal(use, file)
    finally:
        file.write_bytes(before)


# ---------------------------------------------------------------------- the commands

FILES = {
    "data/manifest.json": (["inspect", "data"], ["train", "demo", "--data", "data", "--run", "new"]),
    "run/config.json": (
        ["evaluate", "run"],
        ["recommend", "run", "--user", "1"],
        ["export", "run", "--out", "new"],
        ["train", "mambarec", "--data", "data", "--run", "run"],
        ["report", "run"],
    ),
    "run/best.json": (["evaluate", "run"], ["export", "run", "--out", "new"]),
    "sweep/sweep.json": (
        ["sweep", "--out", "sweep", "--status"],
        ["sweep", "--out", "sweep", "--cancel"],
        ["report", "sweep"],
    ),
}


@pytest.mark.parametrize("content", NOT_OBJECTS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_not_the_expected_json_is_named_in_one_line(
    folders: Path,
    file: str,
    content: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folders)
    before = Path(file).read_bytes()
    Path(file).write_bytes(NOT_OBJECTS[content])
    try:
        for words in FILES[file]:
            capsys.readouterr()
            assert main(words) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("longplay: error: ")
            assert file.split("/")[0] in line
            assert len(line) < 500
    finally:
        Path(file).write_bytes(before)


@pytest.mark.parametrize("setting", ["context_length", "num_blocks", "d_model", "d_state", "expand"])
def test_another_model_in_config_json_is_refused_before_it_is_built(
    folders: Path, tmp_path: Path, setting: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folders / "run", tmp_path / "run")
    saved = json.loads((run / "config.json").read_text())
    saved["config"]["encoder"]["positional_embedding"] = True
    saved["config"]["encoder"][setting] = 1000 if setting == "num_blocks" else 1_000_000_000
    (run / "config.json").write_text(json.dumps(saved))
    assert main(["evaluate", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"other settings than step-.*; restore the file|more than 2\^63 bytes", line), line


def test_other_weights_in_an_export_are_refused_in_a_short_line(folders: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(folders / "export", tmp_path / "export")
    saved = read_json(folder / "config.json", JsonObject)
    saved["encoder"]["num_blocks"] = 100
    (folder / "config.json").write_text(json.dumps(sealed(saved)))
    check_refusal(lambda: ExportedModel.load(folder), folder / "encoder.safetensors")


@pytest.mark.parametrize("setting", ["context_length", "d_ff", "d_state", "expand"])
def test_another_model_in_an_export_is_refused_before_it_is_built(
    folders: Path, tmp_path: Path, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(folders / "export", tmp_path / "export")
    saved = read_json(folder / "config.json", JsonObject)
    saved["encoder"] |= {"model": "recmamba", "positional_embedding": True}
    saved["encoder"][setting] = 1000 if setting == "num_blocks" else 1_000_000_000
    (folder / "config.json").write_text(json.dumps(sealed(saved)))
    monkeypatch.setattr("longplay.serving.export_files.build_encoder", lambda *_, **__: pytest.fail("built"))
    with pytest.raises(ExportError, match=r"does not fit config\.json \(.*; export the run again") as raised:
        ExportedModel.load(folder)
    assert "encoder.safetensors" in str(raised.value)


# ---------------------------------------------------------------------- any value in any field


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_config_json_is_read_or_refused(folders: Path, data: st.DataObject) -> None:
    run = folders / "run"
    dataset, config = Dataset.open(folders / "data"), read_config(run)

    def use() -> None:
        RunFolder(run).check(config, dataset)
        read_config(run)
        open_dataset(run, None)
        find_checkpoint(run, "best")
        assert not changed_settings(config, read_config(run))

    file = run / "config.json"
    content = data.draw(contents(json.loads(file.read_text())))
    damaged(file, content, use)
    damaged(file, content, lambda: collect([run]))


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_manifest_json_is_read_or_refused(folders: Path, data: st.DataObject) -> None:
    file = folders / "data" / "manifest.json"
    content = data.draw(contents(json.loads(file.read_text())))
    intact = Dataset.open(file.parent).manifest

    def use() -> None:
        dataset = Dataset.open(file.parent)
        assert dataset.manifest == intact
        inspect_dataset(dataset)

    damaged(file, content, use)


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_sweep_json_is_read_or_refused(folders: Path, data: st.DataObject) -> None:
    file = folders / "sweep" / "sweep.json"
    content = data.draw(contents(json.loads(file.read_text())))
    damaged(file, content, lambda: sweep_status(open_sweep(file.parent)))
    damaged(file, content, lambda: collect([file.parent]))


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("manifest.json", "schema_version", 10**3000),
        ("sweep.json", "recipe", ""),
        ("sweep.json", "recipe", "x"),
    ],
)
def test_a_wrong_value_is_shown_shortened_and_with_its_file(
    folders: Path, file: str, field: str, value: Any
) -> None:
    path = folders / ("data" if file == "manifest.json" else "sweep") / file
    document = read_json(path, JsonObject)
    place = document if file == "manifest.json" else next(iter(document["jobs"].values()))
    place[field] = value
    use = Dataset.open if file == "manifest.json" else open_sweep
    damaged(path, json.dumps(sealed(document)).encode(), lambda: use(path.parent))


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_best_json_is_read_or_refused(folders: Path, data: st.DataObject) -> None:
    file = folders / "run" / "best.json"
    content = data.draw(contents(json.loads(file.read_text())))
    best = find_checkpoint(file.parent, "best").path

    def use() -> None:
        assert find_checkpoint(file.parent, "best").path == best

    damaged(file, content, use)
    damaged(file, content, lambda: collect([file.parent]))


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_evaluation_is_read_or_reported_as_damaged(folders: Path, data: st.DataObject) -> None:
    file = folders / "run" / "evaluation" / "test.json"
    content = data.draw(contents(json.loads(file.read_text())))
    damaged(file, content, lambda: collect([folders / "run"]))


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_line_of_metrics_jsonl_is_read_or_skipped(folders: Path, data: st.DataObject) -> None:
    run = folders / "run"
    file = run / METRICS_FILE
    lines = file.read_bytes().splitlines(keepends=True)
    expected = read_scalars(run)
    new = data.draw(contents(json.loads(lines[0])))

    def use() -> None:
        found = read_scalars(run)
        assert all(found[tag].items() >= series.items() for tag, series in expected.items())
        collect([run])
        drop_scalars_after(run, 10**9)

    damaged(file, b"".join([*lines, new.replace(b"\n", b" "), b"\n", *lines]), use)


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_config_json_of_an_export_is_read_or_refused(folders: Path, data: st.DataObject) -> None:
    file = folders / "export" / "config.json"
    content = data.draw(contents(json.loads(file.read_text())))
    intact = read_export_config(file.parent)

    def use() -> None:
        ExportedModel.load(file.parent)
        assert read_export_config(file.parent) == intact

    damaged(file, content, use)


@EXAMPLES
@hypothesis.given(data=st.data())
def test_any_header_of_a_tensor_file_is_read_or_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    file = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    header = {"__metadata__": {"format": "pt"}, "x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    content = data.draw(contents(header))
    file.write_bytes(len(content).to_bytes(8, "little") + content + bytes(8))

    def use() -> None:
        with TensorFile(file) as opened:
            for name in opened.names():
                opened.read(name)

    check_refusal(use, file)


# ---------------------------------------------------------------------- state.json


@EXAMPLES
@hypothesis.given(data=st.data(), signed=st.booleans())
def test_a_damaged_state_json_gives_the_checkpoint_before(
    folders: Path, data: st.DataObject, signed: bool
) -> None:
    """`signed`: the checksum in the file fits the damaged content."""
    root = folders / "run" / "checkpoints"
    first, last = sorted(root.iterdir())
    owner = RunFolder(folders / "run").owner()
    file = last / "state.json"
    before = file.read_bytes()
    state = json.loads(before)
    del state["sha256"]
    edited = data.draw(edits(state))
    if signed and edited != state:
        file.write_text(json.dumps(sealed(edited)))
    else:
        file.write_bytes(data.draw(contents(json.loads(before))))
    try:
        found, problems = latest_checkpoint(root, owner=owner, shape=RunState)
        assert found is not None
        assert found.path in (first, last)
        assert (found.path == first) == (last in problems)
        read_progress(found)
        changed_on_resume(found.state["config"], small_config())
    finally:
        file.write_bytes(before)


def test_fields_of_another_version_in_a_progress_are_ignored(folders: Path) -> None:
    found, _ = latest_checkpoint(folders / "run" / "checkpoints", shape=RunState)
    assert found is not None
    found.state["progress"]["of another version"] = 1
    assert read_progress(found).step == found.step


@pytest.mark.parametrize("content", ["a list", "nested lists", "not text"])
def test_training_resumes_from_the_checkpoint_before_a_damaged_state(
    folders: Path, tmp_path: Path, content: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    first, last = sorted((run / "checkpoints").iterdir())
    (last / "state.json").write_bytes(NOT_OBJECTS[content])
    words = ["train", "small", "--data", str(folders / "data"), "--run", str(run), "--train.max_epochs", "2"]
    printed = longplay(words, tmp_path / "log")
    assert f"resuming from {first}" in printed
    assert f"warning: {last}" in printed
