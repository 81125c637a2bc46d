"""The Triton kernels against PyTorch, on a GPU if there is one, else in Triton's interpreter on the CPU."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.triton_compile import SHARED_BYTES, compile_for_h100
from torch import Tensor

from longplay.distributed.table import score_counts, score_kernel, triton_kernels
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
from longplay.native.triton_runtime import can_run_triton, power_of_two

_HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not _HAS_TRITON, reason="needs triton")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_F, _H, _I, _N = "*fp32", "*fp16", "*i64", "i32"
SIGNATURES = {
    "lazy_adam": [_F, _F, _F, _I, _F, _N, *5 * ["fp32"]],
    "row_adagrad": [_F, _F, _I, _F, _N, "fp32", "fp32"],
    "take_rows": [_F, _I, _F, _N],
    "split_rows": [_F, _F, _H, _H, _F, _N, "fp32"],
    "count_above": [_H, _H, _H, _H, _F, _F, _F, _F, "*i32", "*i32", _I, _N],
}
WIDTHS = [1, 24, 64, 128, 256]


@needs_triton
@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_kernels_fit_a_hopper_gpu_outside_the_interpreter(name: str, width: int) -> None:
    """The interpreter accepts Python that the compiler rejects; compiling needs no GPU."""
    kernel = getattr(triton_kernels.kernels(), name)
    sizes, options = kernel_sizes(name, width)
    types = dict(zip(kernel.arg_names, SIGNATURES[name], strict=False))
    usage = compile_for_h100(kernel, types, sizes, **options)
    assert usage.shared_bytes <= SHARED_BYTES
    assert usage.stack_bytes == 0, "registers are spilled"
    if name == "count_above":
        tile, padded = score_kernel.choose_tile(width, torch.device("cpu")), score_kernel.padded_width(width)
        assert usage.shared_bytes <= tile.shared_bytes(padded)
        assert "wgmma.mma_async" in usage.ptx
    elif width >= 24:
        assert re.search(r"ld\.global\S*\.v[48]\.", usage.ptx), "loads of less than 16 bytes"


def kernel_sizes(name: str, width: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the constants and options that the project launches a kernel with."""
    if name == "count_above":
        tile = score_kernel.choose_tile(width, torch.device("cpu"))
        sizes = {"PADDED": score_kernel.padded_width(width), "QUERIES": tile.queries, "ROWS": tile.rows}
        capacity = {"ROWS_PER_PROGRAM": score_kernel.ROWS_PER_PROGRAM, "CAPACITY": score_kernel.NEAR_CAPACITY}
        return sizes | capacity, tile.options()
    pad = score_kernel.padded_width if name == "split_rows" else power_of_two
    padded = pad(width)
    return {"WIDTH": width, "PADDED": padded, "ROWS": triton_kernels.rows_at_once(padded)}, {}


@pytest.mark.kernels
@pytest.mark.parametrize("width", [1, 24, 64, 256])
@pytest.mark.parametrize(("kind", "kernel"), [(LazyAdam, lazy_adam_kernel), (RowAdagrad, row_adagrad_kernel)])
def test_the_fused_update_equals_the_row_optimizer(
    width: int,
    kind: type[LazyAdam] | type[RowAdagrad],
    kernel: Callable[[torch.device, int], bool],
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
        assert triton_kernels.works(kernel, device(), width) == (switch == "1")
        return [weight, *optimizer.state.values()]

    for ours, theirs in zip(updated("1"), updated("0"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.kernels
@pytest.mark.parametrize("width", [1, 24, 64])
def test_take_rows_equals_index_select(width: int) -> None:
    table, rows = torch.randn(300, width), torch.tensor([299, 0, 5, 5, *range(100, 200)])
    page_lock(table, owner := type("Owner", (), {})(), device())
    assert torch.equal(triton_kernels.take_rows(table, rows.to(device())).cpu(), table[rows])
    assert triton_kernels.take_rows(table, rows[:0].to(device())).shape == (0, width)
    assert triton_kernels.works(host_rows_kernel, device(), width)
    del owner


@pytest.mark.kernels
def test_rows_beyond_two_to_the_31_elements_are_read_and_updated(tmp_path: Path) -> None:
    width, last = 64, (1 << 25) + 8
    rows = torch.tensor([last, 3, 1 << 25, 0], device=device())
    small, grads = torch.rand(4, 4, width).to(device()).unbind(), torch.rand(4, width, device=device())
    weight, exp_avg, exp_avg_sq, sum_sq = large = [large_table(tmp_path, last + 1, width) for _ in range(4)]
    for table, part in zip(large, small, strict=True):
        table[rows] = part
    assert torch.equal(triton_kernels.take_rows(weight, rows), small[0])
    each = torch.arange(4, device=device())
    betas, sizes = (0.9, 0.99), (0.1, 1e-8)
    triton_kernels.lazy_adam(weight, exp_avg, exp_avg_sq, rows, grads, betas, *sizes)
    triton_kernels.lazy_adam(small[0], small[1], small[2], each, grads, betas, *sizes)
    sums, small_sums = sum_sq.view(-1)[: last + 1], small[3].reshape(-1)[:4].clone()
    sums[rows] = small_sums
    triton_kernels.row_adagrad(weight, sums, rows, grads, *sizes)
    triton_kernels.row_adagrad(small[0], small_sums, each, grads, *sizes)
    for table, part in zip(large[:3], small[:3], strict=True):
        assert torch.equal(table[rows], part)
    assert torch.equal(sums[rows], small_sums)


def large_table(folder: Path, num_rows: int, width: int) -> Tensor:
    """Return (num_rows, width) fp32; on the CPU in a sparse file, whose unwritten pages take no space."""
    if device().type == "cuda":
        return torch.empty(num_rows, width, device=device())
    path = folder / f"{len(list(folder.iterdir()))}.bin"
    return torch.from_file(str(path), shared=True, size=num_rows * width).view(num_rows, width)


def count_rows(switch: str, width: int, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setenv("LONGPLAY_TRITON", switch)
    if switch == "0":
        triton_kernels.works.cache_clear()
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(333, width, generator=generator)
    rows *= torch.rand(333, 1, generator=generator).exp2().pow(12)  # norms differ by up to 2^12
    make_ties_and_near_ties(rows)
    hidden = torch.randn(140, width, generator=generator)
    own = torch.randint(-50, 333, (140,), generator=generator)
    score = exact_dot(hidden, rows[own.clamp(min=0)])
    found = score_counts.count_beating_rows(*(x.to(device()) for x in (hidden, rows, score, own)))
    return found.cpu()


def make_ties_and_near_ties(rows: Tensor) -> None:
    """Make every third row equal to the row before it, and every fifth differ from it in one last bit."""
    rows[1::3] = rows[0:-1:3]
    rows[5::5] = rows[4:-1:5]
    rows[5::5, 0] = torch.nextafter(rows[5::5, 0], torch.tensor(9.0))


@pytest.mark.kernels
@pytest.mark.parametrize("capacity", [1 << 16, 3])
@pytest.mark.parametrize("width", [1, 24, 64, 256])
def test_the_fused_counts_are_exact(width: int, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A capacity of 3 is too small for the undecided pairs."""
    monkeypatch.setattr(score_kernel, "ROWS_PER_PROGRAM", 128)
    monkeypatch.setattr(score_counts, "FUSED_ELEMENTS", 200 * score_kernel.padded_width(width))
    plain = count_rows("0", width, monkeypatch)
    assert triton_kernels.works(counting_kernel, device(), width) is False
    monkeypatch.setenv("LONGPLAY_TRITON", "1")
    triton_kernels.works.cache_clear()
    assert triton_kernels.works(counting_kernel, device(), width)  # checked at the full capacity
    monkeypatch.setattr(score_kernel, "NEAR_CAPACITY", capacity)
    assert torch.equal(count_rows("1", width, monkeypatch), plain)


@pytest.mark.kernels
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_undecided_pairs_are_few_and_include_every_pair_within_the_error(scale: float) -> None:
    generator = torch.Generator().manual_seed(4)
    hidden, rows = (torch.randn(n, 64, generator=generator).to(device()) for n in (130, 2000))
    rows *= scale
    exact = hidden.double() @ rows.double().T
    score = exact[:, 5]
    counted = score_kernel.count_above(hidden, rows, score)
    assert counted is not None
    surely, query, row = counted
    above = exact > score.unsqueeze(1)
    assert torch.equal(surely + torch.bincount(query[above[query, row]], minlength=130), above.sum(1))
    assert query.shape[0] < 250  # 130 are the targets


@pytest.mark.kernels
def test_a_collapsed_model_lists_no_pair_beyond_the_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    """All pairs are undecided."""
    monkeypatch.setattr(score_kernel, "NEAR_CAPACITY", 50)
    monkeypatch.setattr(score_counts, "works", lambda *_: True)
    hidden, rows = torch.ones(70, 24, device=device()), torch.ones(300, 24, device=device())
    score, own = hidden.double().sum(1), torch.zeros(70, dtype=torch.int64, device=device())
    assert score_kernel.count_above(hidden, rows, score) is None
    assert score_counts.count_beating_rows(hidden, rows, score, own).tolist() == [149.5] * 70


def test_a_kernel_that_fails_or_differs_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each width is checked once."""

    def breaks(device: torch.device, width: int) -> bool:
        raise RuntimeError("no such instruction")

    def differs_when_wide(device: torch.device, width: int) -> bool:
        return width < 99

    monkeypatch.setattr(triton_kernels, "can_run_triton", lambda device_type: True)
    cpu = torch.device("cpu")
    for _ in range(2):
        assert not triton_kernels.works(breaks, cpu, 8)
        assert triton_kernels.works(differs_when_wide, cpu, 98)
        assert not triton_kernels.works(differs_when_wide, cpu, 99)
    assert caplog.messages == [
        "breaks of width 8: failed, PyTorch is used instead: no such instruction",
        "differs_when_wide of width 99: failed, PyTorch is used instead: results differ",
    ]


@pytest.mark.kernels
def test_rows_too_wide_for_a_tile_are_counted_by_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    triton_kernels.works.cache_clear()
    for _ in range(2):
        assert not triton_kernels.works(counting_kernel, device(), 4096)
    (message,) = caplog.messages
    assert "rows of width 4096 do not fit" in message


def test_longplay_triton_0_disables_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGPLAY_TRITON", "0")
    assert not can_run_triton("cuda")
