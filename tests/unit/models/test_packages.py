"""On a GPU, a package of kernels that cannot be imported is an error, unless the backend does not need it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from longplay.models.base.config import EncoderConfig, MixerName, ScanName
from longplay.models.encoder import build_encoder
from longplay.models.encoder_checks import check_packages
from longplay.models.mixers.causal_conv import require_conv_package
from longplay.models.scans.packages import PackageFunction
from longplay.native.triton_runtime import can_run_triton

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def check(device: torch.device, **settings: Any) -> None:
    check_packages(build_encoder(EncoderConfig(model="mambarec", context_length=8, **settings)), device)


@pytest.fixture(autouse=True)
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LONGPLAY_SCAN", raising=False)
    monkeypatch.setattr(
        "longplay.models.scans.packages._find", lambda module, name: (None, "is not installed")
    )


@pytest.mark.parametrize(("mixer", "scan"), [("mamba", "kernel"), ("mamba2", "kernel"), ("mamba2", "auto")])
def test_a_mixer_on_cuda_needs_mamba_ssm(mixer: MixerName, scan: ScanName) -> None:
    with pytest.raises(ValueError, match=r"needs mamba-ssm on a GPU, which is not installed; .*\[cuda\]"):
        check(CUDA, mixer=mixer, scan_backend=scan)


@pytest.mark.skipif(not can_run_triton("cuda"), reason="needs triton")
@pytest.mark.parametrize("scan", ["auto", "triton"])
def test_mamba_in_triton_needs_no_package(scan: ScanName) -> None:
    check(CUDA, scan_backend=scan)


@pytest.mark.parametrize(("scan", "needed"), [("kernel", True), ("triton", False), ("auto", False)])
def test_the_convolution_needs_causal_conv1d_for_the_backend_kernel_only(
    scan: ScanName, needed: bool
) -> None:
    conv = torch.nn.Conv1d(16, 16, 4, groups=16)
    if not needed:
        return require_conv_package(conv, scan)
    with pytest.raises(ValueError, match="needs causal-conv1d on a GPU"):
        require_conv_package(conv, scan)


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
@pytest.mark.parametrize("scan", ["chunk", "ref"])
def test_pytorch_backends_need_no_package(mixer: MixerName, scan: ScanName) -> None:
    check(CUDA, mixer=mixer, scan_backend=scan)


def test_the_environment_can_ask_for_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGPLAY_SCAN", "chunk")
    for mixer in ("mamba", "mamba2"):
        check(CUDA, mixer=mixer)


def test_a_cpu_needs_no_package() -> None:
    check(CPU)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (
            "raise ImportError('undefined symbol: x')",
            r"cannot be imported \(ImportError: undefined sym",
        ),
        ("import absent_dependency", r"is installed but cannot be imported \(ModuleNotFoundError"),
        (None, "is not installed"),
    ],
)
def test_the_message_distinguishes_a_broken_package_from_an_absent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, problem: str
) -> None:
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path)
    module = f"kernels_{abs(hash(source))}"
    if source is not None:
        (tmp_path / f"{module}.py").write_text(source)
    function = PackageFunction("some-package", module, "f")
    assert function.find() is None
    with pytest.raises(ValueError, match=problem):
        function.require()
