"""Where Triton kernels can run: on a GPU, or with TRITON_INTERPRET=1 in Triton's interpreter on the CPU."""

import os
from importlib.util import find_spec

SWITCH = "LONGPLAY_TRITON"  # 0 = use PyTorch instead of Longplay's Triton kernels
_IS_INSTALLED = find_spec("triton") is not None


def can_run_triton(device_type: str) -> bool:
    """Return whether Triton is installed and enabled, and can run on "cuda" or "cpu"."""
    can_run = device_type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return can_run and os.environ.get(SWITCH) != "0" and _IS_INSTALLED


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`, as Triton's blocks need."""
    return 1 << (size - 1).bit_length()
