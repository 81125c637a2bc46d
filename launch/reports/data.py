"""Read the runs of sweeps and run folders, finished or not, from their files alone."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from longplay.common.locks import is_locked
from longplay.launch.reports.scalars import Costs, Curve, finite_scalars
from longplay.launch.sweeps.job_log import last_error, since_start

State = Literal["finished", "running", "unfinished", "failed", "missing"]
Metrics = dict[str, dict[str, float]]

_NOT_COMPARED = ("seed", "recipe")  # settings that may differ between runs of one group


class ReportError(ValueError):
    """The given folders hold no runs, or damaged ones; the message says what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, planned or done.

    Attributes:
        source: the sweep or the folder that was given and holds the run.
        settings: equal for runs that differ in their seed alone.
        variant: value of the setting that the sweep's `grid` varies; None in a study.
        error: error line of a failed run.
        progress: step and epoch of an unfinished run.
        test: metrics of the test split by kind ("full_unseen") and name ("hit@10"); empty until evaluated.
        ranks: number of ranks in the evaluation, in a sweep the same as in training.
        device: name of the device in training; `eval_device` is cpu or cuda.
        about: commit, host, torch version and checkpoint.
    """

    name: str
    path: Path
    source: Path
    dataset: str
    model: str
    recipe: str
    context_length: int
    seed: int
    grid: str = "study"
    variant: str | None = None
    settings: str
    state: State
    error: str | None = None
    progress: str = ""
    test: Metrics = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    curve: Curve = field(default_factory=Curve)
    ranks: int | None = None
    device: str | None = None
    eval_device: str | None = None
    about: dict[str, str] = field(default_factory=dict)


def collect(paths: Sequence[Path]) -> list[Run]:
    """Return the runs of sweeps, run folders and folders of run folders, in the order of `paths`.

    Raises:
        ReportError: a path is none of these or is damaged, or no path holds a run.
    """
    runs = [run for path in dict.fromkeys(path.absolute() for path in paths) for run in _runs_of(path)]
    if not runs:
        raise ReportError(f"{', '.join(map(str, paths))}: no runs; start some with longplay sweep")
    return runs


def _runs_of(path: Path) -> Iterator[Run]:
    if (path / "sweep.json").is_file():
        yield from _sweep_runs(path)
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


# ---------------------------------------------------------------------- sweeps


def _sweep_runs(sweep: Path) -> Iterator[Run]:
    file = sweep / "sweep.json"
    try:
        saved = json.loads(file.read_text())
        jobs = [(name, dict(job), str(job["run"])) for name, job in saved["jobs"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{file}: cannot be read ({error}); restore it, or name the run folders") from None
    for name, job, run in jobs:
        try:
            yield _sweep_run(sweep, name, job, sweep / run)
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"{file}: job {name} cannot be read ({error!r})") from None


def _sweep_run(sweep: Path, name: str, job: dict[str, Any], path: Path) -> Run:
    submission = job.get("submission") or {}
    logs = _logs(sweep / "submitit", submission["job_id"]) if submission else []
    config = _config(path)
    settings = json.dumps([str(sweep), job["recipe"], *_without_seed(job["overrides"])])
    found = _outcome(path, config, logs)
    if found["state"] == "missing":
        found["progress"] = f"submitted as {submission['job_id']}" if submission else "not submitted"
    return Run(
        name=name,
        path=path,
        source=sweep,
        dataset=job["dataset"],
        model=job["model"],
        recipe=job["recipe"],
        context_length=int(job["context_length"]),
        seed=int(job["seed"]),
        grid=job["grid"],
        variant=job["variant"],
        settings=settings,
        **found,
    )


def _logs(folder: Path, job_id: str) -> list[Path]:
    """Return the logs of a job's ranks, rank 0's first; 5_1_0_log.out is not of job 5."""
    name = re.compile(rf"{re.escape(job_id)}_(\d+)_log\.out")
    found = {int(match[1]): log for log in folder.glob("*_log.out") if (match := name.fullmatch(log.name))}
    return [found[rank] for rank in sorted(found)]


def _without_seed(words: Sequence[str]) -> list[str]:
    return [w for at, w in enumerate(words) if w != "--seed" and (at == 0 or words[at - 1] != "--seed")]


# ---------------------------------------------------------------------- run folders


def _plain_run(path: Path, source: Path) -> Run:
    config = _config(path)
    try:
        asked = config["config"]
        dataset = [part for part in re.split(r"[/?#]", str(config["data"])) if part][-1]
        model, length, seed = asked["encoder"]["model"], int(asked["context_length"]), int(asked["seed"])
    except (KeyError, TypeError, ValueError, IndexError):
        raise ReportError(f"{path}/config.json: is damaged, or of another version") from None
    same = {name: value for name, value in asked.items() if name not in _NOT_COMPARED}
    same["data"] = {name: value for name, value in asked.get("data", {}).items() if name != "seed"}
    return Run(
        name=path.name,
        path=path,
        source=source,
        dataset=dataset,
        model=model,
        recipe=model,
        context_length=length,
        seed=seed,
        settings=json.dumps([config.get("dataset_id"), same], sort_keys=True),
        **_outcome(path, config, sorted((path / "logs").glob("*"), key=lambda log: -log.stat().st_mtime)[:1]),
    )


def _outcome(path: Path, config: dict[str, Any], logs: Sequence[Path]) -> dict[str, Any]:
    """Return the fields of Run that the run folder and the logs determine."""
    asked = config.get("config", {})
    metric = str(asked.get("train", {}).get("metric", "full_unseen/ndcg@10"))
    scalars = finite_scalars(path, metric)
    report, damage = _evaluation(path / "evaluation" / "test.json")
    error = damage or last_error(logs) or _slurm_error(logs)
    progress = scalars.progress(asked.get("train", {}).get("max_epochs"))
    state: State = "unfinished"
    if report is not None:
        state, error = "finished", None
    elif error is not None:
        state = "failed"
    elif not config:
        state = "missing"
    elif is_locked(path):
        state = "running"
    else:
        progress += ", not evaluated" if progress else "no step yet"
        lines = since_start(logs[0]) if logs else []
        progress += f"; last line: {lines[-1].strip()[:160]}" if lines else ""
    report = report or {}
    versions = {name: version for name, version in config.get("packages", {}).items() if version}
    about = {
        "commit": str(config.get("git_commit") or ""),
        "host": str(config.get("host") or ""),
        "torch": str(versions.get("torch", "")),
        "checkpoint": str(report.get("checkpoint") or ""),
    }
    return {
        "state": state,
        "error": error,
        "progress": "" if state == "finished" else progress,
        "test": _metrics(report),
        "costs": scalars.costs(evaluation=report),
        "curve": scalars.curve,
        "ranks": report.get("ranks"),
        "device": config.get("device"),
        "eval_device": report.get("device"),
        "about": about,
    }


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _evaluation(file: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Return the report of `longplay evaluate --out`, or the reason why it cannot be used."""
    try:
        report = json.loads(file.read_text())
    except FileNotFoundError:
        return None, None
    except (OSError, ValueError) as error:
        return None, f"{file.parent.name}/{file.name}: cannot be read ({error})"
    if not isinstance(report, dict) or not _metrics(report):
        return None, f"{file.parent.name}/{file.name}: holds no metrics"
    return report, None


def _metrics(report: dict[str, Any]) -> Metrics:
    kinds = {kind: values for kind, values in report.items() if re.fullmatch(r"full\w*|sampled\d+", kind)}
    return {
        kind: {name: value for name, value in values.items() if _is_finite(value)}
        for kind, values in kinds.items()
        if isinstance(values, dict)
    }


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _slurm_error(logs: Sequence[Path]) -> str | None:
    """Return Slurm's message about a killed task, whose rank could print no error."""
    killed = re.compile(r"srun: error: .*\btasks? |slurmstepd: error: .*\b(oom|OOM|killed)")
    return next((line.strip() for log in logs for line in since_start(log) if killed.match(line)), None)
