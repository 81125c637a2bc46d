"""Counter-based random numbers: every draw is a pure function of a key.

Draws do not depend on the world size, the batch, the device or the order of calls. No global generator is
read or changed.

The generator is splitmix64: output i of key k is `finalise(k + (i + 1) * GOLDEN)` in wrapping int64
arithmetic.
Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; finaliser constants
from Stafford's mix 13.
"""

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the int64 with the low 64 bits of `value`."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E37_79B9_7F4A_7C15)
_MIX_1 = _signed(0xBF58_476D_1CE4_E5B9)
_MIX_2 = _signed(0x94D0_49BB_1331_11EB)


def fold_in(keys: Tensor, value: int | Tensor) -> Tensor:
    """Derive new keys from `keys` and `value`. For one key, distinct values give distinct keys.

    Args:
        keys: int64, any shape.
        value: an int or an int64 tensor that broadcasts against `keys`.

    Returns:
        int64 keys of the broadcast shape.
    """
    counter = _signed(_GOLDEN * (value + 1)) if isinstance(value, int) else (value + 1) * _GOLDEN
    mixed = keys + counter
    return _finalise_(mixed, torch.empty_like(mixed))


def row_keys(seed: int, step: int, lanes: Tensor, row_numbers: Tensor) -> Tensor:
    """Derive one key per row of a batch from the seed, the step and the row's origin in the data stream.

    Args:
        seed: the run's seed.
        step: the optimizer step.
        lanes: (B,) int64, the data-stream lane that packed each row.
        row_numbers: (B,) int64, the number of each row within its lane.

    Returns:
        (B,) int64 keys on the device of `lanes`.
    """
    start = torch.full_like(lanes, _signed(seed), dtype=torch.int64)
    return fold_in(fold_in(fold_in(fold_in(start, 0), step), lanes), row_numbers)


def keyed_bits(keys: Tensor, stream: int, count: int) -> Tensor:
    """Draw `count` random 64-bit words per key.

    Args:
        keys: (B,) int64.
        stream: number of an independent stream of each key, for example the id of a dropout layer.
        count: words per key. Word i does not depend on `count`.

    Returns:
        (B, count) int64 with uniform bits.
    """
    base = fold_in(keys, stream).unsqueeze(1)
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64).mul_(_GOLDEN).unsqueeze(0)
    bits = base + counters
    return _finalise_(bits, torch.empty_like(bits))


def keyed_uniform(keys: Tensor, stream: int, count: int) -> Tensor:
    """Draw `count` float64 per key, uniform over the multiples of 2^-53 in [0, 1): (B, count)."""
    return (
        keyed_bits(keys, stream, count).bitwise_right_shift_(11).bitwise_and_((1 << 53) - 1).double()
        * 2.0**-53
    )


def keyed_integers(keys: Tensor, stream: int, count: int, bound: int) -> Tensor:
    """Draw `count` int64 per key, uniform in [0, bound) with a bias below bound / 2^63: (B, count).

    Raises:
        ValueError: `bound` is less than 1.
    """
    if bound < 1:
        raise ValueError(f"bound={bound}: must be at least 1")
    return keyed_bits(keys, stream, count).bitwise_and_((1 << 63) - 1).remainder_(bound)


def _finalise_(z: Tensor, scratch: Tensor) -> Tensor:
    """Apply splitmix64's finaliser to z in place. The masks make the arithmetic int64 shifts logical."""
    for shift, multiplier in ((30, _MIX_1), (27, _MIX_2), (31, None)):
        torch.bitwise_right_shift(z, shift, out=scratch)
        scratch.bitwise_and_((1 << (64 - shift)) - 1)
        z.bitwise_xor_(scratch)
        if multiplier is not None:
            z.mul_(multiplier)
    return z
