"""What TensorBoard shows of a run beside its scalars: settings and final metrics, the gate, row norms.

All of it goes into the run's own tensorboard/ folder, so that a run is one line of every page.
"""

import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

_MAMBA, _ATTENTION = "#D55E00", "#0072B2"
_SAMPLED_ROWS = 4096

# The columns of the page HPARAMS: one type each in all runs, or they could not be compared.
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
    """The tag of a finished run's metric: "test_full_unseen/ndcg@10"."""
    return f"{split}_{kind}/{name}"


def write_settings(board: SummaryWriter, run: Path) -> None:
    """Make `run` a line of the page HPARAMS, beside all others of the folder that TensorBoard shows."""
    _write_session(board, run, ended=False)


def write_final_metrics(run: Path, split: str, step: int, metrics: Mapping[str, Mapping[str, float]]) -> None:
    """Add what `longplay evaluate` found to the run's TensorBoard folder; done again, it takes its place.

    A folder that this process may not write to stays as it is.

    Args:
        step: of the checkpoint that was evaluated.
        metrics: by kind and name, as in `Evaluation.metrics`.
    """
    folder = run / "tensorboard"
    if not os.access(folder if folder.exists() else run, os.W_OK):
        return
    with SummaryWriter(str(folder), filename_suffix=f".{split}") as board:
        _write_session(board, run, ended=True)
        for kind, values in metrics.items():
            for name, value in values.items():
                if not name.endswith("_se") and math.isfinite(value):
                    board.add_scalar(final_tag(split, kind, name), value, step)


def write_model(board: SummaryWriter, step: int, gate_weights: Mapping[str, float], shard: Tensor) -> None:
    """A validation's picture of the gate, for models that have one, and the norms of some table rows.

    Reads this rank's memory alone.

    Args:
        gate_weights: mean weights by "block0/mamba" and "block0/attention".
        shard: (rows, D), the table rows of this rank.
    """
    if shard.shape[0]:
        board.add_histogram("table/row_norm", row_norms(shard), step)
    if gate_weights:
        board.add_image("gate/mixing_weights", gate_picture(gate_weights), step, dataformats="HWC")


def row_norms(shard: Tensor) -> np.ndarray:
    """Euclidean norms of at most 4,096 rows, evenly spaced among a rank's."""
    rows = shard[:: max(1, math.ceil(shard.shape[0] / _SAMPLED_ROWS))]
    return torch.linalg.vector_norm(rows.detach().float(), dim=1).cpu().numpy()


def gate_picture(gate_weights: Mapping[str, float]) -> np.ndarray:
    """(H, W, 3) uint8: a bar per block, the first on top, divided between Mamba and attention."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # most models have no gate
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


def _write_session(board: SummaryWriter, run: Path, *, ended: bool) -> None:
    """As SummaryWriter.add_hparams, which would begin a folder of its own for it."""
    saved = json.loads((run / "config.json").read_text())
    settings = settings_of(saved["config"], saved["data"])
    columns = dict.fromkeys(_final_tags(saved["config"]["evaluation"]), 0.0)
    experiment, start, end = hparams(settings, columns)
    _put_first(experiment, _SHOWN_FIRST)
    writer = board._get_file_writer()
    for summary in (experiment, start, end) if ended else (experiment, start):
        writer.add_summary(summary)
    board.flush()


def _put_first(experiment: Any, names: Collection[str]) -> None:
    """The page shows five settings until one asks for others: let it be these."""
    held = experiment.value[0].metadata.plugin_data
    messages: Any = plugin_data_pb2  # protobuf fills it at run time, unseen by pyright
    content = messages.HParamsPluginData.FromString(held.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    held.content = content.SerializeToString()


def settings_of(config: Mapping[str, Any], data: str) -> dict[str, Any]:
    """The settings by which runs are compared; "none" stands for one that the model decides.

    Args:
        config: nested, as in config.json.
        data: the dataset's place; its last part is shown.
    """
    found: dict[str, Any] = {"dataset": data.rstrip("/").rpartition("/")[2]}
    for name, kind in _SETTINGS.items():
        value: Any = config
        for part in name.split("."):
            value = value[part]
        found[name] = str(value).lower() if kind is str else kind(value)
    return found


def _final_tags(evaluation: Mapping[str, Any]) -> list[str]:
    """The metrics that are columns of the page HPARAMS: those of the test split at 10 and 20."""
    kinds = ("full_unseen", "full", f"sampled{evaluation['num_sampled']}")
    cutoffs = [cutoff for cutoff in evaluation["cutoffs"] if cutoff in (10, 20)] or evaluation["cutoffs"]
    measures = [f"{measure}@{cutoff}" for cutoff in cutoffs for measure in ("hit", "ndcg")]
    return [final_tag("test", kind, measure) for kind in kinds for measure in measures]
