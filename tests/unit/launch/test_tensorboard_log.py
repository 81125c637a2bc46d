"""TensorBoard serves the curves, settings and final metrics of runs, and a browser draws them."""

import itertools
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from support.runs import small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from longplay.launch.run_folders.metrics_file import METRICS_FILE, parse_scalars
from longplay.launch.run_folders.metrics_log import MetricsLog
from longplay.launch.run_folders.tensorboard_log import gate_picture, row_norms, write_final_metrics
from longplay.launch.settings.resolving import to_json

GATE = {"block0/mamba": 0.7, "block0/attention": 0.3, "block1/mamba": 0.2, "block1/attention": 0.8}
MODELS = ("sasrec", "moematrrec")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def begun_run(path: Path, model: str) -> Path:
    path.mkdir(parents=True)
    about = {"config": to_json(small_config(model=model)), "data": "/data/ml1m", "dataset_id": "id"}
    (path / "config.json").write_text(json.dumps(about))
    return path


def logged_run(path: Path, model: str) -> Path:
    """Write a run that was killed after step 14, resumed from step 10, ended at step 20 and was evaluated."""
    begun_run(path, model)
    killed = MetricsLog(path, from_step=0)
    for step in range(1, 15):
        killed.write(step, {"train/loss": 5 - step / 10 if step <= 10 else 99.0})
    killed.close()
    log = MetricsLog(path, from_step=10)
    for step in range(11, 21):
        log.write(step, {"train/loss": 5 - step / 10})
    shard = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    log.write_model(20, GATE if model == "moematrrec" else {}, shard)
    log.close()
    hit10 = 0.1 + 0.1 * MODELS.index(model)
    metrics = {"full_unseen": {"hit@10": hit10, "hit@10_se": 0.01, "ndcg@10": float("nan")}}
    write_final_metrics(path, "test", 20, {"full_unseen": {"hit@10": 0.9}})
    write_final_metrics(path, "test", 20, metrics)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        write_event_files_a_second_apart(patch)
        for model in MODELS:
            logged_run(folder / model, model)
    return folder


def write_event_files_a_second_apart(patch: pytest.MonkeyPatch) -> None:
    """Give each event file a later second in its name; TensorBoard reads the files in the order of names.

    Files of one second are ordered by a counter without leading zeros, where 10 comes before 9.
    """
    clock = SimpleNamespace(time=itertools.count(1_000_000_000).__next__)
    patch.setattr("tensorboard.summary.writer.event_file_writer.time", clock)


@pytest.fixture(scope="module")
def tensorboard(runs: Path) -> Iterator[str]:
    """Start TensorBoard for `runs` on a free local port and yield its address."""
    output = runs.parent / "tensorboard.log"
    words = ["--logdir", str(runs), "--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with open(output, "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "tensorboard.main", *words], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        found = wait_for(lambda: re.search(r"http://127\.0\.0\.1:\d+", output.read_text()), server, output)
        address = found[0]
        wait_for(lambda: len(fetch(address, "scalars/tags")) == len(MODELS), server, output)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def wait_for(reached: Any, server: subprocess.Popen, output: Path, timeout_s: float = 60.0) -> Any:
    """Poll `reached` until it returns a true value, and return that value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = reached()
        if value:
            return value
        assert server.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)


def fetch(address: str, what: str, body: Any = None, **query: str) -> Any:
    url = f"{address}/data/plugin/{what}?{urllib.parse.urlencode(query)}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def test_a_resumed_run_continues_its_curve(tensorboard: str) -> None:
    points = fetch(tensorboard, "scalars/scalars", run="sasrec/tensorboard", tag="train/loss")
    assert [step for _, step, _ in points] == list(range(1, 21))
    assert [value for _, _, value in points] == pytest.approx([5 - step / 10 for step in range(1, 21)])


@pytest.mark.parametrize("from_step", [0, 3])
def test_no_step_is_shown_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, from_step: int) -> None:
    write_event_files_a_second_apart(monkeypatch)
    begun_run(tmp_path / "run", "sasrec")
    for first in (0, from_step, from_step):
        log = MetricsLog(tmp_path / "run", from_step=first)
        for step in range(first + 1, 6):
            log.write(step, {"train/loss": 9.0})
        log.close()
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    lines = (tmp_path / "run" / METRICS_FILE).read_text().splitlines()
    assert [scalar.step for scalar in parse_scalars(lines)] == [1, 2, 3, 4, 5]


def test_settings_and_final_metrics_of_all_runs_are_on_one_page(tensorboard: str, runs: Path) -> None:
    assert [path.name for path in runs.rglob("*") if path.is_dir() and path.parent != runs] == [
        *("tensorboard", "tensorboard")
    ]
    wanted = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING"],
        "startIndex": 0,
        "sliceSize": 10,
        "colParams": [],
    }
    groups = fetch(tensorboard, "hparams/session_groups", wanted)["sessionGroups"]
    found = {group["hparams"]["encoder.model"]: group for group in groups}
    assert set(found) == set(MODELS)
    for model, group in found.items():
        assert group["hparams"]["dataset"] == "ml1m"
        assert (group["hparams"]["context_length"], group["hparams"]["seed"]) == (40, 7)
        metrics = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        assert metrics == {"test_full_unseen/hit@10": pytest.approx(0.1 + 0.1 * MODELS.index(model))}
        assert group["sessions"][0]["status"] == "STATUS_SUCCESS"
    columns = fetch(tensorboard, "hparams/experiment", {"experimentName": "", "hparamsLimit": 5})
    assert {info["name"] for info in columns["hparamInfos"]} == {
        *("dataset", "encoder.model", "context_length", "seed", "train.lr")
    }
    assert {info["name"]["tag"] for info in columns["metricInfos"]} >= {"test_sampled100/ndcg@20"}


def test_a_validation_logs_the_gate_and_the_row_norms(tensorboard: str) -> None:
    assert fetch(tensorboard, "images/tags")["moematrrec/tensorboard"].keys() == {"gate/mixing_weights"}
    assert not fetch(tensorboard, "images/tags").get("sasrec/tensorboard")
    gate = fetch(tensorboard, "scalars/scalars", run="moematrrec/tensorboard", tag="gate/block1/attention")
    assert [(step, value) for _, step, value in gate] == [(20, pytest.approx(0.8))]
    ((_, step, bins),) = fetch(
        tensorboard, "histograms/histograms", run="sasrec/tensorboard", tag="table/row_norm"
    )
    assert step == 20
    assert sum(count for _, _, count in bins) == pytest.approx(100)


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
def test_a_browser_draws_the_curves(tensorboard: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    picture = tmp_path / "scalars.png"
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,1000"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=15000"),
    ]
    page = f"{tensorboard}/#scalars&tagFilter=train%2Floss&_smoothingWeight=0"
    done = subprocess.run(
        [BROWSER, *options, f"--screenshot={picture}", page],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert picture.is_file(), done.stderr[-2000:]
    chart = imread(picture)[120:, 340:1400, :3]  # right of the list of runs, below the orange header
    colored = (chart.max(2) - chart.min(2)) > 0.25  # neither text nor grid nor background
    columns, rows = colored.any(0), colored.any(1)
    widest = max(len(run) for run in re.findall("1+", "".join("01"[int(on)] for on in columns)))
    assert widest > 120, f"no curve across the chart, {widest} pixels at most"  # icons have about 20
    assert rows.sum() > 60


def test_row_norms_are_of_at_most_4096_rows() -> None:
    shard = torch.arange(10_000.0).unsqueeze(1) * torch.tensor([3.0, 4.0])
    norms = row_norms(shard)
    assert 2048 <= len(norms) <= 4096
    assert norms[1] == pytest.approx(5 * 3)  # every third row
    assert len(row_norms(shard[:10])) == 10
    assert row_norms(shard[:0]).shape == (0,)


def test_the_gate_is_drawn_in_proportion() -> None:
    picture = gate_picture(GATE).astype(int)
    mamba = (np.abs(picture - (0xD5, 0x5E, 0x00)).sum(2) < 20).sum(1)
    attention = (np.abs(picture - (0x00, 0x72, 0xB2)).sum(2) < 20).sum(1)
    shares = [m / (m + a) for m, a in zip(mamba, attention, strict=True) if m + a > 300]
    assert min(shares) == pytest.approx(0.2, abs=0.06)
    assert max(shares) == pytest.approx(0.7, abs=0.06)


def test_an_empty_shard_has_no_histogram(tmp_path: Path) -> None:
    log = MetricsLog(begun_run(tmp_path / "run", "sasrec"), from_step=0)
    log.write_model(1, {}, torch.empty(0, 16))
    log.close()


def test_a_read_only_run_folder_is_not_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun_run(tmp_path / "run", "sasrec")
    monkeypatch.setattr("os.access", lambda *_: False)
    write_final_metrics(run, "test", 1, {"full": {"hit@10": 0.5}})
    assert [path.name for path in run.iterdir()] == ["config.json"]
