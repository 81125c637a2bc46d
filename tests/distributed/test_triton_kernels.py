"""The Triton kernels against PyTorch, on a GPU if there is one, else in Triton's interpreter on the CPU."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longplay.distributed.table import score_counts, triton_kernels
from longplay.distributed.table.host_memory import host_rows_kernel, page_lock
from longplay.distributed.table.row_optimizers import (
    LazyAdam,
    RowAdagrad,
    RowOptimizerConfig,
    lazy_adam_kernel,
    row_adagrad_kernel,
)
from longplay.distributed.table.score_counts import counting_kernel
from longplay.models.scores import exact_dot

_HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not _HAS_TRITON, reason="needs triton")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def interpreted() -> None:
    """Skip unless Triton can run here. TRITON_INTERPRET must be set before Triton is imported."""
    if not triton_kernels.is_available(device()):
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")


@needs_triton
def test_the_kernels_agree_with_pytorch_in_the_interpreter() -> None:
    """Run the tests below in a process with TRITON_INTERPRET=1."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("this is that process")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not interpreter",
        __file__,
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout


_F, _I, _N = "*fp32", "*i64", "i32"
SIGNATURES = {
    "lazy_adam": [_F, _F, _F, _I, _F, _N, "fp32", "fp32", "fp32", "fp32"],
    "row_adagrad": [_F, _F, _I, _F, _N, "fp32", "fp32"],
    "take_rows": [_F, _I, _F, _N],
    "count_above": [_F, _F, _F, _F, "*i32", _I, "*i32", _N, _N],
}


@needs_triton
@pytest.mark.parametrize("name", SIGNATURES)
def test_the_kernels_compile_for_a_gpu_outside_the_interpreter(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter accepts Python that the compiler rejects; compiling needs no GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("the kernels are interpreted here")
    import triton  # pyright: ignore[reportMissingImports] -- optional
    from triton.backends.compiler import GPUTarget  # pyright: ignore[reportMissingImports] -- optional
    from triton.compiler import ASTSource  # pyright: ignore[reportMissingImports] -- optional

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # Triton 3.9 warns if it is not set
    kernel = getattr(triton_kernels.kernels(), name)
    sizes = {"WIDTH": 24, "PADDED": 32, "QUERIES": 64, "ROWS": 64, "ROWS_PER_PROGRAM": 128, "CAPACITY": 9}
    constants = {size: value for size, value in sizes.items() if size in kernel.arg_names}
    types = SIGNATURES[name] + ["constexpr"] * len(constants)
    source = ASTSource(kernel, dict(zip(kernel.arg_names, types, strict=True)), constants)
    assert "ptx" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("width", [1, 24, 64])
@pytest.mark.parametrize(("kind", "kernel"), [(LazyAdam, lazy_adam_kernel), (RowAdagrad, row_adagrad_kernel)])
def test_the_fused_update_equals_the_row_optimizer(
    width: int,
    kind: type[LazyAdam] | type[RowAdagrad],
    kernel: Callable[[torch.device], bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def updated(switch: str) -> list[Tensor]:
        monkeypatch.setenv("LONGPLAY_TRITON", switch)
        triton_kernels.works.cache_clear()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(300, width, generator=generator).to(device())
        optimizer = kind(RowOptimizerConfig(), weight)
        for step in range(1, 5):
            rows = torch.randperm(300, generator=generator)[:77].sort().values.to(device())
            grads = torch.randn(77, width, generator=generator).to(device())
            optimizer.step(weight, rows, grads, lr=0.01, step=step)
        assert triton_kernels.works(kernel, device()) == (switch == "1")
        return [weight, *optimizer.state.values()]

    for ours, theirs in zip(updated("1"), updated("0"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("width", [1, 24, 64])
def test_take_rows_equals_index_select(width: int) -> None:
    table, rows = torch.randn(300, width), torch.tensor([299, 0, 5, 5, *range(100, 200)])
    page_lock(table, owner := type("Owner", (), {})())
    assert torch.equal(triton_kernels.take_rows(table, rows.to(device())).cpu(), table[rows])
    assert triton_kernels.take_rows(table, rows[:0].to(device())).shape == (0, width)
    assert triton_kernels.works(host_rows_kernel, device())
    del owner


def count_rows(switch: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setenv("LONGPLAY_TRITON", switch)
    if switch == "0":
        triton_kernels.works.cache_clear()
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(333, 24, generator=generator)
    make_ties_and_near_ties(rows)
    hidden = torch.randn(70, 24, generator=generator)
    own = torch.randint(-50, 333, (70,), generator=generator)
    score = exact_dot(hidden, rows[own.clamp(min=0)])
    found = score_counts.count_beating_rows(*(x.to(device()) for x in (hidden, rows, score, own)))
    return found.cpu()


def make_ties_and_near_ties(rows: Tensor) -> None:
    """Make every third row equal to the row before it, and every fifth differ from it in one last bit."""
    rows[1::3] = rows[0:-1:3]
    rows[5::5] = rows[4:-1:5]
    rows[5::5, 0] = torch.nextafter(rows[5::5, 0], torch.tensor(9.0))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("capacity", [1 << 12, 3])
def test_the_fused_counts_are_exact(capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capacity of 3 is too small for the undecided pairs."""
    monkeypatch.setattr(triton_kernels, "ROWS_PER_PROGRAM", 128)
    monkeypatch.setattr(score_counts, "FUSED_ROWS", 200)
    plain = count_rows("0", monkeypatch)
    assert triton_kernels.works(counting_kernel, device()) is False
    monkeypatch.setenv("LONGPLAY_TRITON", "1")
    triton_kernels.works.cache_clear()
    assert triton_kernels.works(counting_kernel, device())  # checked at the full capacity
    monkeypatch.setattr(triton_kernels, "NEAR_CAPACITY", capacity)
    assert torch.equal(count_rows("1", monkeypatch), plain)


def test_a_kernel_that_fails_or_differs_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(device: torch.device) -> bool:
        raise RuntimeError("no such instruction")

    def differs(device: torch.device) -> bool:
        return False

    monkeypatch.setattr(triton_kernels, "is_available", lambda device: True)
    cpu = torch.device("cpu")
    assert not triton_kernels.works(breaks, cpu)
    assert not triton_kernels.works(differs, cpu)
    assert "breaks: failed, PyTorch is used instead: no such instruction" in caplog.text
    assert "differs: failed, PyTorch is used instead: results differ" in caplog.text


def test_longplay_triton_0_disables_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGPLAY_TRITON", "0")
    assert not triton_kernels.is_available(torch.device("cuda"))
