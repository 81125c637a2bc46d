"""A training step on another device: no operation mixes devices, and the host waits only where it must."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.op_tape import TapeRecorder
from support.other_device import DEVICE, OtherDevice
from support.runs import small_config, small_dataset
from torch import Tensor, nn

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.world import World
from longplay.launch.evaluation.evaluation import evaluate
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step
from longplay.models.losses.chunks import CHUNK_ELEMENTS

pytestmark = pytest.mark.kernels("cpu")
SIZES = [
    *("--context_length", "12", "--data.rows_per_step", "3", "--data.num_lanes", "3"),
    *("--encoder.d_model", "8", "--encoder.d_state", "4"),
]


class PlainEngine:
    """Stands for DeepSpeed's engine, which cannot run on this device, with plain gradient descent."""

    def __init__(self, module: Any, groups: Any, config: Any, **settings: Any) -> None:
        module._device_type = "cpu"  # for autocast, which is disabled
        self._module = module

    def __call__(self, *inputs: Any) -> Any:
        return self._module(*inputs)

    def train(self, mode: bool) -> None:
        self._module.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def grad_norm(self) -> Tensor:
        grads = [parameter.grad for parameter in self._module.parameters() if parameter.grad is not None]
        return torch.stack([grad.norm() for grad in grads]).norm()

    def step(self, *, lr: float, norm: float) -> None:
        for parameter in self._module.parameters():
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-lr)
                parameter.grad = None


def plain_parameter(partition: Tensor, rows: int, *, trainable: bool) -> nn.Parameter:
    parameter = nn.Parameter(torch.empty(0), requires_grad=trainable)
    parameter.ds_tensor = partition  # type: ignore[attr-defined]  # DeepSpeed's own attribute
    return parameter


@contextmanager
def simulated() -> Iterator[None]:
    """Replace DeepSpeed, and let losses know the device."""
    with (
        mock.patch("longplay.distributed.engine.ZeroEngine", PlainEngine),
        mock.patch("longplay.distributed.table.item_table.zero_parameter", plain_parameter),
        mock.patch.dict(CHUNK_ELEMENTS, {DEVICE.type: CHUNK_ELEMENTS["cuda"]}),
    ):
        yield


def losses(data: Path, device: torch.device, overrides: list[str], waits: Counter[str]) -> list[float]:
    """Train two steps, planned ahead, and count the waits of the second."""
    config, dataset = small_config(*SIZES, *overrides), Dataset.open(data)
    with simulated():
        model = build_model(config, dataset, World(device=device))
        pipeline = StepPipeline(model, iter(TrainStream(dataset, config.data, rank=0, world_size=1)))
        first = train_step(model, pipeline.take(), lr=0.01, pipeline=pipeline)
        waits.clear()
        second = train_step(model, pipeline.take(), lr=0.01, pipeline=pipeline)
    return [first.loss, second.loss]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("device_traffic"))


@pytest.mark.parametrize(
    ("overrides", "more_waits"),
    [
        (["--loss.name", "bce"], {}),
        (["--loss.name", "sampled_softmax", "--loss.num_negatives", "8"], {}),
        (["--loss.name", "full_softmax"], {}),
        (
            ["--loss.name", "bpr", "--engine.gradient_accumulation_steps", "2"],
            # A micro-batch more is looked up, and the gradients of both are added.
            {"nonzero in gather.find_entries": 2, "_unique2 in item_table.ItemTable._sum_pending": 1},
        ),
        (
            ["--loss.name", "bce", "--encoder.model", "sasrec"],
            {
                "nonzero in segments.SegmentLayout.first_slots": 1,
                "nonzero in segments.SegmentLayout.buckets": 1,  # per bucket
                "index in segments.SegmentLayout.buckets": 2,
            },
        ),
    ],
    ids=lambda value: "-".join(value[1::2]) if isinstance(value, list) else "",
)
def test_a_step_waits_for_the_device_only_at_these_places(
    data: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], more_waits: dict[str, int]
) -> None:
    with OtherDevice() as other:
        found = losses(data, DEVICE, [*overrides, "--encoder.scan_backend", "triton"], other.waits)
    # The number of rows of the step planned ahead, and loss, norms and flag of this step.
    always = {"nonzero in gather.find_entries": 1, "from the device in engine.EncoderEngine.step": 1}
    assert other.waits == always | more_waits
    monkeypatch.setenv("LONGPLAY_TRITON", "0")
    expected = losses(data, torch.device("cpu"), [*overrides, "--encoder.scan_backend", "chunk"], Counter())
    assert found == pytest.approx(expected, rel=1e-4)


def test_graphs_of_the_encoder_give_the_losses_of_plain_steps(data: Path) -> None:
    """The graphs are simulated: the same operations and kernels are repeated on the same memory."""
    words = ["--loss.name", "bce", "--encoder.model", "recmamba", "--encoder.scan_backend", "triton"]
    words += ["--engine.precision", "bf16", "--context_length", "16"]  # rows of several segments
    with OtherDevice() as other:
        plain = losses(data, DEVICE, words, other.waits)
        plain_waits = Counter(other.waits)
        with (
            mock.patch("longplay.distributed.cuda_graph.GraphRecorder", TapeRecorder),
            mock.patch("longplay.launch.training.model.check_cuda_graph"),
        ):
            graphed = losses(data, DEVICE, [*words, "--engine.cuda_graph", "true"], other.waits)
    assert graphed == plain
    assert other.waits == plain_waits


def metrics(data: Path, device: torch.device, *overrides: str) -> dict[str, float]:
    """Return the metrics of an untrained model."""
    config, dataset = small_config(*SIZES, *overrides), Dataset.open(data)
    with simulated():
        model = build_model(config, dataset, World(device=device))
        model.engine.train(False)
        return evaluate(model.engine, model.table, dataset, config, "test", max_users=20).flat()


def test_an_evaluation_does_not_mix_devices(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with OtherDevice():
        found = metrics(data, DEVICE, "--encoder.scan_backend", "triton")
    monkeypatch.setenv("LONGPLAY_TRITON", "0")
    assert found == pytest.approx(metrics(data, torch.device("cpu"), "--encoder.scan_backend", "chunk"))


def test_an_operation_that_mixes_devices_is_refused() -> None:
    with OtherDevice(), pytest.raises(AssertionError, match=r"aten\.add\.Tensor mixes devices"):
        torch.zeros(3, device=DEVICE).add(torch.zeros(3))
