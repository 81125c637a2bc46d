"""Every part of `python -m benchmarks.gpu` runs on a CPU at small sizes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[3]
LINES = {
    "update": ["limits: copies", "update of 500 rows"],
    "rank": ["exact positions of 60 users"],
    "train": ["mambarec  L=16", "sasrec    L=32", "beyond the table"],
    "models": ["mambarec L=32", "--encoder.mixer mamba2 --encoder.num_blocks 2"],
    "baselines": [
        "nn.Embedding and Adam: SASRec, 2 blocks, flash attention",
        "nn.Embedding and Adam: MambaRec, 1 block",
        "Longplay: sasrec, num_blocks 2",
        "Longplay: mambarec, num_blocks 1",
    ],
    "variants": [
        "no pipelining",
        "through torch.compile",
        "table in host memory",
        "and 30,000 rows on the device",
    ],
    "trace": ["backward", "no kernels: the steps ran on a CPU"],
}


@pytest.mark.slow
def test_every_part_runs_at_small_sizes_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--repeats", "1", "--out", str(tmp_path)]
    of_ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # left by other tests
    environment = {name: value for name, value in os.environ.items() if name not in of_ranks}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    for part, lines in LINES.items():
        for line in lines:
            assert line in done.stdout, (part, done.stdout)
    assert (tmp_path / "trace.json.gz").is_file()


def test_the_parts_above_are_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.gpu.__main__ import PARTS

    assert set(PARTS) == set(LINES)


def test_the_baseline_with_flash_attention_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY)
    from benchmarks.gpu.baselines import FlashSASRec

    torch.manual_seed(0)
    model = FlashSASRec(9, 8, 2, 6).eval()
    items = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8, 9]])
    one, other = model(items)
    torch.testing.assert_close(one[:3], other[:3])
    assert not torch.allclose(one[3:], other[3:])
