"""What every test shares: one thread per process, and the real datasets where a machine has them."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with ml-1m.parquet and ml-100k.inter.gz, which are not ours to ship."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("LONGPLAY_TEST_DATA", default))
    if not (folder / "ml-1m.parquet").exists():
        pytest.skip(f"no ml-1m.parquet in {folder}; set LONGPLAY_TEST_DATA to the folder that holds it")
    return folder
