"""Compile the kernels of a training step for an H100: they spill no registers and use 16-byte loads."""

import importlib.util
import re
from typing import Any

import pytest
from support.triton_compile import SHARED_BYTES, compile_for_h100

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

INDEX_POINTERS = {"positives", "negatives", "order", "bounds", "keys", "row_keys", "slots"}
NUMBERS = {"V", "num_entries", "first", "num_rows", "tiles", "num_words", "row_words", "num_drawn", "length"}
NUMBERS |= {"num_items"}
FLOATS = {"eps", "scale"}


def types_of(kernel: Any, dtype: str, drawn: bool) -> dict[str, str]:
    """Return Triton's type of each parameter that is no constant."""
    types = {}
    for name in kernel.arg_names:
        if name in INDEX_POINTERS or (drawn and name == "out"):
            types[name] = "*i64"
        elif name in FLOATS and not (name == "scale" and "weight" in kernel.arg_names):
            types[name] = "fp32"
        elif name in NUMBERS:
            types[name] = "i32"
        elif not name.isupper():
            types[name] = f"*{dtype}"
    return types


def kernels(width: int) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Return each kernel with the constants that the project launches it with."""
    from longplay.models.base import dropout_kernel, layer_norm_kernel
    from longplay.models.losses import negatives_kernel
    from longplay.models.rows import gather, triton_source

    rows = {"WIDTH": width, "PADDED": 1 << (width - 1).bit_length()}
    norm = layer_norm_kernel._sizes(width)
    dropout = {"LAYER": 3, "THRESHOLD": 13_107, "WIDTH": width, "WORDS": dropout_kernel._WORDS}
    draw = {"K": 4, "STREAM": 1 << 20, "BLOCK": negatives_kernel._BLOCK}
    scores = rows | {"K": 4, "BLOCK": gather._ENTRIES}
    sums = rows | {"K": 4, "BLOCK": gather._SUMMED_ENTRIES}
    return {
        "score_candidates": (triton_source.score_candidates, scores),
        "hidden_gradients": (triton_source.hidden_gradients, scores),
        "sum_by_row": (triton_source.sum_by_row, sums | {"SCALED": False}),
        "sum_by_row, scaled": (triton_source.sum_by_row, sums | {"SCALED": True}),
        "dropout": (dropout_kernel._dropout, dropout),
        "negatives": (negatives_kernel._draw, draw),
        "layer_norm": (layer_norm_kernel._forward, norm),
        "layer_norm backward": (layer_norm_kernel._backward, norm),
    }


@pytest.mark.parametrize("width", [1, 24, 64, 128, 256])
@pytest.mark.parametrize("name", sorted(kernels(1)) if importlib.util.find_spec("triton") else [])
def test_a_kernel_compiles_without_spills(name: str, width: int) -> None:
    kernel, constants = kernels(width)[name]
    dtype = "bf16" if name in ("dropout", "sum_by_row") else "fp32"
    types = types_of(kernel, dtype, drawn=name == "negatives")
    if name == "sum_by_row":
        types["out"] = "*fp32"
    warps = 1 if name.startswith("sum_by_row") else 4
    usage = compile_for_h100(kernel, types, constants, num_warps=warps)
    assert usage.stack_bytes == 0
    assert usage.shared_bytes <= SHARED_BYTES
    if width >= 64 and name not in ("negatives", "dropout", "sum_by_row"):
        assert re.search(r"ld\.global\S*\.v[48]\.", usage.ptx), "loads of less than 16 bytes"
