"""Readers of metrics.jsonl skip incomplete lines; resuming removes the lines after the checkpoint."""

import errno
import json
import math
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from longplay.launch.run_folders.metrics_file import METRICS_FILE, Scalar, drop_scalars_after, read_scalars
from longplay.launch.run_folders.metrics_log import MetricsLog

LINES = "".join(Scalar(step, tag, step / 3).line() for step in (1, 2, 10) for tag in ("a", "b/c"))


def test_a_line_has_the_documented_format() -> None:
    line = Scalar(120, "train/loss", 6.91).line()
    assert line == '{"step": 120, "tag": "train/loss", "value": 6.91}\n'
    assert math.isnan(json.loads(Scalar(1, "a", math.nan).line())["value"])


def test_a_run_without_a_log_has_no_scalars(tmp_path: Path) -> None:
    assert read_scalars(tmp_path) == {}
    drop_scalars_after(tmp_path, 3)
    assert not list(tmp_path.iterdir())


def test_only_complete_lines_are_read(tmp_path: Path) -> None:
    for length in range(len(LINES) + 1):
        (tmp_path / METRICS_FILE).write_text(LINES[:length])
        read = read_scalars(tmp_path)
        assert sum(map(len, read.values())) == LINES[:length].count("}")
        assert all(step / 3 == value for series in read.values() for step, value in series.items())


def test_lines_after_a_step_and_damaged_lines_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / METRICS_FILE
    damaged = b'{"step": 1, "tag": "a", "val\xffe": 3}\n[1]\n\n{"step": Infinity, "tag": "a", "value": 3}\n'
    file.write_bytes(damaged + LINES.encode() + b'{"step": 1, "ta')
    drop_scalars_after(tmp_path, 2)
    assert file.read_text() == "".join(LINES.splitlines(keepends=True)[:4])
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


@pytest.mark.parametrize("kind", ["named pipe", "device"])
def test_what_is_not_a_regular_file_has_no_scalars(tmp_path: Path, kind: str) -> None:
    file = tmp_path / METRICS_FILE
    if kind == "device":
        file.symlink_to("/dev/null")
    else:
        os.mkfifo(file)
    assert read_scalars(tmp_path) == {}
    drop_scalars_after(tmp_path, 0)
    with pytest.raises(ValueError, match=r"metrics\.jsonl: is not a regular file; remove it"):
        MetricsLog(tmp_path, from_step=0)


def test_a_full_disk_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longplay.launch.run_folders.metrics_log.write_settings", lambda *_: None)
    log = MetricsLog(tmp_path, from_step=0)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(log._tensorboard, "add_scalar", Mock(side_effect=full))
    with pytest.raises(OSError, match="No space left") as error:
        log.write(1, {"train/loss": 1.0})
    assert error.value.filename == str(tmp_path)
    log.close()
