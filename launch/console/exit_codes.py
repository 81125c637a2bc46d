"""Exit codes of every command, and errors printed as one line."""

import os
import select
import sys
from collections.abc import Callable

from longplay.common.printable import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL: the run received a stop signal and saved; the same command resumes it
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141  # as of a program that SIGPIPE ends
_FAILURES = ("NonFiniteError", "OutOfMemoryError")  # by name, because importing their module takes seconds


def exit_code_of(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code; print an error that a user can act on as one line.

    ValueError and OSError mean invalid input. Any exception that is not listed here is a bug and propagates
    with its traceback.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except ValueError as error:
        return report(str(error), EXIT_USAGE)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return EXIT_PIPE_CLOSED
        return report(f"{error.filename or 'input or output'}: {error.strerror or error}", EXIT_USAGE)
    except KeyboardInterrupt:
        return report("interrupted", EXIT_INTERRUPTED)
    except RuntimeError as error:
        if type(error).__name__ not in _FAILURES:
            raise
        return report(str(error), EXIT_FAILED)


def _output_is_closed() -> bool:
    """Return whether the program that reads stdout has ended, as `head` does. Then drop all later output."""
    closed = select.poll()
    closed.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in closed.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def report(message: str, code: int) -> int:
    """Print an error as one line and return `code`.

    Only rank 0 prints until the process group exists; after that every rank prints its own error.
    """
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    torch = sys.modules.get("torch")
    connected = (
        torch is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    )
    if rank == "0" or connected:
        sys.stdout.flush()
        where = f" on rank {rank}" if connected else ""
        line = printable(" ".join(message.splitlines()), sys.stderr.encoding)
        print(f"longplay: error{where}: {line}", file=sys.stderr, flush=True)
    return code
