"""Every benchmark can be imported and says what it measures; its numbers are nobody's test."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.research_loop import PaddedMambaRec, PaddedSASRec, PaddedUsers, ResearchLoop, evaluate_by_user

REPOSITORY = Path(__file__).resolve().parents[3]
SCRIPTS = sorted(
    path.stem for path in (REPOSITORY / "benchmarks").glob("*.py") if "__main__" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_says_what_it_measures(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"benchmarks.{script}").main()
    assert stopped.value.code == 0
    assert "usage" in capsys.readouterr().out
    assert f"`{script}.py`" in (REPOSITORY / "benchmarks" / "README.md").read_text()


@pytest.mark.parametrize("model", ["mambarec", "sasrec"])
def test_the_research_loop_learns_a_cycle(model: str) -> None:
    """Item n is followed by n + 1; a fair baseline finds that out."""
    torch.manual_seed(0)
    num_items, length = 30, 12
    histories = [[1 + (first + at) % num_items for at in range(20)] for first in range(64)]
    sizes = (num_items, 16, 1)
    padded = PaddedMambaRec(*sizes, 8, "chunk") if model == "mambarec" else PaddedSASRec(*sizes, length)
    loop = ResearchLoop(padded, PaddedUsers([h[:-1] for h in histories], num_items, length), 32, 0)
    for group in loop.optimizer.param_groups:
        group["lr"] = 0.01
    assert loop.step() == 32 * length
    for _ in range(60):
        loop.step()
    hit_rate = evaluate_by_user(
        padded, [h[:-1] for h in histories], [h[-1] for h in histories], num_items, length
    )
    assert hit_rate > 0.9
