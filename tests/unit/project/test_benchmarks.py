"""Every benchmark starts, prints its help and is listed in benchmarks/README.md."""

import runpy
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(
    path.stem for path in (REPOSITORY / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_prints_its_help_and_is_listed(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend(REPOSITORY)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPOSITORY / "benchmarks" / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out
    assert f"`{script}.py`" in (REPOSITORY / "benchmarks" / "README.md").read_text()
