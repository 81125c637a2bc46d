"""`--train.device cpu` runs everything without CUDA, even on a machine with a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.runs import small_dataset

from longplay.data_shards.storage.dataset import Dataset

# A process in which torch reports a GPU, and any use of CUDA fails.
FAKE_GPU = """
import json, sys
import torch

def touch(*args, **kwargs):
    raise AssertionError("CUDA is used")

torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda._lazy_init = touch
from longplay.launch.cli import main

for words in json.loads(sys.argv[1]):
    if main(words):
        sys.exit(f"failed: {words}")
assert not torch.cuda.is_initialized()
"""


def test_cpu_runs_without_cuda_on_a_machine_with_a_gpu(tmp_path: Path) -> None:
    data, run = small_dataset(tmp_path), tmp_path / "run"
    history = tmp_path / "history.txt"
    history.write_text(str(Dataset.open(data).items.originals(np.array([1]))[0]))
    train = ["train", "mambarec", "--data", str(data), "--run", str(run), "--train.device", "cpu"]
    train += ["--context_length", "40", "--encoder.d_model", "16", "--loss.name", "bce"]
    commands = [
        [*train, "--table.placement", "host", "--train.max_steps", "3", "--train.log_every_steps", "1"],
        ["evaluate", str(run), "--device", "cpu", "--json"],
        ["recommend", str(run), "--history", str(history), "--device", "cpu", "--json"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", FAKE_GPU, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
