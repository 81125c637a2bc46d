"""A second CUDA stream; on a CPU its work runs in program order."""

from contextlib import AbstractContextManager, nullcontext

import torch


class SideStream:
    """A second CUDA stream for work whose results the main stream needs later.

    Copying a value of this work to the CPU (a count, a size) waits for the side stream only; work queued on
    the main stream keeps running.

    Tensors created on the side stream may be used on the main stream after `join`. They may be freed as soon
    as the main stream's last use is queued: only later side-stream work reuses their memory, and that work
    waits for the next `mark`.
    """

    def __init__(self, device: torch.device) -> None:
        self._side = self._mark = None
        if device.type == "cuda":
            self._side, self._mark = torch.cuda.Stream(device), torch.cuda.Event()

    def mark(self) -> None:
        """Make later side-stream work wait for everything queued on the main stream so far."""
        if self._mark is not None:
            self._mark.record()

    def stream(self) -> AbstractContextManager[object]:
        """Return a context whose GPU work runs on the side stream, after the last `mark`."""
        if self._side is None or self._mark is None:
            return nullcontext()
        self._side.wait_event(self._mark)
        return torch.cuda.stream(self._side)

    def join(self) -> None:
        """Make later main-stream work wait for everything queued on the side stream so far."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)
