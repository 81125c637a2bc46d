"""`sbatch slurm/train_ml1m.sh` on two nodes: the same losses as one process, even after interruptions."""

import re
import signal
from pathlib import Path

import pytest
from local_cluster import LocalCluster
from support.commands import longplay
from support.runs import read_metrics, small_dataset, steps_logged
from support.slurm_jobs import REPOSITORY, Job, signal_all, submit

SCRIPT = REPOSITORY / "slurm" / "train_ml1m.sh"
# A small `ml1m`: about 7 steps per epoch, each of a few milliseconds.
SMALL = """--seed 7 --context_length 40 --encoder.d_model 16 --encoder.d_state 8 --encoder.dropout 0.3
  --engine.max_grad_norm 0.2 --data.rows_per_step 24 --train.lr 0.01 --train.warmup_steps 5
  --train.max_epochs 20
  --train.max_minutes none --train.log_every_steps 1 --train.eval_every_steps 60
  --train.checkpoint_every_steps 10 --train.device cpu --evaluation.rows_per_batch 8""".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("slurm_training"))


def start(cluster: LocalCluster, folder: Path, data: Path, run: Path, *options: str, **more: object) -> Job:
    variables = {"DATA": data, "RUN": run, "RANKS_PER_NODE": 1, "OMP_NUM_THREADS": 1, **more}
    return submit(cluster, folder, SCRIPT, *SMALL, options=options, variables=variables)


def ranks(job: Job) -> list[int]:
    return job.processes("longplay.launch.train", "-m", str(REPOSITORY / ".venv" / "bin" / "python"))


def test_preemption_node_failure_and_time_limit_do_not_change_the_losses(
    slurm_cluster: LocalCluster, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = start(slurm_cluster, tmp_path, data, run, "--signal=B:USR1@59")

    # Preempted: a job in a higher partition takes both nodes.
    job.wait(lambda: steps_logged(run) > 5, "first steps")
    slurm_cluster.call(
        *("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive"),
        *(f"--output={tmp_path}/urgent.out", "--wrap=true"),
    )
    job.wait_for("PENDING")
    reached = steps_logged(run)

    # One of its nodes goes down.
    job.wait(lambda: steps_logged(run) > reached + 5, "steps after the preemption")
    slurm_cluster.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    job.wait_for("PENDING")
    reached = steps_logged(run)
    slurm_cluster.call("scontrol", "update", "NodeName=node2", "State=RESUME")

    # The time limit is near. The ranks are paused until Slurm checks time limits, every 30 seconds.
    job.wait(lambda: steps_logged(run) > reached + 5, "steps after the node came back")
    signal_all(ranks(job), signal.SIGSTOP)
    job.update(TimeLimit=1)
    job.wait(lambda: "the time limit is near" in job.printed(), "signal before the time limit", timeout_s=50)
    signal_all(ranks(job), signal.SIGCONT)
    job.wait_for("PENDING")
    job.update(TimeLimit=60)

    assert job.wait_for_end() == "COMPLETED", job.printed()
    log = (run / "logs" / f"{job.number}.log").read_text()
    assert len(re.findall("longplay: job .* start", job.printed())) == 4
    resumed_at = [int(step) for step in re.findall(r"resuming from .* \(step (\d+)", log)]
    assert resumed_at == sorted(set(resumed_at))
    assert len(resumed_at) == 3

    longplay(
        ["train", "ml1m", "--data", str(data), "--run", str(tmp_path / "alone"), *SMALL], tmp_path / "log"
    )
    for tag in ("train/loss", "optim/grad_norm", "eval_full/ndcg@10", "eval_full_unseen/mrr"):
        expected = read_metrics(tmp_path / "alone", tag)
        assert expected
        assert read_metrics(run, tag) == pytest.approx(expected, rel=1e-5), tag


def test_an_unknown_recipe_is_a_one_line_error(
    slurm_cluster: LocalCluster, data: Path, tmp_path: Path
) -> None:
    job = start(slurm_cluster, tmp_path, data, tmp_path / "run", RECIPE="ml10m")
    assert job.wait_for_end() == "FAILED"
    lines = [line for line in job.printed().splitlines() if "error" in line]
    assert len(lines) == 1, lines
    assert "exit code 2: recipe 'ml10m': unknown; did you mean ml1m?" in lines[0]
