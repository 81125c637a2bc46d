"""Log the scalars of a run to metrics.jsonl and TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from longplay.common.atomic import named_errors
from longplay.launch.run_folders.metrics_file import METRICS_FILE, Scalar, drop_scalars_after
from longplay.launch.run_folders.tensorboard_log import (
    report_write_errors_once,
    write_model,
    write_settings,
)


class MetricsLog:
    """Append scalars to metrics.jsonl and TensorBoard.

    A resumed run first drops what was logged after its checkpoint, or everything if it has none.

    Args:
        run: the run folder, which has a config.json.
        from_step: the checkpoint's step; 0 for a new run.

    Raises:
        ValueError: metrics.jsonl is not a regular file.
    """

    def __init__(self, run: Path, *, from_step: int) -> None:
        file = run / METRICS_FILE
        if file.exists() and not file.is_file():  # opening a named pipe could wait forever
            raise ValueError(f"{file}: is not a regular file; remove it")
        drop_scalars_after(run, from_step)
        report_write_errors_once()
        self._run, self._file = run, open(file, "a", buffering=1)
        with named_errors(run):
            # Also for step 0: a run killed before its first checkpoint repeats the steps it has logged.
            self._tensorboard = SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1)
            write_settings(self._tensorboard, run)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line per scalar.

        Raises:
            OSError: the run folder cannot be written; names it.
        """
        with named_errors(self._run):
            for tag, value in scalars.items():
                self._file.write(Scalar(step, tag, value).line())
                self._tensorboard.add_scalar(tag, value, step)

    def write_model(self, step: int, gate_weights: Mapping[str, float], table_shard: Tensor) -> None:
        """Log the gate's mean weights as scalars and a picture, and the norms of this rank's table rows.

        Args:
            gate_weights: mean weights by "block0/mamba" and "block0/attention"; empty without a gate.
            table_shard: (rows, D).
        """
        self.write(step, {f"gate/{name}": weight for name, weight in gate_weights.items()})
        with named_errors(self._run):
            write_model(self._tensorboard, step, gate_weights, table_shard)

    def close(self) -> None:
        """Write buffered scalars to disk."""
        with named_errors(self._run):
            self._file.close()
            self._tensorboard.close()
