"""Read the output of a command that ends when this process ends, even by SIGKILL."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Iterator, Sequence

from longplay.data_shards.errors import PermanentError

SILENCE_S = 300.0
_BLOCK_BYTES = 1 << 20
# Standard input is a pipe whose other end this process holds. When that end is closed, by `blocks` or by the
# end of this process, the subshell kills its process group: the command and what the command has started.
_SUPERVISED = """
exec 3<&0 </dev/null
(read -r line <&3; kill -KILL 0) >/dev/null 2>&1 &
exec 3<&-
"$@"
"""


class CommandOutput:
    """The standard output of a command."""

    resumable = False

    def __init__(self, words: Sequence[str]) -> None:
        self._words = list(words)

    def blocks(self, start: int = 0) -> Iterator[bytes]:
        """Run the command and yield its output. When the iterator is closed, no process of it is left.

        Raises:
            PermanentError: the program is not installed, or it prints nothing for SILENCE_S.
            OSError: the command fails.
        """
        assert start == 0, "a command starts from the beginning"
        program = self._words[0]
        if shutil.which(program) is None:
            raise PermanentError(
                f"needs {program}, which is not installed; install it, or copy the dataset to a local folder"
            )
        ours, theirs = os.pipe()[::-1]
        try:
            words = ["sh", "-c", _SUPERVISED, "sh", *self._words]
            process = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, process_group=0)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        assert process.stdout is not None
        try:
            while block := _read(process.stdout.fileno(), program):
                yield block
            status = process.wait(SILENCE_S)
        except subprocess.TimeoutExpired:
            raise PermanentError(f"{program} has closed its output and does not end") from None
        finally:
            os.close(ours)
            process.stdout.close()
            process.wait()
        if status:
            raise OSError(f"{program} exited with status {status}")


def _read(descriptor: int, program: str) -> bytes:
    """Return the next bytes, or none at the end of the output."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(1e3 * SILENCE_S):
        raise PermanentError(f"{program} has printed nothing for {SILENCE_S:g} s")
    return os.read(descriptor, _BLOCK_BYTES)
