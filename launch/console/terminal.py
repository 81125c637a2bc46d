"""The terminal of a training run: lines and a progress bar."""

import sys

from tqdm import tqdm

from longplay.distributed.runtime.world import World


class Terminal:
    """Rank 0's terminal; the other ranks' Terminal prints nothing."""

    def __init__(self, world: World) -> None:
        self.speaks = world.is_rank0
        self.bar: tqdm | None = None

    def say(self, line: str) -> None:
        """Print one line, above the progress bar where there is one."""
        if self.speaks:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def start_bar(self, *, done: int, total: int) -> None:
        """Show a progress bar, unless the output goes to a file."""
        if self.speaks and sys.stdout.isatty():
            self.bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)

    def step_done(self, loss: float) -> None:
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            self.bar.update(1)

    def stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
