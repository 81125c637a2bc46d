"""Write what TensorBoard shows besides the scalars of a run: settings, final metrics, gate and row norms.

Everything goes into the run's own tensorboard/ folder, so that a run is one entry on every page.
"""

import functools
import math
import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from longplay.common.atomic import named_errors
from longplay.launch.settings.overrides import flatten
from longplay.launch.settings.resolving import to_json
from longplay.launch.settings.saved import read_config, read_saved_run

_MAMBA, _ATTENTION = "#D55E00", "#0072B2"
_SAMPLED_ROWS = 4096

# The columns of the HPARAMS page. A column has the same type in all runs, so that they can be compared.
_SETTINGS: dict[str, type] = {
    "encoder.model": str,
    "context_length": float,
    "seed": float,
    "recipe": str,
    "encoder.d_model": float,
    "encoder.num_blocks": float,
    "encoder.dropout": float,
    "encoder.positional_embedding": str,
    "encoder.layer_norm": bool,
    "loss.name": str,
    "loss.negatives": str,
    "loss.num_negatives": float,
    "table.update": str,
    "engine.precision": str,
    "data.rows_per_step": float,
    "train.lr": float,
    "train.max_epochs": float,
}

_SHOWN_FIRST = ("dataset", "encoder.model", "context_length", "seed", "train.lr")


def final_tag(split: str, kind: str, name: str) -> str:
    """Return the tag of a final metric: "test_full_unseen/ndcg@10"."""
    return f"{split}_{kind}/{name}"


@functools.cache
def report_write_errors_once() -> None:
    """Keep TensorBoard's thread from printing a traceback: its writer raises the same error to the caller."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (type(args.thread).__name__ == "_AsyncWriterThread" and isinstance(args.exc_value, OSError)):
            before(args)

    threading.excepthook = hook


def write_settings(writer: SummaryWriter, run: Path) -> None:
    """Add the run to the HPARAMS page."""
    _write_session(writer, run, ended=False)


def write_final_metrics(run: Path, split: str, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Add the metrics of an evaluation to the run's TensorBoard folder. A later evaluation replaces them.

    Do nothing if the folder is not writable.

    Args:
        step: the step of the evaluated checkpoint.
        metrics: by candidates and name, as in `Evaluation.metrics`.

    Raises:
        OSError: the disk is full.
    """
    folder = run / "tensorboard"
    if not os.access(folder if folder.exists() else run, os.W_OK):
        return
    report_write_errors_once()
    with named_errors(folder), SummaryWriter(str(folder), filename_suffix=f".{split}") as writer:
        _write_session(writer, run, ended=True)
        for kind, values in metrics.items():
            for name, value in values.items():
                if not name.endswith("_se") and math.isfinite(value):
                    writer.add_scalar(final_tag(split, kind, name), value, step)


def write_model(
    writer: SummaryWriter, step: int, gate_weights: Mapping[str, float], table_shard: Tensor
) -> None:
    """Write a picture of the gate, if the model has one, and a histogram of the norms of this rank's rows.

    Args:
        gate_weights: mean weights by "block0/mamba" and "block0/attention"; empty without a gate.
        table_shard: (rows, D), the table rows of this rank.
    """
    if table_shard.shape[0]:
        writer.add_histogram("table/row_norm", row_norms(table_shard), step)
    if gate_weights:
        writer.add_image("gate/mixing_weights", gate_picture(gate_weights), step, dataformats="HWC")


def row_norms(table_shard: Tensor) -> np.ndarray:
    """Return the Euclidean norms of at most 4,096 evenly spaced rows."""
    rows = table_shard[:: max(1, math.ceil(table_shard.shape[0] / _SAMPLED_ROWS))]
    return torch.linalg.vector_norm(rows.detach().float(), dim=1).cpu().numpy()


def gate_picture(gate_weights: Mapping[str, float]) -> np.ndarray:
    """Draw a bar per block, divided between Mamba and attention, the first block on top.

    Returns:
        (H, W, 3) uint8.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here: most models have no gate
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(name.partition("/")[0] for name in gate_weights))
    figure = Figure(figsize=(6, 1.3 + 0.45 * len(blocks)), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    mamba = np.array([gate_weights[f"{block}/mamba"] for block in blocks])
    attention = np.array([gate_weights[f"{block}/attention"] for block in blocks])
    at = np.arange(len(blocks))
    bars = ((0 * mamba, mamba, _MAMBA, "Mamba"), (mamba, attention, _ATTENTION, "attention"))
    for left, widths, color, name in bars:
        axes.barh(at, widths, left=left, color=color, label=name, height=0.7)
        for y, (start, width) in enumerate(zip(left, widths, strict=True)):
            if width > 0.08:
                axes.text(start + width / 2, y, f"{width:.2f}", color="white", ha="center", va="center")
    axes.set_yticks(at, [block.replace("block", "block ") for block in blocks])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="mean mixing weight")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# ---------------------------------------------------------------------- HPARAMS


def _write_session(writer: SummaryWriter, run: Path, *, ended: bool) -> None:
    """Write the summaries of SummaryWriter.add_hparams, which would itself create another folder."""
    config = to_json(read_config(run))
    settings = settings_of(config, read_saved_run(run).data)
    columns = dict.fromkeys(_final_tags(config["evaluation"]), 0.0)
    experiment, start, end = hparams(settings, columns)
    _put_first(experiment, _SHOWN_FIRST)
    file_writer = writer._get_file_writer()
    for summary in (experiment, start, end) if ended else (experiment, start):
        file_writer.add_summary(summary)
    writer.flush()


def _put_first(experiment: Any, names: Collection[str]) -> None:
    """Select the settings that the page shows initially."""
    held = experiment.value[0].metadata.plugin_data
    messages: Any = plugin_data_pb2  # protobuf generates its classes at run time
    content = messages.HParamsPluginData.FromString(held.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    held.content = content.SerializeToString()


def settings_of(config: Mapping[str, Any], data: str) -> dict[str, Any]:
    """Return the settings by which runs are compared; "none" stands for a default of the model.

    Args:
        config: nested, as in config.json.
        data: the dataset's path or URL, of which the last part is used.
    """
    values = flatten(config)
    found = {
        name: str(values[name]).lower() if kind is str else kind(values[name])
        for name, kind in _SETTINGS.items()
    }
    return {"dataset": data.rstrip("/").rpartition("/")[2], **found}


def _final_tags(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the metrics that are columns of the HPARAMS page: those of the test split at 10 and 20."""
    kinds = ("full_unseen", "full", f"sampled{evaluation['num_sampled']}")
    cutoffs = [cutoff for cutoff in evaluation["cutoffs"] if cutoff in (10, 20)] or evaluation["cutoffs"]
    measures = [f"{measure}@{cutoff}" for cutoff in cutoffs for measure in ("hit", "ndcg")]
    return [final_tag("test", kind, measure) for kind in kinds for measure in measures]
