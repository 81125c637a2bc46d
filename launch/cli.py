"""The `longplay` command: builds the parser and runs the command that was asked for."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from longplay.launch.console.exit_codes import EXIT_USAGE, exit_code_of

COMMANDS = (
    *("prepare", "synth", "inspect", "train", "evaluate", "recommend", "export", "plan"),
    *("sweep", "report"),
)
_MODULES = {"inspect": "inspect_dataset"}  # launch/inspect.py would hide the standard library's `inspect`


def main(argv: Sequence[str] | None = None) -> int:
    """Run `longplay ...`; its exit code: 0 done, 1 failed, 2 wrong input, 75 saved and to be resumed."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words[0] if words else None)
    args, rest = parser.parse_known_args(words)
    if not hasattr(args, "func"):
        parser.print_help()
        return EXIT_USAGE
    takes_overrides = getattr(args, "takes_overrides", False)
    if rest and not takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return exit_code_of(lambda: args.func(args, rest) if takes_overrides else args.func(args))


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of `command` alone, so that no other's imports are waited for; of all, if it is none."""
    parser = argparse.ArgumentParser(
        prog="longplay",
        description="Distributed training of sequential recommenders over lifelong histories.",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND")
    for name in (command,) if command in COMMANDS else COMMANDS:
        importlib.import_module(f"longplay.launch.{_MODULES.get(name, name)}").register(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
