"""The Triton kernels that `triton_scan` launches and documents; importing this module needs Triton.

Upper-case parameters are pointers and compile-time sizes. A row of L slots is cut into chunks, a chunk into
tiles of TILE slots. A program computes one chunk for BLOCK_E channels, tile by tile. A thread holds one
channel and all slots of the tile, so a scan over slots runs in its registers. The N states are computed one
after the other: sums over N also stay in registers.
"""

import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional

_LOG2E = tl.constexpr(1.4426950408889634)

# If Triton knows that these pointers are aligned, it loads four channels per thread and spreads the slots
# over the warps, and each scan goes through shared memory.
UNALIGNED = ["U", "DT", "Z", "DOUT", "OUT", "DU", "DDT", "DZ"]
# These differ between steps. One compiled kernel serves all of their values.
_LENGTHS = ["slots", "L", "chunks", "tiles", "sums_tiles"]


@triton.jit
def _combine(a_left, b_left, a_right, b_right):
    """Compose h -> a_left h + b_left with h -> a_right h + b_right, which comes after it."""
    return a_left * a_right, a_right * b_left + b_right


@triton.jit
def _combine_back(inner_right, first_right, g_right, inner_left, first_left, g_left):
    """Combine two runs of slots of g_t = d_t + a_{t+1} g_{t+1}, for a scan from the last slot to the first.

    A run is the product of its a except the first, its first a, and the g of its first slot if g is 0 after
    its last slot. Slot t alone is (1, a_t, d_t).
    """
    through = inner_left * first_right
    return through * inner_right, first_left, g_left + through * g_right


@triton.jit
def _softplus(v):
    """Return log(1 + exp(v)), accurate to float32: with w = exp(-|v|), log(1 + w) = 2 atanh(w / (2 + w))."""
    w = tl.exp2(-tl.abs(v) * _LOG2E)
    s = w / (2.0 + w)
    q = s * s
    tail = 1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))
    return tl.maximum(v, 0.0) + 2.0 * s * (1.0 + q * (1 / 3 + q * tail))


@triton.jit
def _sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(-v * _LOG2E))


@triton.jit
def _tile(pointer, stride, first, t, e, mask):
    """Load (TILE, BLOCK_E) float32 of a channel-last tensor, 0 where masked; `first` is an int64 slot."""
    at = pointer + first * stride + t[:, None] * stride + e[None, :]
    return tl.load(at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _column(pointer, stride, first, t, n, valid):
    """Load (TILE, 1) float32: B or C at state n."""
    at = pointer + first * stride + t * stride + n
    return tl.load(at, mask=valid, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _channels_if(e, E, count):
    """Return (BLOCK_E,) bool, the channels that exist if count > 0, else none.

    The interpreter needs a tensor here even where `count` is a Python number.
    """
    return (e < E) & (e * 0 + count > 0)


@triton.jit(do_not_specialize=_LENGTHS, do_not_specialize_on_alignment=UNALIGNED)
def chunk_sums(
    U, DT, BIAS, Z, DOUT, K, A, STARTS, SUMS, TOTALS,
    L, chunks, tiles, sums_tiles, E: tl.constexpr, u_stride: tl.constexpr, dt_stride: tl.constexpr,
    z_stride: tl.constexpr, dout_stride: tl.constexpr, k_stride: tl.constexpr,
    N: tl.constexpr, TILE: tl.constexpr, BLOCK_E: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Compute what a chunk adds to the state that passes through it.

    The factor on that state is exp(A sum(dt)), so this needs a weighted sum and no scan.

    Forward (K = B): SUMS is the state at the chunk's end if the state before it is 0. TOTALS is sum(dt), or
    -1 if the chunk has a segment start. Tiles are taken from the last to the first.
    Backward (K = C): SUMS is the gradient of the state before the chunk if the gradient after it is 0. Tiles
    are taken from the first to the last.
    Both stop at the first segment start, because no state passes it.
    """
    chunk = tl.program_id(0)
    begin = (chunk % chunks) * tiles * TILE
    tiles = tl.minimum(tiles, tl.cdiv(L - begin, TILE))
    t = tl.arange(0, TILE)
    if not BACKWARD:
        t = TILE - 1 - t  # the last slot first, so that cumsum runs from the end
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    bias = tl.load(BIAS + e, mask=e < E, other=0.0).to(tl.float32)
    sums = SUMS + chunk.to(tl.int64) * sums_tiles * N * E + e
    passed = tl.zeros((BLOCK_E,), tl.float32)  # sum(dt) of the tiles already taken
    linked = 1
    for step in range(tiles):
        if linked > 0:
            at = begin + (step if BACKWARD else tiles - 1 - step) * TILE
            first = (chunk // chunks).to(tl.int64) * L + at
            valid = at + t < L
            mask = valid[:, None] & (e < E)[None, :]
            starts = tl.load(STARTS + first + t, mask=valid, other=0) != 0
            dt = tl.where(mask, _softplus(_tile(DT, dt_stride, first, t, e, mask) + bias[None, :]), 0.0)
            if BACKWARD:
                z = _tile(Z, z_stride, first, t, e, mask)
                value = _tile(DOUT, dout_stride, first, t, e, mask) * z * _sigmoid(z)
                live = t < tl.min(tl.where(starts, t, TILE), 0)  # a start cuts off the slots from it on
                way = tl.cumsum(dt, 0)
            else:
                value = _tile(U, u_stride, first, t, e, mask) * dt
                live = t >= tl.max(tl.where(starts, t, 0), 0)  # a start cuts off the slots before it
                after = mask & (t < TILE - 1)[:, None] & (at + t + 1 < L)[:, None]
                dt_after = _softplus(_tile(DT, dt_stride, first + 1, t, e, after) + bias[None, :])
                way = tl.cumsum(tl.where(after, dt_after, 0.0), 0)
            way += passed[None, :]
            value = tl.where(live[:, None], value, 0.0)
            for n in range(N):
                a = tl.load(A + n * E + e, mask=e < E, other=0.0) * _LOG2E
                weighted = tl.exp2(way * a[None, :]) * (value * _column(K, k_stride, first, t, n, valid))
                earlier = tl.load(sums + n * E, mask=_channels_if(e, E, step), other=0.0)
                tl.store(sums + n * E, earlier + tl.sum(weighted, 0), mask=e < E)
            passed += tl.sum(dt, 0)
            linked = 1 - tl.max(starts.to(tl.int32), 0)  # pyright: ignore[reportOperatorIssue] -- a tensor
            tl.debug_barrier()  # another thread may load in the next tile what this thread stored
    if not BACKWARD:
        tl.store(TOTALS + chunk.to(tl.int64) * E + e, tl.where(linked > 0, passed, -1.0), mask=e < E)


@triton.jit(do_not_specialize=_LENGTHS)
def chain_chunks(
    A, SUMS, TOTALS, chunks, sums_tiles,
    E: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """Replace each chunk's SUMS by the state before the chunk, or by the gradient of the state after it."""
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < N * E
    a = tl.load(A + i, mask=mask, other=0.0) * _LOG2E
    carried = tl.zeros((BLOCK,), tl.float32)
    for step in range(chunks):
        chunk = tl.program_id(0).to(tl.int64) * chunks + (chunks - 1 - step if BACKWARD else step)
        total = tl.load(TOTALS + chunk * E + i % E, mask=mask, other=0.0)
        sums = SUMS + chunk * sums_tiles * N * E + i
        local = tl.load(sums, mask=mask, other=0.0)
        tl.store(sums, carried, mask=mask)
        carried = tl.where(total < 0, 0.0, tl.exp2(a * total)) * carried + local


@triton.jit(do_not_specialize=_LENGTHS, do_not_specialize_on_alignment=UNALIGNED)
def chunk_forward(
    U, DT, BIAS, Z, B, C, A, D, STARTS, ENTRIES, OUT,
    L, chunks, tiles, E: tl.constexpr, u_stride: tl.constexpr, dt_stride: tl.constexpr,
    z_stride: tl.constexpr, b_stride: tl.constexpr, c_stride: tl.constexpr,
    N: tl.constexpr, TILE: tl.constexpr, BLOCK_E: tl.constexpr, HAS_ENTRY: tl.constexpr,
):  # fmt: skip
    """Compute the outputs of a chunk.

    ENTRIES (B * chunks, tiles, N, E) holds the state before each tile. `chain_chunks` wrote that of the first
    tile if HAS_ENTRY is 1; it is 0 otherwise. The others are written here, for the next tile and for the
    backward.
    """
    chunk = tl.program_id(0)
    begin = (chunk % chunks) * tiles * TILE
    t = tl.arange(0, TILE)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    bias = tl.load(BIAS + e, mask=e < E, other=0.0).to(tl.float32)
    d_skip = tl.load(D + e, mask=e < E, other=0.0).to(tl.float32)
    last_tile = tl.minimum(tiles, tl.cdiv(L - begin, TILE)) - 1
    for j in range(last_tile + 1):
        at = begin + j * TILE
        first = (chunk // chunks).to(tl.int64) * L + at
        valid = at + t < L
        mask = valid[:, None] & (e < E)[None, :]
        keep = tl.load(STARTS + first + t, mask=valid, other=0) == 0
        dt = tl.where(mask, _softplus(_tile(DT, dt_stride, first, t, e, mask) + bias[None, :]), 0.0)
        x = dt * _tile(U, u_stride, first, t, e, mask)
        y = tl.zeros((TILE, BLOCK_E), tl.float32)
        entries = ENTRIES + (chunk.to(tl.int64) * tiles + j) * N * E + e
        for n in range(N):
            a_n = tl.load(A + n * E + e, mask=e < E, other=0.0) * _LOG2E
            a = tl.where(keep[:, None], tl.exp2(dt * a_n[None, :]), 0.0)
            b = x * _column(B, b_stride, first, t, n, valid)
            entry = tl.load(entries + n * E, mask=_channels_if(e, E, j + HAS_ENTRY), other=0.0)
            b = tl.where(t[:, None] == 0, b + a * entry[None, :], b)
            _, h = tl.associative_scan((a, b), 0, _combine)
            y += h * _column(C, c_stride, first, t, n, valid)
            end = tl.sum(tl.where(t[:, None] == TILE - 1, h, 0.0), 0)
            tl.store(entries + (N + n) * E, end, mask=_channels_if(e, E, last_tile - j))
        z = _tile(Z, z_stride, first, t, e, mask)
        out = (y + d_skip[None, :] * _tile(U, u_stride, first, t, e, mask)) * z * _sigmoid(z)
        tl.store(OUT + first * E + t[:, None] * E + e[None, :], out, mask=mask)
        tl.debug_barrier()


@triton.jit(do_not_specialize=_LENGTHS, do_not_specialize_on_alignment=UNALIGNED)
def chunk_backward(
    U, DT, BIAS, Z, B, C, A, D, STARTS, ENTRIES, DOUT, EXITS,
    DU, DDT, DZ, DBC, DPARAM,
    slots, L, chunks, tiles, E: tl.constexpr, u_stride: tl.constexpr, dt_stride: tl.constexpr,
    z_stride: tl.constexpr, b_stride: tl.constexpr, c_stride: tl.constexpr, dout_stride: tl.constexpr,
    N: tl.constexpr, TILE: tl.constexpr, BLOCK_E: tl.constexpr, HAS_ENTRY: tl.constexpr,
):  # fmt: skip
    """Compute all gradients of a chunk, from its last tile to its first.

    h is computed again from ENTRIES. With g the gradient of h: g_t = dy_t C_t + a_{t+1} g_{t+1}.

    EXITS (B * chunks, N, E): a g of the slot after the tile. `chain_chunks` wrote that of the last tile if
    HAS_ENTRY is 1; it is 0 otherwise. DBC (channel blocks, 2, B * L, N): dB and dC, summed over the program's
    channels. DPARAM (B * chunks, N + 2, E): dA, dD and ddt_bias, summed over the program's slots.
    """
    chunk = tl.program_id(0)
    begin = (chunk % chunks) * tiles * TILE
    t = tl.arange(0, TILE)
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    bias = tl.load(BIAS + e, mask=e < E, other=0.0).to(tl.float32)
    d_skip = tl.load(D + e, mask=e < E, other=0.0).to(tl.float32)[None, :]
    one = tl.full((TILE, BLOCK_E), 1.0, tl.float32)
    dparam = DPARAM + chunk.to(tl.int64) * (N + 2) * E + e
    exits = EXITS + chunk.to(tl.int64) * N * E + e
    d_skip_sum = tl.zeros((BLOCK_E,), tl.float32)
    d_bias_sum = tl.zeros((BLOCK_E,), tl.float32)
    last_tile = tl.minimum(tiles, tl.cdiv(L - begin, TILE)) - 1
    for step in range(last_tile + 1):
        j = last_tile - step
        at = begin + j * TILE
        first = (chunk // chunks).to(tl.int64) * L + at
        valid = at + t < L
        mask = valid[:, None] & (e < E)[None, :]
        keep = tl.load(STARTS + first + t, mask=valid, other=0) == 0
        dt = tl.where(mask, _softplus(_tile(DT, dt_stride, first, t, e, mask) + bias[None, :]), 0.0)
        x = dt * _tile(U, u_stride, first, t, e, mask)
        z = _tile(Z, z_stride, first, t, e, mask)
        dy = _tile(DOUT, dout_stride, first, t, e, mask) * z * _sigmoid(z)
        y = tl.zeros((TILE, BLOCK_E), tl.float32)
        dx = tl.zeros((TILE, BLOCK_E), tl.float32)
        ddt = tl.zeros((TILE, BLOCK_E), tl.float32)
        entries = ENTRIES + (chunk.to(tl.int64) * tiles + j) * N * E + e
        dbc = DBC + (tl.program_id(1).to(tl.int64) * 2 * slots + first + t) * N
        for n in range(N):
            a_n = tl.load(A + n * E + e, mask=e < E, other=0.0)[None, :]
            entry = tl.load(entries + n * E, mask=_channels_if(e, E, j + HAS_ENTRY), other=0.0)[None, :]
            exit = tl.load(exits + n * E, mask=_channels_if(e, E, step + HAS_ENTRY), other=0.0)[None, :]
            b_n = _column(B, b_stride, first, t, n, valid)
            c_n = _column(C, c_stride, first, t, n, valid)
            a = tl.where(keep[:, None], tl.exp2(dt * (a_n * _LOG2E)), 0.0)
            b = x * b_n
            _, h = tl.associative_scan((a, tl.where(t[:, None] == 0, b + a * entry, b)), 0, _combine)
            d = dy * c_n
            d = tl.where(t[:, None] == TILE - 1, d + exit, d)
            # tl.flip only renames registers here; associative_scan(reverse=True) would shuffle every value.
            _, _, g = tl.associative_scan((one, tl.flip(a, 0), tl.flip(d, 0)), 0, _combine_back)
            g = tl.flip(g, 0)
            y += h * c_n
            dx += g * b_n
            # h - b is a_t h_{t-1}. At a start it is 0, or the rounding error of b if compiled to one FMA.
            dlog_a = g * (h - b)
            ddt += dlog_a * a_n
            earlier = tl.load(dparam + n * E, mask=_channels_if(e, E, step), other=0.0)
            tl.store(dparam + n * E, earlier + tl.sum(dlog_a * dt, 0), mask=e < E)
            before = tl.sum(tl.where(t[:, None] == 0, a * g, 0.0), 0)
            tl.store(exits + n * E, before, mask=_channels_if(e, E, j))
            tl.store(dbc + n, tl.sum(g * x, 1), mask=valid)
            tl.store(dbc + slots.to(tl.int64) * N + n, tl.sum(dy * h, 1), mask=valid)
        # u and z are loaded again: the loop over n needs the registers.
        u = _tile(U, u_stride, first, t, e, mask)
        z = _tile(Z, z_stride, first, t, e, mask)
        gate = _sigmoid(z)
        dz = _tile(DOUT, dout_stride, first, t, e, mask) * (y + d_skip * u) * gate * (1.0 + z * (1.0 - gate))
        ddt = (ddt + dx * u) * _sigmoid(_tile(DT, dt_stride, first, t, e, mask) + bias[None, :])
        to = first * E + t[:, None] * E + e[None, :]
        tl.store(DZ + to, dz, mask=mask)
        tl.store(DU + to, dx * dt + dy * d_skip, mask=mask)
        tl.store(DDT + to, ddt, mask=mask)
        d_skip_sum += tl.sum(dy * u, 0)
        d_bias_sum += tl.sum(ddt, 0)
        tl.debug_barrier()
    tl.store(dparam + N * E, d_skip_sum, mask=e < E)
    tl.store(dparam + (N + 1) * E, d_bias_sum, mask=e < E)
