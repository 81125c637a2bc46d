"""The Triton kernels that `gather` launches; importing this module needs Triton."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportOperatorIssue=false
# Triton's types do not show what a kernel computes with.

import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional


@triton.jit
def _candidates(positives, negatives, entry, mask, V, K: tl.constexpr):
    """Return the rows and targets of candidate entries: V positives, then K negatives of each target."""
    is_positive = entry < V
    row = tl.load(positives + entry, mask=mask & is_positive, other=0)
    row += tl.load(negatives + entry - V, mask=mask & (entry >= V), other=0)
    return row, tl.where(is_positive, entry, (entry - V) // K)


@triton.jit(do_not_specialize=["V", "num_entries"])
def score_candidates(
    hidden,
    rows,
    positives,
    negatives,
    scores,
    V,
    num_entries,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Score every candidate entry: scores[e] = hidden[target of e] . rows[row of e]."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = entry < num_entries
    row, target = _candidates(positives, negatives, entry, mask, V, K)
    column = tl.arange(0, PADDED)
    inside = mask[:, None] & (column < WIDTH)[None, :]
    h = tl.load(hidden + target[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    r = tl.load(rows + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    tl.store(scores + entry, tl.sum(h * r, 1), mask=mask)


@triton.jit(do_not_specialize=["V"])
def hidden_gradients(
    score_grads,
    rows,
    positives,
    negatives,
    hidden_grads,
    V,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum score_grads[e] * rows[row of e] over the 1 + K entries of each target."""
    target = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = target < V
    column = tl.arange(0, PADDED)
    inside = mask[:, None] & (column < WIDTH)[None, :]
    row = tl.load(positives + target, mask=mask, other=0)
    grad = tl.load(score_grads + target, mask=mask, other=0.0)
    total = grad[:, None] * tl.load(rows + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    for k in range(K):
        row = tl.load(negatives + target * K + k, mask=mask, other=0)
        grad = tl.load(score_grads + V + target * K + k, mask=mask, other=0.0)
        r = tl.load(rows + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
        total += grad[:, None] * r
    tl.store(hidden_grads + target[:, None] * WIDTH + column[None, :], total, mask=inside)


@triton.jit(do_not_specialize=["first", "num_entries", "V"])
def sum_by_row(
    values,
    factors,
    order,
    bounds,
    out,
    first,
    num_entries,
    V,
    K: tl.constexpr,
    SCALED: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the values of each row's entries among `num_entries` entries from `first` on, in entry order.

    The value of entry e is values[e], or factors[e] * values[target of e] if SCALED. Row 0 is left out.
    """
    row = tl.program_id(0).to(tl.int64) + 1
    begin, end = tl.load(bounds + row), tl.load(bounds + row + 1)
    column = tl.arange(0, PADDED)
    total = tl.zeros((BLOCK, PADDED), tl.float32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        entry = tl.load(order + at, mask=at < end, other=-1) - first
        mask = (at < end) & (entry >= 0) & (entry < num_entries)
        inside = mask[:, None] & (column < WIDTH)[None, :]
        if SCALED:
            factor = tl.load(factors + entry, mask=mask, other=0.0)
            entry = tl.where(entry < V, entry, (entry - V) // K)
            value = tl.load(values + entry[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
            total += factor[:, None] * value
        else:
            value = tl.load(values + entry[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
            total += value.to(tl.float32)
    tl.store(out + row * WIDTH + column, tl.sum(total, 0), mask=column < WIDTH)
