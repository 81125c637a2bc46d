"""The `longplay` command: one parser, one place where errors become one line and an exit code."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

# A user's mistakes are ValueErrors with a one-line way out; anything else is a bug and shows its traceback.
_EXIT_USAGE = 2
_EXIT_FAILED = 1
_FAILURES = ("NonFiniteError", "OutOfMemoryError")  # by name, as importing their module takes seconds
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
        return _EXIT_USAGE
    takes_overrides = getattr(args, "takes_overrides", False)
    if rest and not takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        return args.func(args, rest) if takes_overrides else args.func(args)
    except ValueError as error:
        return report(str(error), _EXIT_USAGE)
    except OSError as error:
        return report(f"{error.filename or 'input or output'}: {error.strerror or error}", _EXIT_USAGE)
    except KeyboardInterrupt:
        return report("interrupted", 130)
    except RuntimeError as error:
        if type(error).__name__ not in _FAILURES:
            raise
        return report(str(error), _EXIT_FAILED)


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


def report(message: str, code: int) -> int:
    """Print an error as one line: from rank 0 alone until the ranks have met, then from whichever has it."""
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    torch = sys.modules.get("torch")
    met = torch is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    if rank == "0" or met:
        sys.stdout.flush()
        where = f" on rank {rank}" if met else ""
        print(f"longplay: error{where}: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
