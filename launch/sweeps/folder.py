"""A sweep's folder: its runs and their last submissions.

sweep.json      {"version", "created", "updated", "git_commit", "imports", "jobs": {NAME: {...}}}; `imports`
                are the modules of the user that the jobs import; each job has `recipe`, `model`,
                `context_length`, `dataset`, `data`, `seed`, `grid`, `variant`, `overrides`, `run` (relative
                to this folder) and `submission` ({"cluster", "job_id", "host", "time"}, or null)
runs/NAME/      the run folder of `longplay train` (config.json, metrics.jsonl, best.json, tensorboard/,
                checkpoints/) and, after training, evaluation/validation.json and evaluation/test.json in
                the format of `longplay evaluate --json`. A run with both is finished.
submitit/       submitit's files; ID_RANK_log.out holds the output of a rank of job ID
"""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from longplay.common.atomic import write_json
from longplay.common.json_files import JsonFileError, JsonObject, check_json, read_json, sealed
from longplay.common.locks import FolderLock, FolderLockedError, is_lock_file, lock_holder
from longplay.launch.run_folders.provenance import git_commit
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.imports import check_imports, imported
from longplay.launch.settings.saved import SAME_RESULT, changed_settings
from longplay.launch.sweeps.cluster import Submission
from longplay.launch.sweeps.grid import SweepJobSpec
from longplay.launch.sweeps.job import SweepJob
from longplay.launch.sweeps.job_log import logs_of_job

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SavedJob(SweepJobSpec):
    """A job in sweep.json: its settings, its run folder relative to the sweep's, and its submission."""

    run: str
    submission: Submission | None


@dataclass(frozen=True, kw_only=True)
class SavedSweep:
    """What commands read from sweep.json."""

    created: str
    imports: tuple[str, ...] = ()
    jobs: dict[str, SavedJob]

    def __post_init__(self) -> None:
        for name, job in self.jobs.items():
            if job.name != name or job.run != f"runs/{name}":
                raise ValueError(f"jobs.{name}: is named {job.name!r}, with the folder {job.run!r}")


def read_sweep(path: Path) -> SavedSweep:
    """Read the sweep.json of a sweep's folder.

    Raises:
        ConfigError: the file is missing, damaged, or of another version.
    """
    file = path / "sweep.json"
    try:
        saved = read_json(file, JsonObject)
        if saved.get("version") != _VERSION:
            raise ConfigError(f"{file}: was written by another version; give another --out")
        return check_json(saved, SavedSweep, file)
    except FileNotFoundError:
        raise ConfigError(f"{file}: is missing; restore it") from None
    except JsonFileError as error:
        raise ConfigError(f"{error}; restore the file, or give another --out") from None


class SweepFolder:
    """Read and write sweep.json; `jobs` and `submissions` are keyed by name, in the order of addition."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.file = self.path / "sweep.json"
        self.submitit = self.path / "submitit"
        self.jobs: dict[str, SweepJobSpec] = {}
        self.submissions: dict[str, Submission] = {}
        self.created = datetime.now().astimezone().isoformat(timespec="seconds")
        if self.file.exists():
            self._read()
        elif self.path.exists() and (not self.path.is_dir() or any(self._others())):
            raise ConfigError(f"--out {path}: is neither empty nor a sweep folder; give another one")

    def _others(self) -> Iterator[Path]:
        return (item for item in self.path.iterdir() if not is_lock_file(item))

    def _read(self) -> None:
        saved = read_sweep(self.path)
        check_imports(saved.imports, self.path)
        self.created = saved.created
        fields = [field.name for field in dataclasses.fields(SweepJobSpec)]
        for name, job in saved.jobs.items():
            self.jobs[name] = SweepJobSpec(**{field: getattr(job, field) for field in fields})
            if job.submission is not None:
                self.submissions[name] = job.submission
            try:
                _ = self.jobs[name].config
            except ValueError as error:  # a setting, or the name of the recipe
                raise ConfigError(f"{self.file}: jobs.{name}: {error}; give another --out") from None

    def write(self) -> None:
        """Write sweep.json.

        Raises:
            ConfigError: the folder cannot be written.
        """
        entries: dict[str, Any] = {}
        for name, spec in self.jobs.items():
            submission = self.submissions.get(name)
            entries[name] = {
                **dataclasses.asdict(spec),
                "run": str(spec.run_folder(self.path).relative_to(self.path)),
                "submission": None if submission is None else dataclasses.asdict(submission),
            }
        try:
            self.submitit.mkdir(parents=True, exist_ok=True)
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            about = {"version": _VERSION, "created": self.created, "updated": now, "git_commit": git_commit()}
            write_json(self.file, sealed({**about, "imports": imported(), "jobs": entries}))
        except OSError as error:
            raise ConfigError(f"--out {self.path}: cannot be written ({error.strerror})") from None

    def add(self, specs: Iterable[SweepJobSpec]) -> list[SweepJobSpec]:
        """Add jobs and return them; an existing job must have the same dataset and settings.

        Raises:
            ConfigError: a job exists with another dataset or other settings.
        """
        taken = []
        for spec in specs:
            before = self.jobs.get(spec.name)
            if before is not None and before.data != spec.data:
                raise ConfigError(
                    f"--out {self.path}: {spec.name} was started on {before.data}, not {spec.data}; "
                    "give that --data, name the other dataset with --data NAME=DIR, or give another --out"
                )
            changed = (
                [] if before is None else changed_settings(before.config, spec.config, may_change=SAME_RESULT)
            )
            if changed:
                raise ConfigError(
                    f"--out {self.path}: {spec.name} was started with other settings "
                    f"({'; '.join(changed[:3])}); give the same settings, or another --out"
                )
            self.jobs[spec.name] = spec
            taken.append(spec)
        return taken

    def job(self, spec: SweepJobSpec) -> SweepJob:
        """Return the job to submit for a run."""
        return SweepJob(spec=spec, run=spec.run_folder(self.path), imports=tuple(imported()))

    def logs(self, name: str) -> list[Path]:
        """Return the logs of the ranks of a job's last submission, rank 0's first."""
        submission = self.submissions.get(name)
        return [] if submission is None else logs_of_job(self.submitit, submission.job_id)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other sweep commands.

        Raises:
            ConfigError: another command holds the lock.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(self.path)
        except FolderLockedError:
            raise ConfigError(
                f"--out {self.path}: another sweep command is using this folder; watch it with --status, "
                "end it with --cancel"
            ) from None
        except OSError as error:
            raise ConfigError(f"--out {self.path}: cannot be written ({error.strerror})") from None
        with lock:
            yield

    def holder(self) -> int | None:
        """Return the id of the process on this machine that holds the lock, or None."""
        return lock_holder(self.path)


def open_sweep(path: Path) -> SweepFolder:
    """Open the folder of an existing sweep.

    Raises:
        ConfigError: the folder holds no sweep.
    """
    folder = SweepFolder(path)
    if not folder.jobs:
        raise ConfigError(
            f"--out {path}: holds no sweep (no sweep.json); start one with longplay sweep --data"
        )
    return folder
