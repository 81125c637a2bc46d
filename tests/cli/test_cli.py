"""The `longplay` command itself: its help, its options, its exit codes."""

import argparse
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from longplay.distributed.runtime.errors import NonFiniteError
from longplay.launch import train
from longplay.launch.cli import COMMANDS, build_parser, main
from longplay.launch.console.exit_codes import report
from longplay.launch.settings.arguments import options_of_settings


def run_to_exit(words: list[str]) -> int:
    """Run a command that argparse ends with SystemExit, and return the exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.mark.parametrize("words", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit(words) == 0
    assert capsys.readouterr().out.startswith("usage: longplay")


def test_without_a_command_all_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["trian"]])
def test_without_a_command_nothing_heavy_is_imported(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from longplay.launch.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'numpy', 'polars', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, *words], check=False, timeout=60).returncode == 0


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"longplay {metadata.version('longplay')}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian demo", "trian: unknown command; did you mean train?"),
        ("evaluate runs/a --splt test", "--splt: unknown option; did you mean --split?"),
        ("evaluate runs/a --train.lr 1", "unrecognized arguments: --train.lr 1"),
        ("train demo --dtaa d --run r", "--dtaa: unknown option; did you mean --data?"),
        ("train demo --data d --run r --profle", "--profle: unknown option; did you mean --profile?"),
        ("train demo --data d --run r --seeed 3", "--seeed: unknown option; did you mean --seed?"),
        ("prepare csv events.csv --out o --itm x", "--itm: unknown option; did you mean --item?"),
        ("config", "the following arguments are required: RECIPE"),
    ],
)
def test_a_misspelled_word_is_reported_in_one_line_with_the_nearest_match(
    words: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"longplay: error: {hint}")


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


@pytest.mark.parametrize("command", ["train", "plan", "config"])
def test_help_lists_every_setting_with_the_recipes_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_to_exit([command, "lfm5k", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for option in options_of_settings():
        assert re.search(rf" {re.escape(option)} [A-Za-z0-9|_,.]+ \w.*?\(default: ", printed), option
    assert re.search(r"--context_length INT .*?\(default: 5000\) ", printed)
    assert re.search(r"--engine.precision fp32\|bf16 .*?\(default: bf16\) ", printed)
    assert all(option in printed for option in ("--config", "--import"))


def test_help_without_a_recipe_gives_the_general_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_to_exit(["train", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--seed INT .*?\(default: by recipe\) ", printed)
    assert re.search(r"--train.lr FLOAT .*?\(default: 0.001\) ", printed)


def test_bash_completes_commands_recipes_settings_and_values(tmp_path: Path) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "longplay.launch.cli", "--print-completion", "bash"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    asks = ("tr", "train mambar", "train demo --train.log_ev", "train demo --encoder.gate so")
    lines = [script, 'ask() { COMP_WORDS=(longplay "$@"); COMP_CWORD=$#; COMPREPLY=(); _shtab_longplay']
    lines += ["echo ${COMPREPLY[@]}; }", *(f"ask {words}" for words in asks)]
    (tmp_path / "ask.sh").write_text("\n".join(lines))
    found = subprocess.run(["bash", tmp_path / "ask.sh"], check=True, capture_output=True, text=True).stdout
    assert found.splitlines() == ["train", "mambarec", "--train.log_every_steps", "soft"]


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
def test_an_error_prints_one_line_and_sets_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(train, "run", fail)
    assert main("train demo --data d --run r".split()) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("longplay: error: ")


INTERRUPTED_IMPORT = """
import os, signal, sys

class Hook:
    def find_spec(self, name, *_):
        if name == interrupted:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:  # as some packages do around an import
                pass

from longplay.launch.start import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
sys.meta_path.insert(0, Hook())
interrupted, sys.argv[1:] = sys.argv[1], ["config", "demo"]
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["longplay.launch.cli", "torch"])
def test_ctrl_c_during_an_import_ends_the_command_at_once(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, module],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "longplay: error: interrupted\n")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main("train demo --data d --run r".split())


def test_only_rank_0_prints_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert report("wrong", 2) == 2
    assert capsys.readouterr().err == ""


def test_a_rank_left_over_in_the_shell_does_not_silence_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["config", "unknown"]) == 2
    assert "unknown" in capsys.readouterr().err


def test_prepare_does_not_import_deepspeed() -> None:
    code = "import sys; from longplay.launch.cli import build_parser; build_parser('prepare'); "
    code += "sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("config mambarec", 141)])
def test_a_command_ends_quietly_when_nobody_reads_its_output(words: str, code: int) -> None:
    command = [sys.executable, "-m", "longplay.launch.cli", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(timeout=240) == code
