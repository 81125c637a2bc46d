"""splitmix64 in Triton, for kernels that draw the numbers of `keyed_random`. Importing it needs Triton."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportIncompatibleMethodOverride=false, reportOperatorIssue=false
# Triton's types do not show what a kernel computes with.

import triton  # pyright: ignore[reportMissingImports] -- optional
import triton.language as tl  # pyright: ignore[reportMissingImports] -- optional

_GOLDEN = tl.constexpr(0x9E37_79B9_7F4A_7C15)
_MIX_1 = tl.constexpr(0xBF58_476D_1CE4_E5B9)
_MIX_2 = tl.constexpr(0x94D0_49BB_1331_11EB)


@triton.jit
def _finalise(z):
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    return z ^ (z >> 31)


@triton.jit
def keyed_word(key, number):
    """Return word `number` (uint64) of `key` (uint64): `fold_in`, and `keyed_bits` of a folded key."""
    return _finalise(key + (number + 1) * _GOLDEN)


@triton.jit
def load_keys(keys, at, mask):
    """Load int64 keys as uint64."""
    return tl.load(keys + at, mask=mask, other=0).to(tl.uint64, bitcast=True)
