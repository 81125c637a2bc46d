"""How many bytes autograd keeps per slot of a micro-batch, by formula: what backward needs of a forward.

Each formula lists the tensors that the modules of this package save, in floats per slot, in the letters D =
d_model, E = expand * D, N = d_state, H = heads of Mamba-2, F = feed-forward width. Under bf16 the operands of
matrix products take 2 bytes and the rest 4. `benchmarks/plan.py` compares them with what PyTorch allocates.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from longplay.models.base.config import EncoderConfig
from longplay.models.mixers import elementwise
from longplay.models.scans import cpp as scan_cpp
from longplay.models.scans import kernel as scan_kernel

_CHUNK_LENGTH = 32  # of scan_cpp, scan_chunk and ssd
_CHUNK_SCRATCH = 4  # tensors (chunk, B, E, N) that scan_chunk's backward works in

ScanForm = Literal["kernel", "cpp", "chunk"]


@dataclass(frozen=True, kw_only=True)
class SlotBytes:
    """Bytes per slot: `saved` from a forward to its backward, and `passing` at the most while the backward
    runs, beyond what it has freed by then.
    """

    saved: float
    passing: float


@dataclass(frozen=True, kw_only=True)
class _Floats:
    """Numbers per slot: `wide` always take 4 bytes, `narrow` 2 under bf16, `masks` 1."""

    wide: float = 0.0
    narrow: float = 0.0
    masks: float = 0.0

    def __add__(self, other: "_Floats") -> "_Floats":
        return _Floats(
            wide=self.wide + other.wide, narrow=self.narrow + other.narrow, masks=self.masks + other.masks
        )

    def __mul__(self, times: int) -> "_Floats":
        return _Floats(wide=self.wide * times, narrow=self.narrow * times, masks=self.masks * times)

    def bytes(self, bf16: bool) -> float:
        return 4 * self.wide + (2 if bf16 else 4) * self.narrow + self.masks


def encoder_slot_bytes(
    config: EncoderConfig, *, padding: float, bf16: bool = False, device_type: str = "cpu"
) -> SlotBytes:
    """Bytes per slot of an encoder's training forward and backward.

    Args:
        padding: slots of the segments' padded rectangles per slot, at least 1; see `PaddedBuckets`. Matters
            for gru4rec, sasrec and moematrrec.
        device_type: "cpu" or "cuda"; decides which form of the scan runs.
    """
    D, E = config.d_model, config.expand * config.d_model
    mask = D if config.dropout > 0 else 0
    norm = _Floats(narrow=D if config.layer_norm else 0, wide=2 if config.layer_norm else 0)
    feed_forward = _Floats(narrow=2 * config.feed_forward_width)
    stream = _Floats(wide=D)
    match config.model:
        case "gru4rec":
            block = stream + _Floats(wide=2, narrow=9 * D * padding, masks=mask)
        case "sasrec":
            attention = norm + _attention(config, padding)
            block = stream * 2 + attention + norm + feed_forward + _Floats(masks=2 * mask)
        case "mambarec":
            block = stream + norm + _mixer(config, bf16, device_type) + _Floats(masks=mask)
        case "recmamba":
            block = stream * 2 + norm * 2 + _mixer(config, bf16, device_type) + feed_forward
            block += _Floats(masks=2 * mask)
        case "moematrrec":
            branches = _mixer(config, bf16, device_type) + _attention(config, padding)
            gate = _Floats(wide=2 * D + 8, narrow=2 * D)
            block = stream * 2 + branches + gate + norm * 2 + feed_forward + _Floats(masks=2 * mask)
    ends_normalised = config.model in ("recmamba", "moematrrec")
    last = _Floats() if ends_normalised else stream + _Floats(wide=2)
    first = _Floats(masks=D if config.input_dropout_p > 0 else 0)
    saved = (block * config.num_blocks + first + last).bytes(bf16)
    passing = (2.0 if config.model == "gru4rec" else 1.5) * D
    if config.model == "mambarec":  # no feed-forward of the same block has been freed before the mixer's turn
        passing = max(passing, 2.0 * E - D)
    if config.model in ("recmamba", "mambarec", "moematrrec"):
        passing += _scan_scratch(config, device_type)
    return SlotBytes(saved=saved, passing=4 * passing)


def scan_form(config: EncoderConfig, *, device_type: str) -> ScanForm:
    """The form of Mamba-1's scan that will run, as `selective_scan` chooses."""
    if config.scan_backend == "kernel" or config.scan_backend == "cpp":
        return config.scan_backend
    if config.scan_backend == "auto":
        if device_type == "cuda" and scan_kernel.is_available(torch.float32, config.d_state):
            return "kernel"
        if device_type == "cpu" and scan_cpp.is_available(config.d_state):
            return "cpp"
    return "chunk"


def _attention(config: EncoderConfig, padding: float) -> _Floats:
    """Queries, keys and values by segments, the attention's output, and the same back in rows."""
    D = config.d_model
    return _Floats(narrow=4 * D * padding + D, wide=config.num_heads * padding)


def _mixer(config: EncoderConfig, bf16: bool, device_type: str) -> _Floats:
    return _mamba2(config) if config.mixer == "mamba2" else _mamba(config, bf16, device_type)


def _mamba(config: EncoderConfig, bf16: bool, device_type: str) -> _Floats:
    """in_proj's output (2 E), around the convolution (2 E), x_proj's output, around the softplus (2 E), the
    scan's inputs and chunk states, and the gate's operands and product (3 E, or 2 E where it takes one pass).
    """
    E, N = config.expand * config.d_model, 8 * math.ceil(config.d_state / 8)
    rank = math.ceil(config.d_model / 16)
    scanned = 2 * N + _chunks(config) * E * N / config.context_length
    if bf16:
        scanned += E  # the convolved input again, in fp32
    if scan_form(config, device_type=device_type) == "chunk":
        scanned += E  # the inputs again, time-major
    one_pass = device_type == "cpu" and not bf16 and elementwise.is_available(E)
    around = (6 if one_pass else 7) * E
    return _Floats(wide=2 * E + scanned, narrow=around + rank + 2 * config.d_state)


def _mamba2(config: EncoderConfig) -> _Floats:
    """The matmul form: pairs of slots within a chunk for every head (H T), chunk states (E N / T)."""
    E, N, T = config.expand * config.d_model, config.d_state, min(_CHUNK_LENGTH, config.context_length)
    H = E // config.headdim
    fill = math.ceil(config.context_length / T) * T / config.context_length
    operands = 2 * E + H * T + 2 * H * N + E * N / T + T + 2 * N  # of matrix products
    chunked = 3 * E + H * T + E * N / T + T + 5 * H
    projected = 2 * E + 2 * N + H + 2 * (E + 2 * N)  # in_proj's output, and around the convolution
    return _Floats(
        wide=3 * E + H + fill * chunked, narrow=projected + 2 * E + fill * operands, masks=fill * T
    )


def _scan_scratch(config: EncoderConfig, device_type: str) -> float:
    """Floats per slot that the scan's backward works in, beside its gradients."""
    E, N = config.expand * config.d_model, config.d_state
    if config.mixer == "mamba" and scan_form(config, device_type=device_type) == "chunk":
        if device_type == "cpu":
            return 0.0  # few rows at a time: a few MiB
        return _CHUNK_SCRATCH * min(_CHUNK_LENGTH, config.context_length) * E * N / config.context_length
    return 0.0


def _chunks(config: EncoderConfig) -> int:
    return math.ceil(config.context_length / _CHUNK_LENGTH)
