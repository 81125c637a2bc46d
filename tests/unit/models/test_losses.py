"""Losses and their gradients against textbook formulas, in one chunk and in many."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longplay.models.losses import chunks
from longplay.models.losses.base import LOSSES, Loss, LossConfig, LossInputs
from longplay.models.losses.gbce import gbce_beta
from longplay.models.losses.negatives import SharedNegatives

V, U, D, K, M = 23, 17, 6, 3, 5
NUM_ITEMS = 100
SAMPLED = ["bce", "gbce", "bpr", "sampled_softmax"]
COUNTS = torch.arange(1, NUM_ITEMS + 1)


def build(name: str, **settings: Any) -> Loss:
    """Build a loss over NUM_ITEMS items whose shared negatives are distributed as COUNTS."""
    config = LossConfig(name=name, num_negatives=K, gbce_t=0.6, **settings)
    return LOSSES[name](config, num_items=NUM_ITEMS, shared=SharedNegatives.by_frequency(COUNTS, 1.0))


def make_inputs(
    name: str, num_targets: int = V, scale: float = 1.0, dtype: torch.dtype | None = None
) -> LossInputs:
    """Return inputs with random targets. Row u belongs to item u + 1."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(V, D, generator=generator, requires_grad=True)
    rows = torch.randn(U, D, generator=generator, requires_grad=True)
    positive = torch.randint(U, (V,), generator=generator)[:num_targets]
    shape = (M,) if LOSSES[name].candidates == "shared" else (V, K)
    negative = torch.randint(U, shape, generator=generator)
    shared = negative + 1 if LOSSES[name].candidates == "shared" else None
    return LossInputs(
        hidden=(hidden[:num_targets] * scale).to(dtype),
        rows=rows,
        positives=positive + 1,
        positive_index=positive,
        negative_index=negative if shared is not None else negative[:num_targets],
        shared=shared,
        cross_entropy=lambda hidden, positives: torch.zeros(()),
    )


def scores(inputs: LossInputs) -> tuple[Tensor, Tensor]:
    """Return the scores of the targets (V,) and of their negatives (V, K) in float64."""
    every = inputs.hidden.double() @ inputs.rows.double().t()
    positive = every.gather(1, inputs.positive_index.unsqueeze(1)).squeeze(1)
    return positive, every.gather(1, inputs.negative_index)


def naive_bce(inputs: LossInputs) -> Tensor:
    positive, negative = scores(inputs)
    return -positive.sigmoid().log().sum() - (1 - negative.sigmoid()).log().sum()


def naive_gbce(inputs: LossInputs) -> Tensor:
    positive, negative = scores(inputs)
    alpha = K / (NUM_ITEMS - 1)
    beta = alpha * (0.6 * (1 - 1 / alpha) + 1 / alpha)
    return -(positive.sigmoid() ** beta).log().sum() - (1 - negative.sigmoid()).log().sum()


def naive_bpr(inputs: LossInputs) -> Tensor:
    positive, negative = scores(inputs)
    return -(positive.unsqueeze(1) - negative).sigmoid().log().mean(1).sum()


def naive_sampled_softmax(inputs: LossInputs) -> Tensor:
    log_q = (COUNTS.double() / COUNTS.sum()).log()
    total = torch.zeros((), dtype=torch.float64)
    for hidden, item in zip(inputs.hidden.double(), inputs.positives.tolist(), strict=True):
        corrected = inputs.rows.double() @ hidden - log_q[:U]  # row u is item u + 1
        others = [corrected[i] for i in inputs.negative_index.tolist() if i + 1 != item]
        total = total + torch.stack([corrected[item - 1], *others]).logsumexp(0) - corrected[item - 1]
    return total


NAIVE: dict[str, Callable[[LossInputs], Tensor]] = {
    "bce": naive_bce,
    "gbce": naive_gbce,
    "bpr": naive_bpr,
    "sampled_softmax": naive_sampled_softmax,
}


@pytest.mark.parametrize("chunk_elements", [1, 64, 1 << 22])
@pytest.mark.parametrize("name", SAMPLED)
def test_loss_matches_its_formula_for_any_chunk_size(
    name: str, chunk_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", chunk_elements)
    inputs = make_inputs(name)
    got, exact = build(name)(inputs), NAIVE[name](inputs)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    leaves = [inputs.hidden, inputs.rows]
    gradients = (torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (got, exact))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLED)
def test_extreme_scores_give_finite_losses_and_gradients(name: str) -> None:
    inputs = make_inputs(name, scale=1e4)
    loss = build(name)(inputs)
    loss.backward()
    assert bool(loss.isfinite())
    assert inputs.rows.grad is not None
    assert bool(inputs.rows.grad.isfinite().all())


@pytest.mark.parametrize("name", SAMPLED)
def test_loss_without_targets_is_a_differentiable_zero(name: str) -> None:
    inputs = make_inputs(name, num_targets=0)
    loss = build(name)(inputs)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert inputs.rows.grad is not None


@pytest.mark.parametrize("name", SAMPLED)
def test_bfloat16_hidden_states_give_a_float32_loss(name: str) -> None:
    loss = build(name)(make_inputs(name, dtype=torch.bfloat16))
    exact = NAIVE[name](make_inputs(name, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-5)


def test_shared_negatives_equal_to_the_target_are_masked() -> None:
    inputs = make_inputs("sampled_softmax", num_targets=1)
    only_hits = dataclasses.replace(
        inputs, negative_index=inputs.positive_index.repeat(M), shared=inputs.positives.repeat(M)
    )
    assert float(build("sampled_softmax")(only_hits).detach()) == 0.0


def test_chunks_bound_the_saved_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chunks.CHUNK_ELEMENTS, "cpu", 4 * K * D)
    inputs, saved = make_inputs("bce"), []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        build("bce")(inputs)
    assert max(saved) < V * K * D


def test_full_softmax_returns_the_table_cross_entropy() -> None:
    def cross_entropy(hidden: Tensor, positives: Tensor) -> Tensor:
        return hidden.sum() + positives.sum()

    inputs = dataclasses.replace(make_inputs("full_softmax"), cross_entropy=cross_entropy)
    expected = inputs.hidden.sum() + inputs.positives.sum()
    torch.testing.assert_close(build("full_softmax")(inputs), expected)


def test_gbce_beta_is_one_at_t_0_and_the_sampling_rate_at_t_1() -> None:
    assert gbce_beta(5, 1001, 0.0) == pytest.approx(1.0)
    assert gbce_beta(5, 1001, 1.0) == pytest.approx(5 / 1000)
    assert math.isclose(gbce_beta(1, 2, 1.0), 1.0)
    with pytest.raises(ValueError, match="num_items=1"):
        gbce_beta(1, 1, 0.5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "bcee"}, "name='bcee': unknown; did you mean bce?"),
        ({"num_negatives": 0}, r"num_negatives\s+.* greater than or equal to 1"),
        ({"gbce_t": 1.5}, r"gbce_t\s+.* less than or equal to 1"),
        ({"name": "bce", "negatives": "frequency"}, "use 'uniform'"),
    ],
)
def test_invalid_setting_raises_with_the_valid_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossConfig(**fields)
