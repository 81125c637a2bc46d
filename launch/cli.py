"""The `longplay` command: find the module of a command and run it."""

import argparse
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn

from longplay.launch.console.exit_codes import EXIT_USAGE, exit_code_of
from longplay.launch.console.importing import exit_on_interrupt

# Every command with its line of help. Its module is imported when the command is used, because most of them
# import PyTorch.
COMMANDS = {
    "synth": "generate raw files in the layout of a public dataset",
    "prepare": "convert raw events into a dataset of tar shards",
    "inspect": "describe and verify a dataset",
    "config": "print all settings of a run as YAML",
    "plan": "estimate memory, traffic and steps of a run",
    "train": "train a recommender, or resume training",
    "evaluate": "measure exact ranking metrics of a run",
    "recommend": "print the next items for a history",
    "export": "write the model of a run as plain files",
    "sweep": "train and evaluate a grid of runs, on Slurm or on this machine",
    "report": "write tables and figures of a sweep",
}
_OUTPUTS = ("out", "output", "output_dir", "out_dir", "outdir", "save_dir", "dest")  # all mean --out or --run
_MODULES = {"inspect": "inspect_dataset"}  # launch/inspect.py would hide the standard library's `inspect`


class Parser(argparse.ArgumentParser):
    """A parser that raises ValueError where argparse would print the usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class _Commands(argparse._SubParsersAction):
    """Adds a command with its line of help from COMMANDS."""

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        return super().add_parser(name, help=COMMANDS[name], **options)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `longplay ...` and return the exit code: 0 done, 1 failed, 2 bad input, 75 stopped and saved.

    Args:
        argv: the words of the command; None = `sys.argv`. Ctrl-C during imports then ends the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    has_command = bool(words) and not words[0].startswith("-")
    importing = exit_on_interrupt if argv is None else nullcontext
    return exit_code_of(
        lambda: _run_command(words, importing) if has_command else _run_without_command(words)
    )


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of one command, or of all commands. Imports the modules of these commands."""
    parser = Parser(
        prog="longplay",
        description="Distributed training of sequential recommenders over lifelong histories.",
    )
    subparsers = parser.add_subparsers(action=_Commands, metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS if command is None else (command,):
        importlib.import_module(f"longplay.launch.{_MODULES.get(name, name)}").register(subparsers)
    return parser


def _run_without_command(words: Sequence[str]) -> int:
    """Print the help, the version or a completion script. Only the completion script imports the commands."""
    parser = Parser(
        prog="longplay",
        usage="longplay COMMAND [ARGUMENTS]\n       longplay COMMAND --help",
        description="Distributed training of sequential recommenders over lifelong histories.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<11}{text}" for name, text in COMMANDS.items()),
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        help="print a script that completes commands and settings in this shell",
    )
    args = parser.parse_args(words)
    if args.version:
        from importlib import metadata  # takes a tenth of a second

        print(f"longplay {metadata.version('longplay')}")
        return 0
    if args.print_completion is None:
        parser.print_help()
        return EXIT_USAGE
    from longplay.launch.console.completion import completion_script

    print(completion_script(build_parser(), args.print_completion))
    return 0


def _run_command(words: Sequence[str], importing: Callable[[], AbstractContextManager[None]]) -> int:
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{words[0]}: unknown command; {hint}the commands are {', '.join(COMMANDS)}")
    with importing():
        parser = build_parser(words[0])
    (command,) = subcommands(parser)
    add_settings = command.get_default("settings")
    if add_settings is not None and {"-h", "--help"}.intersection(words):
        add_settings(command, words[1:])
    try:
        args, rest = parser.parse_known_args(words)
    except ValueError:
        _check_options(command, words[1:])  # a misspelled option may be why another is missing
        raise
    if rest:
        _check_options(command, words[1:])
    if getattr(args, "takes_overrides", False):
        return args.func(args, rest)
    if rest:
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    return args.func(args)


def _check_options(command: argparse.ArgumentParser, words: Iterable[str]) -> None:
    """Raise ValueError for an unknown option that resembles an existing one or cannot be a setting."""
    known = {_plain(option): option for option in _options(command)}
    takes_settings = command.get_default("takes_overrides")
    if takes_settings:
        from longplay.launch.settings.arguments import options_of_settings
        from longplay.launch.settings.overrides import ALIASES

        known |= {_plain(option): option for option in (*options_of_settings(), *ALIASES)}
    for word in words:
        name = _plain(word.partition("=")[0])
        if not word.startswith("--") or "." in name or any(option.startswith(name) for option in known):
            continue
        near = [option for option in ("out", "run") if name in _OUTPUTS and option in known]
        near += difflib.get_close_matches(name, known, n=1, cutoff=0.75 if takes_settings else 0.5)
        if near or not takes_settings:  # other unknown names are reported where settings are read
            hint = f"; did you mean {known[near[0]]}?" if near else ""
            command.error(f"--{name}: unknown option{hint}")


def _plain(option: str) -> str:
    return option.lstrip("-").replace("-", "_")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
    for subparser in subcommands(parser):
        yield from _options(subparser)


def subcommands(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers directly below `parser`."""
    found = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [subparser for action in found for subparser in action.choices.values()]


if __name__ == "__main__":
    sys.exit(main())
