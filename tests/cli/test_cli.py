"""The `longplay` command itself: its help, its options, its exit codes."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from longplay.distributed.runtime.errors import NonFiniteError
from longplay.launch import train
from longplay.launch.cli import COMMANDS, build_parser, main
from longplay.launch.console.exit_codes import report


def exit_code(words: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(words) == 0
    assert capsys.readouterr().out.startswith("usage: longplay")


def test_no_command_prints_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)


def test_an_unknown_command_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["trian"]) == 2
    complaint = capsys.readouterr().err
    assert all(command in complaint for command in COMMANDS)


def test_only_train_takes_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(["evaluate", "runs/a", "--train.lr", "1"]) == 2
    assert "unrecognized arguments: --train.lr 1" in capsys.readouterr().err


def test_options_are_parsed() -> None:
    args = build_parser("evaluate").parse_args("evaluate runs/a --split validation --json --baseline".split())
    assert (args.run, args.split, args.json, args.baseline) == (Path("runs/a"), "validation", True, True)
    assert (args.checkpoint, args.device) == ("best", "auto")
    args = build_parser("recommend").parse_args("recommend runs/a --history - --top 5 --keep-seen".split())
    assert (args.history, args.top, args.keep_seen, args.json) == (Path("-"), 5, True, False)


def test_overrides_reach_train_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[argparse.Namespace, list[str]]] = []
    monkeypatch.setattr(train, "run", lambda args, rest: seen.append((args, rest)) or 75)
    words = "train demo --data d --run r --train.lr 0.1 --seed=3 --data.split.kind temporal".split()
    assert main(words) == 75
    ((args, rest),) = seen
    assert (args.recipe, args.data, args.run) == ("demo", Path("d"), Path("r"))
    assert rest == ["--train.lr", "0.1", "--seed=3", "--data.split.kind", "temporal"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such thing;\ntake another"), 2),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2),
        (NonFiniteError("the loss is not finite"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=["wrong input", "file", "not finite", "interrupt"],
)
def test_an_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(train, "run", fail)
    assert main("train demo --data d --run r".split()) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("longplay: error: ")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main("train demo --data d --run r".split())


def test_one_rank_speaks_for_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert report("wrong", 2) == 2
    assert capsys.readouterr().err == ""


def test_prepare_starts_without_the_weight_of_training() -> None:
    code = "import sys; from longplay.launch.cli import build_parser; build_parser('prepare'); "
    code += "sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
