"""Read the runs of sweeps and run folders, finished or not, from their files."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from longplay.common.json_files import Finite, JsonFileError, Natural, check_json, read_json
from longplay.common.kinds import kind_of, not_a
from longplay.common.locks import is_locked
from longplay.common.printable import printable
from longplay.launch.evaluation.saved_evaluation import evaluation_file, is_outdated
from longplay.launch.reports.scalars import COSTS, read_series
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.saved import SavedRun
from longplay.launch.sweeps.folder import SavedJob, read_sweep
from longplay.launch.sweeps.job_log import last_error, logs_of_job, since_start

_TEXTS = ("run", "folder", "source", "settings", "dataset", "model", "recipe", "grid", "variant")
_TEXTS += ("state", "error", "progress", "device", "eval_device", "checkpoint", "commit", "host", "torch")
_SCHEMA: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, pl.String),
    **dict.fromkeys(("context_length", "seed", "ranks", "eval_ranks"), pl.Int64),
    **dict.fromkeys(COSTS, pl.Float64),
    "curve_metric": pl.String,
    "curve_seconds": pl.List(pl.Float64),
    "curve_values": pl.List(pl.Float64),
}
_INFINITE = 1e300
_NOT_COMPARED = ("seed", "recipe")  # settings that may differ between runs of one group
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Run(SavedRun):
    """The config.json of a run, with the origin and the machine of its results."""

    git_commit: str | None = None
    host: str | None = None
    device: str | None = None
    packages: dict[str, str | None] = field(default_factory=dict)


class _Encoder(TypedDict):
    model: str


class _Train(TypedDict, total=False):
    metric: str
    max_epochs: Natural


class _Settings(TypedDict):
    """The settings of any version that a report needs."""

    encoder: _Encoder
    context_length: Natural
    seed: Natural


@with_config(ConfigDict(extra="allow"))
class _Evaluation(TypedDict, total=False):
    """An evaluation's JSON, without its metrics."""

    checkpoint: str
    ranks: Natural
    device: str
    peak_gib: Finite
    seconds: Finite


class _State(TypedDict):
    """What a report needs of a checkpoint's state.json."""

    world_size: Natural


class ReportError(ValueError):
    """The given folders hold no runs, or damaged ones; the message names what to give instead."""


def collect(paths: Sequence[Path]) -> pl.DataFrame:
    """Return a row for each run of sweeps, run folders and folders of run folders, in the order of `paths`.

    Columns, null where unknown:
        run, folder: the run's name and folder.
        source: name of the given sweep or folder that contains the run.
        settings: equal for runs that differ only in their seed.
        grid, variant: what the sweep varies ("study": context lengths), and the value of that setting.
        state: finished, running, unfinished, failed or missing.
        error, progress: error line of a failed run; step and epoch of an unfinished one.
        device, ranks: name of the device and number of ranks in training.
        eval_device, eval_ranks: "cpu" or "cuda", and the number of ranks, in the evaluation.
        curve_metric, curve_seconds, curve_values: the validations, with the training time before each.
        a column per cost, see `COSTS`, and per metric of the test split, such as "full_unseen/hit@10".

    Raises:
        ReportError: a path is not a sweep, a run folder or a folder of run folders, or holds no intact run.
    """
    rows = [row for path in dict.fromkeys(path.absolute() for path in paths) for row in _runs_of(path)]
    rows = [{name: _shown(value) for name, value in row.items()} for row in rows]
    if not rows:
        raise ReportError(f"{', '.join(map(str, paths))}: no runs; start some with longplay sweep")
    metrics = sorted({tuple(name.split("/")) for row in rows for name in row if "/" in name})
    schema = _SCHEMA | dict.fromkeys(map("/".join, metrics), pl.Float64)
    return pl.DataFrame(rows, schema=schema, strict=False)


def _shown(value: Any) -> Any:
    return printable(value, "utf-8") if isinstance(value, str) else value


def _runs_of(path: Path) -> Iterator[Row]:
    if (path / "sweep.json").is_file():
        yield from _sweep_runs(path)
    elif not path.exists() or kind_of(path) in ("dataset", "export", "file"):
        raise ReportError(f"{not_a('run', path)}; give sweeps or run folders")
    elif (path / "config.json").is_file():
        yield _plain_run(path, path.parent)
    else:
        folders = sorted(file.parent for file in path.glob("*/config.json"))
        if not folders:
            raise ReportError(
                f"{path}: is not a sweep (no sweep.json) and not a run folder (no config.json); give the "
                "--out of longplay sweep or the --run of longplay train"
            )
        for folder in folders:
            yield _plain_run(folder, path)


def _sweep_runs(sweep: Path) -> Iterator[Row]:
    try:
        saved = read_sweep(sweep)
    except ConfigError as error:
        raise ReportError(f"{error}, or give the run folders") from None
    yield from (_sweep_run(sweep, job) for job in saved.jobs.values())


def _sweep_run(sweep: Path, job: SavedJob) -> Row:
    path, submission = job.run_folder(sweep), job.submission
    logs = logs_of_job(sweep / "submitit", submission.job_id) if submission else []
    try:
        config = _read_run(path)
    except ReportError:
        config = None
    row = {
        **{name: getattr(job, name) for name in ("dataset", "model", "recipe", "grid", "variant")},
        "run": job.name,
        "source": sweep.name,
        "context_length": job.context_length,
        "seed": job.seed,
        "settings": json.dumps([str(sweep), job.recipe, *_without_seed(job.overrides)]),
        **_outcome(path, config, logs),
    }
    if row["state"] == "missing":
        row["progress"] = f"submitted as {submission.job_id}" if submission else "not submitted"
    return row


def _without_seed(words: Sequence[str]) -> list[str]:
    return [w for at, w in enumerate(words) if w != "--seed" and (at == 0 or words[at - 1] != "--seed")]


def _plain_run(path: Path, source: Path) -> Row:
    run = _read_run(path)
    try:
        settings = check_json(run.config, _Settings, path / "config.json")
    except JsonFileError as error:
        raise ReportError(f"{error}; restore the file, or leave the run out") from None
    model = settings["encoder"]["model"]
    dataset = ["data", *(part for part in re.split(r"[/?#]", run.data) if part)][-1]
    same = {name: value for name, value in run.config.items() if name not in _NOT_COMPARED}
    if isinstance(same.get("data"), dict):
        same["data"] = {name: value for name, value in same["data"].items() if name != "seed"}
    newest_log = sorted((path / "logs").glob("*"), key=lambda log: -log.stat().st_mtime)[:1]
    return {
        **{"run": path.name, "source": source.name, "dataset": dataset, "model": model, "recipe": model},
        **{"grid": "study", "settings": json.dumps([run.dataset_id, same], sort_keys=True)},
        **{"context_length": settings["context_length"], "seed": settings["seed"]},
        **_outcome(path, run, newest_log),
    }


def _outcome(path: Path, run: _Run | None, logs: Sequence[Path]) -> Row:
    """Return the columns that the run folder and the logs determine."""
    train = _train_settings(run)
    series = read_series(path)
    report, damage = _evaluation(evaluation_file(path, "test"))
    missing = "not evaluated"
    if report is not None and is_outdated(path, report):
        report, missing = None, "not evaluated since its best checkpoint changed"
    error = damage or last_error(logs) or _slurm_error(logs)
    progress = series.progress(train.get("max_epochs"))
    if report is not None:
        state, error, progress = "finished", None, ""
    elif error is not None:
        state = "failed"
    elif run is None:
        state = "missing"
    elif is_locked(path):
        state = "running"
    else:
        state = "unfinished"
        progress += f", {missing}" if progress else "no step yet"
        lines = since_start(logs[0]) if logs else []
        progress += f"; last line: {lines[-1].strip()[:160]}" if lines else ""
    report = report or {}
    return {
        **{"folder": str(path), "state": state, "error": error, "progress": progress},
        **{name: run and getattr(run, name) for name in ("host", "device")},
        **{"commit": run and run.git_commit, "torch": run and run.packages.get("torch")},
        "checkpoint": report.get("checkpoint"),
        **{"ranks": _training_ranks(path), "eval_ranks": report.get("ranks")},
        "eval_device": report.get("device"),
        **series.costs(evaluation=report),
        **series.curve(train.get("metric", "full_unseen/ndcg@10")),
        **_metrics(report),
    }


def _read_run(path: Path) -> _Run:
    try:
        return read_json(path / "config.json", _Run)
    except FileNotFoundError:
        raise ReportError(f"{path}: has no config.json; leave the folder out") from None
    except JsonFileError as error:
        raise ReportError(f"{error}; restore the file, or leave the run out") from None


def _training_ranks(path: Path) -> int | None:
    """Return the number of ranks that saved the newest checkpoint of a run, None if unknown."""
    states = sorted((path / "checkpoints").glob(f"step-{'[0-9]' * 9}/state.json"))
    try:
        return read_json(states[-1], _State)["world_size"] if states else None
    except (FileNotFoundError, JsonFileError):
        return None


def _train_settings(run: _Run | None) -> _Train:
    """Return the settings of the training that are known."""
    try:
        return check_json(run.config.get("train") if run else {}, _Train, "config.json")
    except JsonFileError:
        return {}


def _evaluation(file: Path) -> tuple[_Evaluation | None, str | None]:
    """Return the report of `longplay evaluate --out`, or the reason why it cannot be used."""
    try:
        report = read_json(file, _Evaluation)
    except FileNotFoundError:
        return None, None
    except JsonFileError as error:
        return None, str(error).replace(f"{file.parent.parent}/", "")
    if not _metrics(report):
        return None, f"{file.parent.name}/{file.name}: holds no metrics"
    return report, None


def _metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite metrics of an evaluation's report, by "kind/name"."""
    return {
        f"{kind}/{name}": value
        for kind, values in report.items()
        if re.fullmatch(r"full\w*|sampled\d+", kind) and isinstance(values, dict)
        for name, value in values.items()
        if isinstance(value, int | float) and abs(value) < _INFINITE
    }


def _slurm_error(logs: Sequence[Path]) -> str | None:
    """Return Slurm's message about a killed task, whose rank could not print an error."""
    killed = re.compile(r"srun: error: .*\btasks? |slurmstepd: error: .*\b(oom|OOM|killed)")
    return next((line.strip() for log in logs for line in since_start(log) if killed.match(line)), None)
