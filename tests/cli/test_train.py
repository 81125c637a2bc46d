"""`longplay train`: repeated, killed, resumed, resized and evaluated."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.commands import Command, longplay
from support.runs import read_metrics, small_config, small_dataset, steps_logged

from longplay.common.json_files import JsonObject, read_json
from longplay.common.locks import FolderLock
from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.estimates import estimate_run as estimate_module
from longplay.launch.run_folders.metrics_file import read_scalars

EVERY = ["--train.checkpoint_every_steps", "3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete, undisturbed run of the `small` recipe."""
    folder = tmp_path_factory.mktemp("finished")
    longplay(train_words(data, folder / "run", *EVERY), folder / "log")
    return folder / "run"


def train_words(data: Path, run: Path, *overrides: str) -> list[str]:
    return ["train", "small", "--data", str(data), "--run", str(run), *overrides]


def last_state(run: Path) -> dict[str, str]:
    """The sha256 of every tensor file in the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    files = json.loads((newest / "state.json").read_text())["files"]
    return {"step": newest.name, **{name: recorded["sha256"] for name, recorded in files.items()}}


def assert_bitwise_equal(run: Path, expected: Path) -> None:
    for tag in (
        "train/loss",
        "optim/grad_norm",
        "eval_full/ndcg@10",
        "eval_full_unseen/mrr",
        "eval_sampled100/hit@10",
    ):
        assert read_metrics(expected, tag), tag
        assert read_metrics(run, tag) == read_metrics(expected, tag), tag
    assert last_state(run) == last_state(expected)


def test_same_seed_is_bitwise_identical_and_another_seed_is_not(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    on_a_cpu_no_change = ["--train.deterministic", "true"]
    longplay(train_words(data, tmp_path / "again", *EVERY, *on_a_cpu_no_change), tmp_path / "log")
    assert_bitwise_equal(tmp_path / "again", finished)
    longplay(train_words(data, tmp_path / "other", "--seed", "8", "--train.max_steps", "2"), tmp_path / "log")
    assert read_metrics(tmp_path / "other", "train/loss")[2] != read_metrics(finished, "train/loss")[2]


@pytest.mark.parametrize(
    "overrides",
    [[], ["--engine.gradient_accumulation_steps", "2", "--loss.name", "bce"]],
    ids=["plain", "accumulation"],
)
def test_run_killed_mid_epoch_resumes_bitwise_identically(
    data: Path, finished: Path, tmp_path: Path, overrides: list[str]
) -> None:
    expected = finished
    if overrides:
        expected = tmp_path / "whole"
        longplay(train_words(data, expected, *EVERY, *overrides), tmp_path / "log")
    words = train_words(data, tmp_path / "run", *EVERY, *overrides)
    for step in (5, 17):
        command = Command(words, tmp_path / "log")
        command.signal_when(signal.SIGKILL, lambda step=step: steps_logged(tmp_path / "run") >= step)
        command.wait()
    printed = longplay(words, tmp_path / "log")
    assert re.search(r"resuming from .*/step-0000000\d\d \(step \d+, read in [\d.]+ s\)", printed)
    assert_bitwise_equal(tmp_path / "run", expected)


def test_sigterm_saves_and_exits_with_the_requeue_code(data: Path, finished: Path, tmp_path: Path) -> None:
    words = train_words(data, tmp_path / "run", *EVERY)
    command = Command(words, tmp_path / "log", world_size=1)
    command.signal_when(signal.SIGTERM, lambda: steps_logged(tmp_path / "run") >= 4)
    assert command.wait() == 75
    assert "stopped on request at step" in (tmp_path / "log").read_text()
    longplay(words, tmp_path / "log")
    assert_bitwise_equal(tmp_path / "run", finished)


def damage(checkpoint: Path) -> Path:
    """Change the last byte of one of the checkpoint's files and return the file."""
    torn = next(checkpoint.glob("table-*"))
    content = torn.read_bytes()
    torn.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    return torn


def test_damaged_checkpoint_is_named_and_the_previous_one_is_loaded(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    words = train_words(data, tmp_path / "run", *EVERY)
    longplay([*words, "--train.max_steps", "12"], tmp_path / "log")
    torn = damage(max((tmp_path / "run/checkpoints").glob("step-*")))
    printed = longplay(words, tmp_path / "log")
    assert f"warning: {torn}: is damaged, its sha256 differs" in printed
    assert "resuming from" in printed
    assert_bitwise_equal(tmp_path / "run", finished)


def test_damaged_checkpoint_is_deleted_before_an_intact_older_one(data: Path, tmp_path: Path) -> None:
    words = train_words(data, tmp_path / "run", *EVERY)
    longplay([*words, "--train.max_steps", "12"], tmp_path / "log")
    checkpoints = tmp_path / "run" / "checkpoints"
    damage(checkpoints / "step-000000012")
    longplay([*words, "--train.max_steps", "10", "--train.keep_checkpoints", "1"], tmp_path / "log")
    assert max(checkpoints.glob("step-*")).name == "step-000000010"


def test_copies_and_checkpoints_of_other_runs_are_ignored_and_kept(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    other = train_words(data, tmp_path / "other", *EVERY, "--seed", "8", "--train.max_steps", "15")
    longplay(other, tmp_path / "log")
    words = train_words(data, tmp_path / "run", *EVERY)
    longplay([*words, "--train.max_steps", "12"], tmp_path / "log")
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("step-keep", "step-000000060.bak", "step-000000060"):
        shutil.copytree(checkpoints / "step-000000012", checkpoints / name)
    shutil.copytree(tmp_path / "other/checkpoints/step-000000015", checkpoints / "step-000000015")
    printed = longplay(words, tmp_path / "log")
    assert f"warning: {checkpoints}/step-000000060: is a renamed checkpoint of step 12" in printed
    assert f"warning: {checkpoints}/step-000000015: is another run's checkpoint" in printed
    assert "(step 12, read in" in printed
    kept = {path.name for path in checkpoints.iterdir()}
    assert {"step-keep", "step-000000060.bak", "step-000000060", "step-000000015.moved-1"} <= kept
    for name in ("step-keep", "step-000000060.bak", "step-000000060"):
        shutil.rmtree(checkpoints / name)
    shutil.rmtree(checkpoints / "step-000000015.moved-1")
    assert last_state(tmp_path / "run") == last_state(finished)


def test_a_second_command_is_refused_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    longplay(train_words(data, run, *EVERY, "--train.max_steps", "4"), tmp_path / "log")
    for folder in (run, tmp_path / "new"):  # another process is about to start a run in the second one
        folder.mkdir(exist_ok=True)
        with FolderLock(folder):
            before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            command = Command(train_words(data, folder, *EVERY, "--train.lr", "0.5"), tmp_path / "log")
            assert command.wait() == 2
            assert "another process is training in it" in (tmp_path / "log").read_text()
            assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
            assert (folder / "checkpoints").exists() == (folder == run)


@pytest.mark.parametrize("ranks", [1, 2])
def test_run_with_only_damaged_checkpoints_is_refused(data: Path, tmp_path: Path, ranks: int) -> None:
    words = train_words(data, tmp_path / "run", *EVERY)
    longplay([*words, "--train.max_steps", "4"], tmp_path / "log")
    checkpoints = tmp_path / "run" / "checkpoints"
    torn = [damage(checkpoint) for checkpoint in checkpoints.glob("step-*")]
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    command = Command(words, tmp_path / "log", world_size=ranks)
    assert command.wait() in (2, 3 - ranks)  # the rank that fails first exits with 2, the others with 1
    (message,) = (line for line in (tmp_path / "log").read_text().splitlines() if "error" in line)
    assert f"no checkpoint in {checkpoints} can be loaded: " in message
    assert all(str(file) in message for file in torn)
    assert f"Nothing was changed; restore one, or remove {checkpoints} to start from the beginning" in message
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != ".lock")
    shutil.rmtree(checkpoints)
    longplay([*words, "--train.max_steps", "4"], tmp_path / "log")
    assert (max(checkpoints.glob("step-*")) / "state.json").is_file()


def test_resuming_a_finished_run_prints_so_and_changes_nothing(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    printed = longplay(train_words(data, finished, *EVERY), tmp_path / "log")
    assert "nothing left to do: train.max_epochs 4 reached" in printed
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_run_folder_records_settings_metrics_and_the_best_checkpoint(data: Path, finished: Path) -> None:
    saved = json.loads((finished / "config.json").read_text())
    assert saved["config"]["context_length"] == saved["config"]["encoder"]["context_length"] == 40
    assert saved["packages"]["torch"]
    assert saved["data"] == str(data)
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert set(read_scalars(finished)) >= {
        *("train/loss", "optim/lr", "optim/grad_norm", "perf/events_per_s", "perf/data_wait_ms"),
        *("perf/padding_fraction", "comm/table_bytes", "memory/peak_gib", "eval_full/ndcg@10"),
    }
    best = json.loads((finished / "best.json").read_text())
    values = read_metrics(finished, "eval_full_unseen/ndcg@10")
    assert best["value"] == max(values.values())
    assert (finished / "checkpoints" / best["checkpoint"]).is_dir()


def test_a_resumed_run_names_changed_settings_and_restarts_the_best_of_a_changed_metric(
    data: Path, tmp_path: Path
) -> None:
    words = train_words(data, tmp_path / "run", *EVERY)
    printed = longplay([*words, "--train.max_steps", "10"], tmp_path / "log")
    assert "changed" not in printed
    metric = "sampled100/hit@20"
    words += ["--train.lr", "0.002"]
    printed = longplay([*words, "--train.max_steps", "11"], tmp_path / "log")
    assert "changed  train.lr: 0.01 -> 0.002\n" in printed
    printed = longplay([*words, "--train.max_steps", "12", "--train.metric", metric], tmp_path / "log")
    assert (
        f"changed  train.metric: full_unseen/ndcg@10 -> {metric}; the best validation is counted from here\n"
        in printed
    )
    values = read_metrics(tmp_path / "run", f"eval_{metric}")
    best = {"checkpoint": "step-000000012", "metric": metric, "value": values[12], "step": 12}
    assert read_json(tmp_path / "run/best.json", JsonObject) == best
    # The values of the next metric are all below the best of the last one.
    words += ["--train.metric", "full/ndcg@5", "--train.eval_every_steps", "9"]
    longplay([*words, "--train.max_steps", "16"], tmp_path / "log")
    best = json.loads((tmp_path / "run/best.json").read_text())
    assert best["step"] == 16
    assert best["value"] == read_metrics(tmp_path / "run", "eval_full/ndcg@5")[16]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_gpu_matches_cpu(data: Path, tmp_path: Path, placement: str, optimizer: str) -> None:
    settings = ["--loss.name", "bce", "--table.optimizer.name", optimizer]
    longplay(train_words(data, tmp_path / "cpu", *settings), tmp_path / "log", fresh=True)
    settings += ["--train.device", "cuda", "--table.placement", placement]
    longplay(train_words(data, tmp_path / "gpu", *settings), tmp_path / "log", fresh=True)
    for tag in ("train/loss", "optim/grad_norm", "eval_full/ndcg@10"):
        on_cpu, on_gpu = (read_metrics(tmp_path / name, tag) for name in ("cpu", "gpu"))
        assert on_gpu == pytest.approx(on_cpu, rel=2e-2, abs=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("model", ["mambarec", "sasrec", "gru4rec"])
def test_deterministic_runs_on_a_gpu_are_bitwise_identical(data: Path, tmp_path: Path, model: str) -> None:
    settings = ["--encoder.model", model, "--train.device", "cuda", "--train.deterministic", "true", *EVERY]
    for name in ("first", "second"):
        longplay(train_words(data, tmp_path / name, *settings), tmp_path / "log", fresh=True)
    assert_bitwise_equal(tmp_path / "second", tmp_path / "first")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_train_bitwise_the_same_weights(data: Path, tmp_path: Path, precision: str) -> None:
    settings = ["--train.device", "cuda", "--train.deterministic", "true", "--loss.name", "bce"]
    settings += ["--engine.precision", precision]
    for graphed in ("false", "true"):
        words = train_words(data, tmp_path / graphed, *settings, "--engine.cuda_graph", graphed)
        longplay(words, tmp_path / "log", fresh=True)
    assert_bitwise_equal(tmp_path / "true", tmp_path / "false")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cached_rows_train_bitwise_the_same_weights(data: Path, tmp_path: Path) -> None:
    settings = ["--train.device", "cuda", "--train.deterministic", "true", "--loss.name", "bce"]
    settings += ["--table.placement", "host"]
    for rows in ("0", "50"):
        words = train_words(data, tmp_path / rows, *settings, "--table.cached_rows", rows)
        longplay(words, tmp_path / "log", fresh=True)
    assert_bitwise_equal(tmp_path / "50", tmp_path / "0")


def test_run_stops_after_patience_validations(data: Path, tmp_path: Path) -> None:
    words = train_words(data, tmp_path / "run", "--train.lr", "1e-9", "--train.patience", "2")
    printed = longplay([*words, "--train.eval_every_steps", "2"], tmp_path / "log")
    assert "no better full_unseen/ndcg@10 in 2 validations" in printed


def limit_memory(num_bytes: int, rank: int) -> None:
    """Let each rank find this memory."""
    estimate_module.available_memory = lambda *_: (num_bytes, "here")  # type: ignore[assignment]  # in a process of its own


def test_a_run_somewhat_above_the_limit_starts_with_a_warning(data: Path, tmp_path: Path) -> None:
    needed = estimate_module.estimate_run(small_config(), Dataset.open(data), device_type="cpu").total_bytes
    words = train_words(data, tmp_path / "run", "--train.max_steps", "1")
    limit = functools.partial(limit_memory, int(0.9 * needed))
    assert Command(words, tmp_path / "log", fault=limit).wait() == 0
    warned = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("warning: ")]
    assert len(warned) == 1
    assert re.search(r"needs about [\d.]+ GiB per rank, more than [\d.]+ GiB \(here\)", warned[0])


def test_validations_within_an_epoch_show_its_fraction(data: Path, tmp_path: Path) -> None:
    words = train_words(data, tmp_path / "run", "--train.eval_every_steps", "1", "--train.max_steps", "2")
    printed = longplay(words, tmp_path / "log")
    assert re.search(r"step 1  epoch 0\.\d+  train", printed)


def test_run_that_cannot_fit_is_refused_before_it_starts(data: Path, tmp_path: Path) -> None:
    words = train_words(data, tmp_path / "a/run", "--encoder.d_model", "16384", "--encoder.num_blocks", "64")
    assert Command(words, tmp_path / "log").wait() == 2
    assert not (tmp_path / "a").exists()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert re.search(
        r"needs at least [\d.,]+ GiB per rank, more than .*; lower --encoder\.d_model, or another", last
    ), last


def test_evaluate_prints_the_same_json_for_any_number_of_ranks(finished: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(finished), "--split", "test", "--json", "--baseline"]
    reports = []
    for world_size in (1, 2):
        report = json.loads(longplay(words, tmp_path / "log", world_size=world_size))
        for name in ("seconds", "ranks", "peak_gib"):
            report.pop(name, None)
        reports.append(report)
    assert reports[0] == reports[1]
    report = reports[0]
    assert report["num_users"] == 200
    for kind in ("full", "full_unseen", "sampled100"):
        assert {f"{m}@{k}" for m in ("hit", "ndcg") for k in (5, 10, 20)} | {"mrr"} <= set(report[kind])
        assert 0 <= report[kind]["hit@10"] <= 1
    assert report["full"]["hit@10"] <= report["full_unseen"]["hit@10"] <= report["sampled100"]["hit@10"]


def test_recommend_prints_original_ids_of_unseen_items(data: Path, finished: Path, tmp_path: Path) -> None:
    seen = Dataset.open(data).items.originals(np.array([1, 2, 3])).tolist()
    history = tmp_path / "ids.txt"
    history.write_text("".join(f"{item}\n" for item in seen))
    words = ["recommend", str(finished), "--history", str(history), "--top", "7"]
    ranked = json.loads(longplay([*words, "--json"], tmp_path / "log"))
    assert len(ranked) == 7
    assert not set(seen) & {entry["item_id"] for entry in ranked}
    scores = [entry["score"] for entry in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(longplay(words, tmp_path / "log").splitlines()) == 7


@pytest.mark.parametrize("content", ["\ufeff{}\r\n{}\r\n{}\r\n", "{}.0\n{}.0, {}.0", "{:+d}\t{}\n\n{}"])
def test_recommend_reads_ids_as_prepare_does(
    data: Path, finished: Path, tmp_path: Path, content: str
) -> None:
    items = Dataset.open(data).items.originals(np.array([1, 2, 3])).tolist()
    printed = []
    for form in ("{} {} {}", content):
        (tmp_path / "ids.txt").write_bytes(form.format(*items).encode())
        words = ["recommend", str(finished), "--history", str(tmp_path / "ids.txt"), "--json"]
        printed.append(longplay(words, tmp_path / "log"))
    assert printed[0] == printed[1]


def test_torchrun_matches_a_plain_command(data: Path, tmp_path: Path) -> None:
    words = ["mambarec", "--data", str(data), "--context_length", "40", "--encoder.d_model", "16"]
    words += ["--train.max_steps", "3", "--train.log_every_steps", "1"]
    longplay(["train", *words, "--run-dir", str(tmp_path / "plain")], tmp_path / "log")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "longplay.launch.train", *words, "--run-dir", str(tmp_path / "torchrun")],
        env=dict(os.environ, OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "finished at step 3" in done.stdout
    plain_losses, torchrun_losses = (
        read_metrics(tmp_path / name, "train/loss") for name in ("plain", "torchrun")
    )
    assert torchrun_losses == pytest.approx(plain_losses, rel=1e-5)
