"""Checks of an encoder against a device and a setting, before it is trained."""

import torch
from torch import nn

from longplay.models.base.block import EncoderBlock
from longplay.models.encoder import SequenceEncoder
from longplay.models.mixers.mamba import Mamba
from longplay.models.mixers.mamba2 import Mamba2


def check_packages(encoder: nn.Module, device: torch.device) -> None:
    """Check that the packages that `encoder` uses on `device` can be imported.

    Raises:
        ValueError: a package cannot be imported; the message names it and the alternatives.
    """
    for module in encoder.modules():
        if device.type == "cuda" and isinstance(module, Mamba | Mamba2):
            module.require_packages()


def check_deterministic(encoder: nn.Module, device: torch.device) -> None:
    """Check that the gradients of `encoder` repeat bitwise on `device`.

    Raises:
        ValueError: a part has no deterministic form; the message names it and its replacement.
    """
    for module in encoder.modules():
        if device.type == "cuda" and isinstance(module, Mamba | Mamba2 | EncoderBlock):
            module.require_deterministic()


def check_cuda_graph(encoder: SequenceEncoder, device: torch.device) -> None:
    """Check that a CUDA graph can hold the forward and backward of `encoder`.

    Raises:
        ValueError: it cannot; names the setting or the part of the encoder.
    """
    if device.type != "cuda":
        raise ValueError("engine.cuda_graph: needs a GPU; set engine.cuda_graph false")
    if encoder.input_stage is not None or encoder.position_embedding is not None:
        raise ValueError(
            "engine.cuda_graph: needs an encoder of items only, without inputs and positional embeddings; "
            "or set engine.cuda_graph false"
        )
    for module in encoder.modules():
        if isinstance(module, Mamba | Mamba2 | EncoderBlock):
            module.require_fixed_shapes()
