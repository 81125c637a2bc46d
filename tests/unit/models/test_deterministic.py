"""`train.deterministic` refuses what does not repeat on a GPU, and names what replaces it."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longplay.distributed.runtime.determinism import use_deterministic_algorithms
from longplay.models.base.config import EncoderConfig
from longplay.models.encoder import build_encoder
from longplay.models.encoder_checks import check_deterministic
from longplay.models.scans import packages
from longplay.native.triton_runtime import can_run_triton

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def check(device: torch.device = CUDA, model: str = "mambarec", **settings: Any) -> None:
    check_deterministic(build_encoder(EncoderConfig(model=model, context_length=8, **settings)), device)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGPLAY_SCAN", raising=False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)


@pytest.fixture
def restored() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    vars(torch.utils)["deterministic"].fill_uninitialized_memory = True


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_the_backend_kernel_is_refused_by_name(mixer: str) -> None:
    with pytest.raises(ValueError, match=r"kernel .*selective_scan_fn.* --encoder\.scan_backend auto"):
        check(mixer=mixer, scan_backend="kernel")


def test_kernels_that_the_environment_selects_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGPLAY_SCAN", "kernel")
    with pytest.raises(ValueError, match="scan_backend kernel"):
        check()


@pytest.mark.skipif(not can_run_triton("cuda"), reason="needs triton")
def test_auto_is_accepted() -> None:
    check()


@pytest.mark.parametrize("present", [True, False])
def test_mamba2_needs_the_deterministic_mode_of_mamba_ssm(
    monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    monkeypatch.setattr(packages, "_find", lambda module, name: (print if present else None, "is old"))
    if present:
        return check(mixer="mamba2")
    with pytest.raises(ValueError, match=r"no deterministic mode.*scan_backend chunk"):
        check(mixer="mamba2")


def test_the_model_with_cumulative_sums_is_refused() -> None:
    with pytest.raises(ValueError, match="moematrrec needs cumulative sums"):
        check(model="moematrrec", scan_backend="chunk")


@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "recmamba", "mambarec"])
def test_pytorch_backends_are_accepted(model: str) -> None:
    check(model=model, scan_backend="chunk")


def test_a_cpu_accepts_everything() -> None:
    for model in ("moematrrec", "mambarec"):
        check(CPU, model=model)


@pytest.mark.usefixtures("restored")
def test_a_gpu_gets_the_flag_and_the_workspace() -> None:
    use_deterministic_algorithms(CUDA)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


@pytest.mark.usefixtures("restored")
def test_a_workspace_that_is_not_deterministic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG=':0:0'.*:4096:8 or :16:8"):
        use_deterministic_algorithms(CUDA)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_cpu_is_left_alone() -> None:
    use_deterministic_algorithms(CPU)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
