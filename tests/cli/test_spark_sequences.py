"""The histories that Spark groups are those that `longplay prepare` makes of the same events."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.datasets import REPOSITORY, sequences

from longplay.data_shards.storage.dataset import Dataset
from longplay.launch.prepare import main

pytestmark = pytest.mark.slow
EXAMPLE = REPOSITORY / "examples" / "spark_sequences.py"


@pytest.fixture(autouse=True)
def _needs_spark() -> None:
    if shutil.which("java") is None:
        pytest.skip("needs a Java runtime: apt-get install default-jre-headless")
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("needs PySpark: pip install -c constraints.txt -e '.[spark]'")


def group(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *words], capture_output=True, text=True, timeout=240, check=False
    )


def test_spark_groups_and_sorts_as_prepare_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "title": ['Chair "No. 1", oak'] * 3000,  # quotes and a comma before the columns that are read
            "time": rng.integers(0, 40, 3000),  # many ties
            "listener": [f"u{user}" for user in rng.integers(0, 50, 3000)],
            "track": [f"{item:03d}" for item in rng.integers(0, 200, 3000)],
            "price": rng.integers(0, 9, 3000) / 4,
        }
    )
    ordered = frame.sort("time", "track", "price")
    ordered.write_csv(tmp_path / "ordered.csv")
    faulty = pl.concat([frame, frame[:2].with_columns(time=None), frame[:1].with_columns(track=None)])
    (tmp_path / "events").mkdir()
    for number, part in enumerate((faulty[:1000], faulty[1000:])):
        part.write_csv(tmp_path / "events" / f"{number}.csv")

    names = ["--user", "listener", "--item", "track", "--time", "time"]
    folders = [str(tmp_path / "events"), str(tmp_path / "histories")]
    types = ["--format", "csv", "--time-type", "bigint"]
    done = group(*folders, *names, *types, "--features", "price")
    assert done.returncode == 0, done.stderr
    assert "3 rows without a valid user, item or time were dropped" in done.stdout
    options = ["--features", "price:float", "--user-type", "string", "--item-type", "string"]
    assert main(["csv", str(tmp_path / "ordered.csv"), *names, *options, "--out", str(tmp_path / "csv")]) == 0
    columns = ["--user", "user", "--item", "items", "--time", "times", "--features", "price:float"]
    assert main(["sequences", str(tmp_path / "histories"), *columns, "--out", str(tmp_path / "spark")]) == 0
    of_spark, of_csv = Dataset.open(tmp_path / "spark"), Dataset.open(tmp_path / "csv")
    assert sequences(of_spark) == sequences(of_csv)
    assert of_spark.dataset_id == of_csv.dataset_id


def test_times_that_are_text_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"u": [1], "i": [2], "t": ["2024-01-01"]}).write_parquet(tmp_path / "events.parquet")
    done = group(
        str(tmp_path / "events.parquet"), str(tmp_path / "out"), *"--user u --item i --time t".split()
    )
    assert done.returncode == 2
    assert "column t holds text; pass --time-type" in done.stderr
