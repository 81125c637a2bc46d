"""Work that a GPU does beside its main stream; on a CPU it is done in its place in the program."""

from contextlib import AbstractContextManager, nullcontext

import torch


class SideStream:
    """A second CUDA stream for work whose results the main stream needs a while later.

    Whoever reads back a number of that work (a count, a size) waits for the side stream alone, while the main
    stream goes on with what it has been given.

    What is made beside may be used on the main stream from `join` on. It may be dropped at any time after the
    main stream's last use was issued, for its memory is handed out again only to work beside, which comes
    after the next `mark`.
    """

    def __init__(self, device: torch.device) -> None:
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._mark = None if self._side is None else torch.cuda.Event()

    def mark(self) -> None:
        """Work beside, from now on, comes after all that the main stream was given until now."""
        if self._mark is not None:
            self._mark.record()

    def beside(self) -> AbstractContextManager[object]:
        """A context whose GPU work runs beside the main stream, after the last `mark`."""
        if self._side is None:
            return nullcontext()
        if self._mark is not None:
            self._side.wait_event(self._mark)
        return torch.cuda.stream(self._side)

    def join(self) -> None:
        """The main stream's work from now on comes after all work beside until now."""
        if self._side is not None:
            torch.cuda.current_stream(self._side.device).wait_stream(self._side)
