"""The encoder's graphs, simulated on a CPU: the recorded operations are repeated on the same memory.

tests/distributed/test_device_traffic.py runs them with the kernels of a GPU.
"""

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.op_tape import TapeRecorder
from support.ranks import run_ranks
from support.runs import small_config, small_dataset
from torch import nn

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.cuda_graph import GraphedCall
from longplay.distributed.engine import EngineConfig
from longplay.distributed.runtime.world import World
from longplay.launch.evaluation.evaluation import evaluate
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step
from longplay.models.base.config import EncoderConfig
from longplay.models.encoder import build_encoder
from longplay.models.encoder_checks import check_cuda_graph
from longplay.models.inputs.spec import InputSpec

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longplay.distributed.cuda_graph.GraphRecorder", TapeRecorder)


def train(world: World, data: Path, graphed: bool, stage: int) -> list[Any]:
    """Train by operations of PyTorch alone, which can be recorded; return losses, metrics and weights."""
    words = ["--loss.name", "bce", "--encoder.scan_backend", "chunk", "--engine.zero_stage", str(stage)]
    config, dataset = small_config(*words, "--engine.cuda_graph", str(graphed)), Dataset.open(data)
    found: list[Any] = []
    with (
        mock.patch("longplay.distributed.cuda_graph.GraphRecorder", side_effect=TapeRecorder) as recorder,
        mock.patch("longplay.launch.training.model.check_cuda_graph"),
        mock.patch("longplay.models.mixers.causal_conv.load_native", return_value=None),
        mock.patch("longplay.models.mixers.elementwise.load_native", return_value=None),
    ):
        model = build_model(config, dataset, world)
        stream = TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size)
        pipeline = StepPipeline(model, iter(stream))
        for _ in range(2):
            for _ in range(3):
                result = train_step(model, pipeline.take(), lr=0.01, pipeline=pipeline)
                found.append((result.loss, result.grad_norm))
            model.engine.train(False)
            found.append(evaluate(model.engine, model.table, dataset, config, "validation").flat())
    assert recorder.call_count == graphed
    return [*found, {name: value.tolist() for name, value in model.engine.state().items()}]


@pytest.mark.parametrize(("world_size", "stage"), [(1, 1), (2, 2)])
def test_deepspeed_trains_bitwise_the_same_weights(tmp_path: Path, world_size: int, stage: int) -> None:
    data = small_dataset(tmp_path)
    plain, graphed = (run_ranks(train, world_size, data, graphed, stage) for graphed in (False, True))
    assert graphed == plain


def test_other_shapes_run_without_the_graph_and_moved_weights_are_refused() -> None:
    layer = nn.Linear(3, 2)
    calls: list[tuple[int, ...]] = []

    def function(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(x.shape))
        return layer(x) * factor

    graphed = GraphedCall(function, layer)
    for rows in (4, 4, 5, 4):
        x, factor = torch.randn(rows, 3, requires_grad=True), torch.randn(rows, 1)
        before = len(calls)
        found, expected = graphed(x, factor), layer(x) * factor
        assert torch.equal(found, expected)
        leaves = [x, *layer.parameters()]
        grads = [torch.autograd.grad(y.square().sum(), leaves) for y in (found, expected)]
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(*grads, strict=True))
        assert calls[before:] == {4: [], 5: [(5, 3)]}[rows] or before == 0
        with torch.no_grad():
            layer.weight.add_(0.5)
    layer.weight.data = layer.weight.data.clone()
    with pytest.raises(AssertionError, match="weights have moved"):
        graphed(torch.randn(4, 3), torch.randn(4, 1))


@pytest.mark.parametrize(
    ("settings", "inputs", "device", "problem"),
    [
        ({}, InputSpec(), "cpu", "needs a GPU"),
        ({"model": "sasrec"}, InputSpec(), "cuda", "items only"),
        ({"model": "gru4rec"}, InputSpec(), "cuda", "shapes in GRU4RecBlock"),
        ({"mixer": "mamba2", "headdim": 8}, InputSpec(), "cuda", "needs encoder.mixer mamba"),
        ({"scan_backend": "chunk"}, InputSpec(), "cuda", "needs encoder.scan_backend triton, not chunk"),
        ({"positional_embedding": True}, InputSpec(), "cuda", "items only"),
        ({}, InputSpec(time_gap="bucket"), "cuda", "items only"),
    ],
)
def test_an_encoder_that_a_graph_cannot_hold_is_refused(
    settings: dict[str, Any], inputs: InputSpec, device: str, problem: str
) -> None:
    config = EncoderConfig(**({"model": "mambarec", "d_model": 8, "context_length": 12} | settings))
    encoder = build_encoder(config, inputs=inputs)
    with pytest.raises(ValueError, match=f"^engine.cuda_graph: .*{problem}.* engine.cuda_graph false$"):
        check_cuda_graph(encoder, torch.device(device))


@pytest.mark.parametrize("model", ["mambarec", "recmamba"])
def test_encoders_of_fixed_shapes_are_accepted(model: Any) -> None:
    check_cuda_graph(build_encoder(EncoderConfig(model=model, d_model=8, context_length=12)), GPU)


@pytest.mark.parametrize("settings", [{"zero_stage": 3}, {"gradient_accumulation_steps": 2}])
def test_settings_that_move_or_add_gradients_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="cuda_graph=True: needs "):
        EngineConfig(cuda_graph=True, **settings)  # type: ignore[arg-type]  # of both settings
