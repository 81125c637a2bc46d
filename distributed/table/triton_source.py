"""The Triton kernels that `triton_kernels` launches and documents; importing this module needs Triton."""

import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional


@triton.jit
def _offsets(rows, num_rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """Locate the rows of this program.

    Returns:
        (ROWS,) the mask of rows that exist, and their row numbers; (ROWS, PADDED) the offsets of their
        elements in the table and in tensors ordered as `rows`, and the mask of elements that exist.
    """
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    is_row = at < num_rows
    row = tl.load(rows + at, mask=is_row, other=0)
    in_table = row[:, None] * WIDTH + column[None, :]
    in_order = at.to(tl.int64)[:, None] * WIDTH + column[None, :]
    return is_row, row, in_table, in_order, is_row[:, None] & (column < WIDTH)[None, :]


@triton.jit
def lazy_adam(
    weight,
    exp_avg,
    exp_avg_sq,
    rows,
    grads,
    num_rows,
    beta1,
    beta2,
    step_size,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    _, _, offset, in_order, mask = _offsets(rows, num_rows, WIDTH, PADDED, ROWS)
    grad = tl.load(grads + in_order, mask=mask, other=0.0)
    first = tl.load(exp_avg + offset, mask=mask, other=0.0)
    first += (1 - beta1) * (grad - first)
    second = tl.load(exp_avg_sq + offset, mask=mask, other=0.0)
    second = beta2 * second + (1 - beta2) * grad * grad
    value = tl.load(weight + offset, mask=mask, other=0.0)
    tl.store(exp_avg + offset, first, mask=mask)
    tl.store(exp_avg_sq + offset, second, mask=mask)
    tl.store(weight + offset, value - step_size * first / (tl.sqrt(second) + eps), mask=mask)


@triton.jit
def row_adagrad(
    weight,
    sum_sq,
    rows,
    grads,
    num_rows,
    step_size,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    is_row, row, offset, in_order, mask = _offsets(rows, num_rows, WIDTH, PADDED, ROWS)
    grad = tl.load(grads + in_order, mask=mask, other=0.0)
    total = tl.load(sum_sq + row, mask=is_row, other=0.0) + tl.sum(grad * grad, 1) / WIDTH
    value = tl.load(weight + offset, mask=mask, other=0.0)
    tl.store(sum_sq + row, total, mask=is_row)
    tl.store(weight + offset, value - step_size * grad / (tl.sqrt(total) + eps)[:, None], mask=mask)


@triton.jit
def take_rows(
    table,
    rows,
    out,
    num_rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    _, _, offset, in_order, mask = _offsets(rows, num_rows, WIDTH, PADDED, ROWS)
    tl.store(out + in_order, tl.load(table + offset, mask=mask), mask=mask)


@triton.jit
def count_above(
    queries,
    rows,
    above,
    below,
    counts,
    near,
    num_near,
    num_queries,
    num_rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    column = tl.arange(0, PADDED)
    is_query = query < num_queries
    query_offset = query.to(tl.int64)[:, None] * WIDTH + column[None, :]
    is_element = column < WIDTH
    q = tl.load(queries + query_offset, mask=is_query[:, None] & is_element[None, :], other=0.0)
    high = tl.load(above + query, mask=is_query, other=float("inf"))
    low = tl.load(below + query, mask=is_query, other=float("inf"))
    count = tl.zeros((QUERIES,), tl.int32)
    begin = tl.program_id(1) * ROWS_PER_PROGRAM
    for first in range(begin, begin + ROWS_PER_PROGRAM, ROWS):
        row = first + tl.arange(0, ROWS)
        is_row = row < num_rows
        row_offset = row.to(tl.int64)[None, :] * WIDTH + column[:, None]
        r = tl.load(rows + row_offset, mask=is_element[:, None] & is_row[None, :], other=0.0)
        score = tl.dot(q, r, input_precision="tf32x3")
        inside = is_query[:, None] & is_row[None, :]
        count += tl.sum((inside & (score > high[:, None])).to(tl.int32), 1)
        undecided = inside & (score >= low[:, None]) & (score <= high[:, None])
        found = tl.sum(tl.sum(undecided.to(tl.int32), 1), 0)
        if found > 0:  # pyright: ignore[reportOperatorIssue] -- a scalar, which Triton's types do not show
            base = tl.atomic_add(num_near, found)
            flat = tl.reshape(undecided.to(tl.int32), (QUERIES * ROWS,))
            slot = base + tl.cumsum(flat, 0) - 1
            flat_query = tl.reshape(query[:, None] + tl.zeros((QUERIES, ROWS), tl.int32), (QUERIES * ROWS,))
            flat_row = tl.reshape(row[None, :] + tl.zeros((QUERIES, ROWS), tl.int32), (QUERIES * ROWS,))
            mask = (flat > 0) & (slot < CAPACITY)
            tl.store(near + 2 * slot.to(tl.int64), flat_query.to(tl.int64), mask=mask)
            tl.store(near + 2 * slot.to(tl.int64) + 1, flat_row.to(tl.int64), mask=mask)
    tl.atomic_add(counts + query, count, mask=is_query)
