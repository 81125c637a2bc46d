"""Losses against their textbook formulas, with gradients, in one chunk and in many."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longplay.models.losses import losses
from longplay.models.losses.losses import (
    LossConfig,
    bce_loss,
    bpr_loss,
    full_cross_entropy_ref,
    gbce_beta,
    gbce_loss,
    sampled_softmax_loss,
)

_V, _U, _D, _K = 23, 17, 6, 3


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden (V, D), rows (U, D), positive_index (V,), negative_index (V, K)."""
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(_V, _D, generator=g, requires_grad=True)
    rows = torch.randn(_U, _D, generator=g, requires_grad=True)
    index = torch.randint(_U, (_V, 1 + _K), generator=g)
    return hidden, rows, index[:, 0], index[:, 1:]


def _scores(hidden: Tensor, rows: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    scores = hidden.double() @ rows.double().t()
    return scores.gather(1, positive.unsqueeze(1)).squeeze(1), scores.gather(1, negative)


def _naive_bce(*inputs: Tensor) -> Tensor:
    positive, negative = _scores(*inputs)
    return -positive.sigmoid().log().sum() - (1 - negative.sigmoid()).log().sum()


def _naive_gbce(*inputs: Tensor) -> Tensor:
    positive, negative = _scores(*inputs)
    alpha = _K / (100 - 1)
    beta = alpha * (0.6 * (1 - 1 / alpha) + 1 / alpha)
    return -(positive.sigmoid() ** beta).log().sum() - (1 - negative.sigmoid()).log().sum()


def _naive_bpr(*inputs: Tensor) -> Tensor:
    positive, negative = _scores(*inputs)
    return -(positive.unsqueeze(1) - negative).sigmoid().log().mean(1).sum()


_LOG_Q = torch.rand(5, generator=torch.Generator().manual_seed(1)).log()
_POSITIVE_LOG_Q = torch.rand(_V, generator=torch.Generator().manual_seed(2)).log()


def _naive_sampled(hidden: Tensor, rows: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    scores, total = hidden.double() @ rows.double().t(), 0.0
    for v in range(_V):
        own = scores[v, positive[v]] - _POSITIVE_LOG_Q[v]
        others = [
            scores[v, i] - q
            for i, q in zip(negative[:5, 0], _LOG_Q, strict=True)
            if int(i) != int(positive[v])
        ]
        total = total + torch.stack([own, *others]).logsumexp(0) - own
    return torch.as_tensor(total)


def _naive_full(hidden: Tensor, rows: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    scores = hidden.double() @ rows.double().t()
    return -scores.log_softmax(1).gather(1, positive.unsqueeze(1)).sum()


_PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "bce": (bce_loss, _naive_bce),
    "gbce": (lambda *a: gbce_loss(*a, num_items=100, t=0.6), _naive_gbce),
    "bpr": (bpr_loss, _naive_bpr),
    "sampled_softmax": (
        lambda h, r, p, n: sampled_softmax_loss(h, r, p, n[:5, 0], _LOG_Q, _POSITIVE_LOG_Q),
        _naive_sampled,
    ),
    "full_softmax": (lambda h, r, p, n: full_cross_entropy_ref(h, r, p), _naive_full),
}


@pytest.mark.parametrize("chunk_elements", [1, 64, 1 << 22])
@pytest.mark.parametrize("name", _PAIRS)
def test_loss_equals_its_formula_however_it_is_chunked(
    name: str, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", chunk_elements)
    ours, naive = _PAIRS[name]
    hidden, rows, positive, negative = _inputs()
    got, exact = ours(hidden, rows, positive, negative), naive(hidden, rows, positive, negative)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad(x, [hidden, rows]) for x in (got, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", _PAIRS)
def test_extreme_scores_give_finite_losses(name: str) -> None:
    hidden, rows, positive, negative = _inputs()
    loss = _PAIRS[name][0](hidden * 1e4, rows, positive, negative)
    loss.backward()
    assert bool(loss.isfinite())
    assert rows.grad is not None
    assert bool(rows.grad.isfinite().all())


@pytest.mark.parametrize("name", ["bce", "gbce", "bpr", "full_softmax"])
def test_no_targets_give_a_zero_that_can_be_differentiated(name: str) -> None:
    hidden, rows, positive, negative = _inputs()
    loss = _PAIRS[name][0](hidden[:0], rows, positive[:0], negative[:0])
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None


@pytest.mark.parametrize("name", _PAIRS)
def test_bfloat16_hidden_states_give_a_float32_loss(name: str) -> None:
    hidden, rows, positive, negative = _inputs()
    loss = _PAIRS[name][0](hidden.bfloat16(), rows, positive, negative)
    exact = _PAIRS[name][0](hidden.bfloat16().float(), rows, positive, negative)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact)


def test_a_shared_negative_that_is_the_target_is_masked() -> None:
    hidden, rows, positive, _ = _inputs()
    only_hits = sampled_softmax_loss(hidden[:1], rows, positive[:1], positive[:1].repeat(4))
    assert float(only_hits.detach()) == 0.0


def test_candidates_of_all_targets_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_CHUNK_ELEMENTS", 1 << 16)
    num_targets, num_negatives = 4096, 64
    whole = num_targets * num_negatives * _D
    hidden = torch.randn(num_targets, _D, requires_grad=True)
    rows = torch.randn(_U, _D, requires_grad=True)
    index = torch.randint(_U, (num_targets, 1 + num_negatives), generator=torch.Generator().manual_seed(0))
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bce_loss(hidden, rows, index[:, 0], index[:, 1:])
    assert max(saved) < whole


def test_sampled_softmax_refuses_a_one_sided_correction() -> None:
    hidden, rows, positive, negative = _inputs()
    with pytest.raises(ValueError, match="both or neither"):
        sampled_softmax_loss(hidden, rows, positive, negative[:, 0], log_q=torch.zeros(_V))


def test_gbce_beta_runs_from_one_to_the_sampling_rate() -> None:
    assert gbce_beta(5, 1001, 0.0) == pytest.approx(1.0)
    assert gbce_beta(5, 1001, 1.0) == pytest.approx(5 / 1000)
    assert math.isclose(gbce_beta(1, 2, 1.0), 1.0)
    with pytest.raises(ValueError, match="num_items=1"):
        gbce_beta(1, 1, 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "hinge"}, r"name\s+Input should be 'bce'"),
        ({"num_negatives": 0}, r"num_negatives\s+.* greater than or equal to 1"),
        ({"gbce_t": 1.5}, r"gbce_t\s+.* less than or equal to 1"),
        ({"name": "bce", "negatives": "frequency"}, "use 'uniform'"),
    ],
)
def test_bad_loss_config_says_what_is_valid(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)
