"""Exit codes of every command, and errors printed as one line."""

import errno
import os
import sys
from collections.abc import Callable

from longplay.common.printable import printable
from longplay.distributed.runtime.launchers import is_other_rank, read_environment
from longplay.launch.console.standard_streams import open_closed_streams, reader_has_ended, write_or_drop

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REQUEUE = 75  # EX_TEMPFAIL: the run received a stop signal and saved; the same command resumes it
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141  # as of a program that SIGPIPE ends
_REMEDIES = {
    errno.ENOSPC: "free disk space and repeat the command",
    errno.EDQUOT: "free disk space and repeat the command",
}
_FAILURES = ("NonFiniteError", "OutOfMemoryError")  # by name, because importing their module takes seconds


def exit_code_of(command: Callable[[], int]) -> int:
    """Run `command` and return its exit code; print an error that a user can act on as one line.

    ValueError and OSError mean invalid input. Any exception that is not listed here is a bug and propagates
    with its traceback.
    """
    open_closed_streams()
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except UnicodeEncodeError as error:
        return report(
            f"{error.object!r}: is not valid {error.encoding}; rename the file or folder", EXIT_USAGE
        )
    except ValueError as error:
        return report(str(error), EXIT_USAGE)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_has_ended(sys.stdout):
            write_or_drop(sys.stdout)
            return EXIT_PIPE_CLOSED
        return report(_line_of(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return report("interrupted", EXIT_INTERRUPTED)
    except RuntimeError as error:
        if type(error).__name__ not in _FAILURES:
            raise
        return report(str(error), EXIT_FAILED)


def _line_of(error: OSError) -> str:
    """Return where the error is, what it is, and what to do."""
    if error.filename is not None:
        where = os.fsdecode(error.filename)
    else:
        where = "input or output" if write_or_drop(sys.stdout, "\n") else "standard output"
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{where}: {error.strerror or error}" + (f"; {remedy}" if remedy else "")


def report(message: str, code: int) -> int:
    """Print an error as one line and return `code`.

    Only rank 0 prints until the process group exists; after that every rank prints its own error.
    """
    torch = sys.modules.get("torch")
    connected = (
        torch is not None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
    )
    if connected or not is_other_rank(os.environ):
        write_or_drop(sys.stdout)
        where = f" on rank {read_environment(os.environ)[0]}" if connected else ""
        line = printable(" ".join(message.splitlines()), sys.stderr.encoding)
        write_or_drop(sys.stderr, f"longplay: error{where}: {line}\n")
    return code
