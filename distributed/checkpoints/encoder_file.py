"""The encoder's file of a checkpoint: fp32 weights and Adam moments by "KIND/NAME"."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from longplay.common.tensor_file import read_tensors
from longplay.distributed.runtime.errors import CheckpointError

ENCODER_FILE = "encoder.safetensors"
WEIGHTS = ("weight",)
STATE = ("weight", "exp_avg", "exp_avg_sq")


def read_encoder(
    folder: Path, parameters: Mapping[str, nn.Parameter], kinds: Iterable[str]
) -> dict[str, Tensor]:
    """Return the tensors of these kinds, which are those of an encoder with these parameters.

    Args:
        folder: the checkpoint's.
        parameters: the encoder's, by name; under ZeRO-3 the partitioned ones.
        kinds: WEIGHTS or STATE.

    Raises:
        CheckpointError: a tensor is missing, not of this encoder, not fp32, or of another shape.
    """
    file = folder / ENCODER_FILE
    kinds = tuple(kinds)
    found = {name: value for name, value in read_tensors(file).items() if name.startswith(kinds)}
    expected = {f"{kind}/{name}": value for kind in kinds for name, value in parameters.items()}
    remedy = "restore the checkpoint, or move its folder away"
    for name in sorted(found.keys() ^ expected.keys()):
        lack = "has no" if name in expected else "has an unknown"
        raise CheckpointError(f"{file}: {lack} tensor {name}; {remedy}")
    for name, value in found.items():
        shape = tuple(getattr(expected[name], "ds_shape", expected[name].shape))
        if value.dtype != torch.float32 or tuple(value.shape) != shape:
            wrong = f"is {value.dtype} {tuple(value.shape)}, expected {torch.float32} {shape}"
            raise CheckpointError(f"{file}: {name} {wrong}; {remedy}")
    return found
