"""What a report is made of: every run of sweeps and run folders, finished or not, read from files alone.

Nothing here imports torch, so that a report takes a second or two.
"""

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

MODEL_NAMES = {
    "gru4rec": "GRU4Rec",
    "sasrec": "SASRec",
    "recmamba": "RecMamba",
    "mambarec": "MambaRec",
    "moematrrec": "MoEMaTrRec",
}
State = Literal["finished", "running", "unfinished", "failed", "missing"]
Metrics = dict[str, dict[str, float]]

_SETTINGS_LEFT_OUT = ("seed", "recipe")


class ReportError(ValueError):
    """There is nothing to report on; the message says what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, planned or done.

    Attributes:
        source: the sweep or folder it was found through.
        settings: runs with equal ones differ in their seed alone.
        variant: what the sweep's `grid` set its setting to; None in a study.
        error: the last error line of a failed run.
        progress: how far an unfinished one is.
        test: metrics of the test split by kind ("full_unseen") and name ("hit@10"); empty until evaluated.
        ranks: processes of the evaluation, which a sweep starts as it starts the training.
        device: what trained it, by its name; `eval_device` is cpu or cuda.
        about: what else the run folder says of code and machine.
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
    """Every run of the sweeps and run folders `paths`, and of folders of run folders, in their order.

    Raises:
        ReportError: one of them is none of these, or damaged, or there is no run at all.
    """
    runs = [run for path in dict.fromkeys(path.absolute() for path in paths) for run in _runs_of(path)]
    if not runs:
        raise ReportError(f"{', '.join(map(str, paths))}: there are no runs; begin some with longplay sweep")
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
                f"{path}: is no sweep (no sweep.json) and no run folder (no config.json); give the --out of "
                "longplay sweep or the --run of longplay train"
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
    """What a job's ranks printed, rank 0's first; another job's id may begin as this one's does."""
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
    same = {name: value for name, value in asked.items() if name not in _SETTINGS_LEFT_OUT}
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
    """What became of a run: the fields of Run that its folder and logs tell."""
    asked = config.get("config", {})
    metric = str(asked.get("train", {}).get("metric", "full_unseen/ndcg@10"))
    scalars = finite_scalars(path, metric)
    report, damage = _evaluation(path / "evaluation" / "test.json")
    error = damage or last_error(logs) or _slurm_said(logs)
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
        said = since_start(logs[0]) if logs else []
        progress += f"; last said: {said[-1].strip()[:160]}" if said else ""
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
    """What `longplay evaluate --out` wrote, and what is wrong with it."""
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


def _slurm_said(logs: Sequence[Path]) -> str | None:
    """What Slurm said of a task that was killed, where no rank could say anything."""
    killed = re.compile(r"srun: error: .*\btasks? |slurmstepd: error: .*\b(oom|OOM|killed)")
    return next((line.strip() for log in logs for line in since_start(log) if killed.match(line)), None)
