"""Made-up sweeps and run folders with the files that a report reads."""

import json
from pathlib import Path
from typing import Any

KINDS = ("full", "full_unseen", "sampled100")
MODELS = ("gru4rec", "sasrec", "recmamba", "mambarec", "moematrrec")


def made_up_run(
    path: Path,
    *,
    model: str = "sasrec",
    context_length: int = 50,
    seed: int = 0,
    hit10: float | None = 0.1,
    step_ms: float = 20.0,
    events_per_s: float = 1000.0,
    peak_gib: float = 1.0,
    validations: tuple[float, ...] = (0.01, 0.03, 0.02),
    steps_per_epoch: int = 10,
    data: str = "/data/m",
    lr: float = 0.01,
    ranks: int | None = 1,
) -> None:
    """Write a run with a validation per epoch, evaluated with ndcg@10 = hit10 / 2 if `hit10` is given.

    Its checkpoint was saved by that number of `ranks`; None writes no checkpoint.
    """
    path.mkdir(parents=True)
    if ranks is not None:
        (path / "checkpoints" / "step-000000020").mkdir(parents=True)
        (path / "checkpoints" / "step-000000020" / "state.json").write_text(json.dumps({"world_size": ranks}))
    config = {
        "recipe": model,
        "seed": seed,
        "context_length": context_length,
        "encoder": {"model": model},
        "data": {"seed": seed},
        "train": {"metric": "full_unseen/ndcg@10", "max_epochs": 20, "lr": lr},
    }
    about = {"data": data, "dataset_id": "id", "git_commit": "c0ffee", "host": "node1", "device": "cpu"}
    (path / "config.json").write_text(json.dumps({"config": config, **about, "packages": {"torch": "2"}}))
    with open(path / "metrics.jsonl", "w") as file:
        for step in range(1, steps_per_epoch * len(validations) + 1):
            slow = 50.0 if step == 1 else 1.0
            scalars = {
                "train/epoch": step / steps_per_epoch,
                "perf/step_ms": slow * step_ms,
                "perf/events_per_s": events_per_s / slow,
                "memory/peak_gib": peak_gib,
            }
            if step % steps_per_epoch == 0:
                scalars["eval_full_unseen/ndcg@10"] = validations[step // steps_per_epoch - 1]
            for tag, value in scalars.items():
                file.write(json.dumps({"step": step, "tag": tag, "value": value}) + "\n")
    if hit10 is not None:
        write_evaluation(path, hit10, eval_s=2 * step_ms / 10, peak_gib=2 * peak_gib)


def write_evaluation(path: Path, hit10: float, *, eval_s: float = 1.0, peak_gib: float = 1.0) -> None:
    """Write evaluation/test.json with ndcg@10 = hit10 / 2 and @20 = 2 * @10, scaled by a factor per kind."""
    values = {"hit@10": hit10, "ndcg@10": hit10 / 2, "hit@20": 2 * hit10, "ndcg@20": hit10, "mrr": hit10 / 3}
    report: dict[str, Any] = {
        kind: {name: value * factor for name, value in values.items()} | {"hit@10_se": None}
        for kind, factor in zip(KINDS, (0.8, 1.0, 2.0), strict=True)
    }
    report |= {"num_users": 100, "split": "test", "checkpoint": "step-000000020", "seconds": eval_s}
    report |= {"peak_gib": peak_gib, "ranks": 1, "device": "cpu"}
    (path / "evaluation").mkdir(exist_ok=True)
    (path / "evaluation" / "test.json").write_text(json.dumps(report))


class MadeUpSweep:
    """The folder of a sweep. Add the jobs, then call `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jobs: dict[str, Any] = {}
        (path / "submitit").mkdir(parents=True)

    def add(
        self,
        *,
        model: str = "sasrec",
        context_length: int = 50,
        seed: int = 0,
        dataset: str = "m",
        grid: str = "study",
        variant: str | None = None,
        job_id: str | None = None,
    ) -> Path:
        """Add a job and return the path of its run folder, which does not exist yet."""
        name = f"{dataset}-{model}-L{context_length}{f'-{grid}_{variant}' if variant else ''}-s{seed}"
        varied = [f"--{grid}", variant] if variant else []
        self.jobs[name] = {
            "name": name,
            **{"recipe": model, "model": model, "context_length": context_length, "dataset": dataset},
            **{"data": f"/data/{dataset}", "seed": seed, "grid": grid, "variant": variant},
            "overrides": [*varied, "--context_length", str(context_length), "--seed", str(seed)],
            "run": f"runs/{name}",
            "submission": None
            if job_id is None
            else {"cluster": "local", "job_id": job_id, "host": "h", "time": 0},
        }
        return self.path / "runs" / name

    def write(self) -> None:
        (self.path / "sweep.json").write_text(json.dumps({"version": 1, "created": "", "jobs": self.jobs}))
