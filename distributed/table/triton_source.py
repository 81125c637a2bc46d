"""The Triton kernels that `triton_kernels` and `score_kernel` launch; importing this module needs Triton."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOperatorIssue=false
# Triton's types do not show what a kernel computes with.

import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional


@triton.jit
def _offsets(rows, num_rows, WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):
    """Locate the rows of this program; a negative row number is skipped.

    Returns:
        (ROWS,) the mask of rows that exist, and their row numbers; (ROWS, PADDED) the offsets of their
        elements in the table and in tensors ordered as `rows`, and the mask of elements that exist.
    """
    at = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    row = tl.load(rows + at, mask=at < num_rows, other=-1).to(tl.int64)
    is_row = row >= 0
    in_table = row[:, None] * WIDTH + column[None, :]
    in_order = at.to(tl.int64)[:, None] * WIDTH + column[None, :]
    return is_row, row, in_table, in_order, is_row[:, None] & (column < WIDTH)[None, :]


@triton.jit(do_not_specialize=["num_rows"])
def lazy_adam(
    weight,
    exp_avg,
    exp_avg_sq,
    rows,
    grads,
    num_rows,
    rate1,
    beta2,
    rate2,
    step_size,
    eps,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Update rows of `weight` and their moments; see `triton_kernels.lazy_adam`. rate = 1 - beta."""
    _, _, offset, in_order, mask = _offsets(rows, num_rows, WIDTH, PADDED, ROWS)
    grad = tl.load(grads + in_order, mask=mask, other=0.0)
    first = tl.load(exp_avg + offset, mask=mask, other=0.0)
    second = tl.load(exp_avg_sq + offset, mask=mask, other=0.0)
    value = tl.load(weight + offset, mask=mask, other=0.0)
    first += rate1 * (grad - first)
    second = beta2 * second + rate2 * grad * grad
    tl.store(exp_avg + offset, first, mask=mask)
    tl.store(exp_avg_sq + offset, second, mask=mask)
    tl.store(weight + offset, value - step_size * first / (tl.sqrt(second) + eps), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
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
    """Update rows of `weight` and their sums of squares; see `triton_kernels.row_adagrad`."""
    is_row, row, offset, in_order, mask = _offsets(rows, num_rows, WIDTH, PADDED, ROWS)
    grad = tl.load(grads + in_order, mask=mask, other=0.0)
    total = tl.load(sum_sq + row, mask=is_row, other=0.0)
    value = tl.load(weight + offset, mask=mask, other=0.0)
    total += tl.sum(grad * grad, 1) / WIDTH
    tl.store(sum_sq + row, total, mask=is_row)
    tl.store(weight + offset, value - step_size * grad / (tl.sqrt(total) + eps)[:, None], mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def take_rows(
    table,
    rows,
    out,
    num_rows,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Copy rows of `table` to `out`; see `triton_kernels.take_rows`."""
    _, _, offset, in_order, mask = _offsets(rows, num_rows, WIDTH, PADDED, ROWS)
    tl.store(out + in_order, tl.load(table + offset, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def split_rows(
    values,
    scale,
    high,
    low,
    norms,
    num_rows,
    fill,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Split scaled rows into two fp16 parts; rows from `num_rows` on are `fill`, added columns are 0."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    is_row = (row < num_rows)[:, None]
    in_values = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    value = tl.load(values + in_values, mask=is_row & (column < WIDTH)[None, :], other=0.0) * tl.load(scale)
    first = value.to(tl.float16)
    second = (value - first.to(tl.float32)).to(tl.float16)
    offset = row.to(tl.int64)[:, None] * PADDED + column[None, :]
    tl.store(high + offset, tl.where(is_row, first, fill))
    tl.store(low + offset, second)
    tl.store(norms + row, tl.sqrt(tl.sum(value * value, 1)))


@triton.jit(do_not_specialize=["num_rows"])
def count_above(
    queries_high,
    queries_low,
    rows_high,
    rows_low,
    targets,
    margins,
    slack,
    norms,
    counts,
    near,
    num_near,
    num_rows,
    PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """Count the scores of QUERIES queries with ROWS_PER_PROGRAM rows; see `score_kernel.count_above`.

    The bound of a pair's undecided scores is margins[query] + slack[query] * norms[tile of the row].
    """
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    column = tl.arange(0, PADDED)
    tile_row = tl.arange(0, ROWS)
    query_offset = query.to(tl.int64)[:, None] * PADDED + column[None, :]
    q_high = tl.load(queries_high + query_offset)
    q_low = tl.load(queries_low + query_offset)
    target = tl.load(targets + query)
    margin = tl.load(margins + query)
    error = tl.load(slack + query)
    count = tl.zeros((QUERIES,), tl.float32)  # exact, and takes fewer instructions than integers
    begin = tl.program_id(1) * ROWS_PER_PROGRAM
    end = tl.minimum(begin + ROWS_PER_PROGRAM, num_rows)
    if tl.load(num_near) > CAPACITY:  # the result is discarded
        end = begin
    for first in range(begin, end, ROWS):
        norm = tl.load(norms + first // ROWS)
        row_offset = (first + tile_row).to(tl.int64)[None, :] * PADDED + column[:, None]
        r_high = tl.load(rows_high + row_offset)
        r_low = tl.load(rows_low + row_offset)
        # The small products come first, so that only the large one is rounded at the size of the score.
        score = tl.dot(q_low, r_high)
        score = tl.dot(q_high, r_low, score)
        score = tl.dot(q_high, r_high, score)
        bound = margin + error * norm
        lead = score - target[:, None]
        count += tl.sum(tl.where(lead > bound[:, None], 1.0, 0.0), 1)
        closest = tl.min(tl.abs(lead), 1)
        if tl.max((closest <= bound).to(tl.int32), 0) > 0:
            undecided = tl.abs(lead) <= bound[:, None]
            most = tl.max(tl.sum(undecided.to(tl.int32), 1), 0)
            previous = tl.full((QUERIES,), -1, tl.int32)
            for _ in range(most):  # list the next undecided row of each query
                later = undecided & (tile_row[None, :] > previous[:, None])
                previous = tl.min(tl.where(later, tile_row[None, :], ROWS), 1)
                is_found = previous < ROWS
                one = is_found.to(tl.int32)
                base = tl.atomic_add(num_near, tl.sum(one, 0).to(tl.int64))
                slot = base + tl.cumsum(one, 0) - 1
                mask = is_found & (slot < CAPACITY)
                place = near + 2 * tl.where(mask, slot, 0)
                tl.store(place, query, mask=mask)
                tl.store(place + 1, first + previous, mask=mask)
    tl.atomic_add(counts + query, count.to(tl.int32))
