"""The Triton kernels of a training step against PyTorch, on a GPU or in the interpreter of Triton."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.keyed_random import row_keys
from longplay.models.blocks.layers import LayerNorm
from longplay.models.losses.base import LOSSES, LossConfig, LossInputs
from longplay.models.losses.negatives import uniform_negatives
from longplay.models.rows.gather import RowEntries, find_entries, gather_rows, score_candidates

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def lookup(num_entries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, RowEntries]:
    """Return row positions with repeats and padding, and what `find_entries` makes of them."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(-1, num_entries // 3, (num_entries,), generator=generator)
    positions[::5] = 2  # a frequent item
    positions = positions.to(DEVICE)
    return positions, *find_entries(positions)


@pytest.mark.parametrize("num_entries", [1, 7, 300])
def test_entries_group_the_lookup_as_torch_unique_does(num_entries: int) -> None:
    positions, unique, index, entries = lookup(num_entries)
    values = torch.cat([torch.tensor([-1], device=DEVICE), unique])
    assert torch.equal(values[index], positions)
    assert torch.equal(unique, positions[positions >= 0].unique())
    for row in range(1, len(values)):
        mine = entries.order[entries.bounds[row] : entries.bounds[row + 1]]
        assert torch.equal(mine, (index == row).nonzero().squeeze(1))


@pytest.mark.kernels
@pytest.mark.parametrize("width", [1, 24, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gathered_rows_have_the_gradient_of_an_embedding(width: int, dtype: torch.dtype) -> None:
    _, unique, index, entries = lookup(60)
    rows = torch.randn(len(unique) + 1, width, device=DEVICE, requires_grad=True)
    part = index[11:51].view(4, 10)
    grad = torch.randn(4, 10, width, device=DEVICE).to(dtype)
    ours = gather_rows(rows, part, entries.skip(11)).to(dtype)
    theirs = F.embedding(part, rows).to(dtype)
    assert torch.equal(ours, theirs)
    (got,) = torch.autograd.grad(ours, rows, grad)
    (expected,) = torch.autograd.grad(theirs, rows, grad)
    assert not got[0].any()
    torch.testing.assert_close(got[1:], expected[1:])


@pytest.mark.kernels
@pytest.mark.parametrize(("num_targets", "num_negatives", "width"), [(37, 1, 24), (9, 5, 64), (0, 2, 8)])
def test_scores_and_gradients_equal_pytorch(num_targets: int, num_negatives: int, width: int) -> None:
    first = 13
    _, unique, index, entries = lookup(first + num_targets * (1 + num_negatives))
    candidates = index[first:]
    positives, negatives = candidates[:num_targets], candidates[num_targets:].view(-1, num_negatives)
    hidden, rows = (torch.randn(n, width, device=DEVICE) for n in (num_targets, len(unique) + 1))
    rows[0] = 0.0
    leaves = hidden.requires_grad_(), rows.requires_grad_()
    ours = score_candidates(hidden, rows, positives, negatives, entries.skip(first))
    theirs = (hidden * rows[positives]).sum(1), (hidden.unsqueeze(1) * rows[negatives]).sum(2)
    grads = [torch.randn_like(score) for score in theirs]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    got, expected = (torch.autograd.grad(scores, leaves, grads) for scores in (ours, theirs))
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[1][1:], expected[1][1:])


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["bce", "gbce", "bpr"])
def test_losses_with_entries_equal_losses_without(name: str) -> None:
    _, unique, index, entries = lookup(90)
    rows = torch.randn(len(unique) + 1, 16, device=DEVICE, requires_grad=True)
    hidden = torch.randn(30, 16, device=DEVICE, requires_grad=True)
    loss = LOSSES[name](LossConfig(name=name, num_negatives=2), num_items=100)

    def value_and_gradients(entries: RowEntries | None) -> list[Tensor]:
        inputs = LossInputs(
            hidden=hidden,
            rows=rows,
            positives=index[:30],
            positive_index=index[:30],
            negative_index=index[30:].view(30, 2),
            shared=None,
            cross_entropy=lambda *_: hidden.sum(),
            entries=entries,
        )
        value = loss(inputs)
        hidden_grad, row_grad = torch.autograd.grad(value, [hidden, rows])
        return [value.detach(), hidden_grad, row_grad[1:]]

    for ours, theirs in zip(value_and_gradients(entries), value_and_gradients(None), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.kernels
@pytest.mark.parametrize(("shape", "p"), [((5, 9, 10), 0.3), ((3, 40, 64), 0.001), ((2, 3, 1), 0.9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dropout_kernel_has_the_same_masks_bitwise(
    shape: tuple[int, int, int], p: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout, x = KeyedDropout(p, layer_id=17), torch.randn(shape, device=DEVICE).to(dtype)
    keys = row_keys(3, 7, torch.arange(shape[0]), torch.arange(shape[0])).to(DEVICE)

    def output_and_gradient(switch: str) -> tuple[Tensor, Tensor]:
        monkeypatch.setenv("LONGPLAY_TRITON", switch)
        leaf = x.clone().requires_grad_()
        out = dropout(leaf, keys)
        out.backward(x)
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    for ours, theirs in zip(output_and_gradient("1"), output_and_gradient("0"), strict=True):
        assert torch.equal(ours == 0, theirs == 0)
        torch.testing.assert_close(ours, theirs, rtol=0 if dtype == torch.float32 else 1e-2, atol=0)


@pytest.mark.kernels
@pytest.mark.parametrize("num_negatives", [1, 3])
@pytest.mark.parametrize("num_items", [2, 31_634_450])
def test_the_kernel_draws_the_same_negatives(
    num_negatives: int, num_items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    slots = torch.randint(0, 90, (700,), generator=generator)
    positives = torch.randint(1, num_items + 1, (700,), generator=generator)
    keys = row_keys(3, 7, torch.arange(9), torch.arange(9))
    sizes = {"length": 10, "num_negatives": num_negatives, "num_items": num_items}

    def draw(switch: str) -> Tensor:
        monkeypatch.setenv("LONGPLAY_TRITON", switch)
        return uniform_negatives(*(each.to(DEVICE) for each in (keys, slots, positives)), **sizes)

    assert torch.equal(draw("1"), draw("0"))


@pytest.mark.kernels
@pytest.mark.parametrize(("num_rows", "width"), [(0, 8), (1, 1), (37, 24), (301, 64), (301, 256)])
def test_the_layer_norm_kernel_equals_pytorch(
    num_rows: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longplay.models.base.layer_norm_kernel._ENOUGH_PROGRAMS", 20)  # several tiles each
    generator = torch.Generator().manual_seed(width)
    x = 3 + torch.randn(num_rows, width, generator=generator, dtype=torch.float64)
    norm = LayerNorm(width)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(width, generator=generator))
    grad = torch.randn(num_rows, width, generator=generator, dtype=torch.float64)

    def outputs(norm: LayerNorm, x: Tensor, grad: Tensor) -> list[Tensor]:
        x = x.requires_grad_()
        out = norm(x)
        return [out.detach(), *torch.autograd.grad(out, [x, *norm.parameters()], grad)]

    theirs = outputs(copy.deepcopy(norm).double(), x.clone(), grad)
    ours = outputs(norm.to(DEVICE), x.float().to(DEVICE), grad.float().to(DEVICE))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-5, atol=2e-5)
