"""A ZeRO-3 parameter built partition by partition: no rank ever allocates, sends or receives the whole of it.

`deepspeed.zero.Init` wants the full tensor before it partitions it. We hand it one element expanded to the
full shape (no memory behind it), let DeepSpeed turn that into its own parameter, and give it the partition
that this rank has made for itself.
"""

from typing import Any

import torch
from torch import Tensor, nn

from longplay.distributed.zero.deepspeed_env import deepspeed

from deepspeed.runtime.zero.partition_parameters import (  # isort: skip
    PartitionedParamStatus,
    ZeroParamStatus,
)


def zero_parameter(partition: Tensor, rows: int, *, trainable: bool) -> nn.Parameter:
    """Make a (rows, D) ZeRO-3 parameter of which this rank holds `partition`. Every rank must call.

    Args:
        partition: (rows / world_size, D) fp32, this rank's consecutive rows; becomes the parameter's storage.
        rows: rows of the whole parameter, a multiple of the world size.
        trainable: whether DeepSpeed's own optimizer is to update it.
    """
    width = partition.shape[1]
    parameter = nn.Parameter(torch.empty(1, 1).expand(rows, width), requires_grad=trainable)
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    converter: Any = deepspeed.zero.Init(config_dict_or_path=config)
    converter._convert_to_deepspeed_param(parameter)

    flat = partition.reshape(-1)
    assert converter._aligned_size(parameter) == rows * width, "DeepSpeed would pad a partition of whole rows"
    set_partition(parameter, flat)
    zero: Any = parameter
    zero.ds_numel_aligned = rows * width
    zero.ds_status = ZeroParamStatus.NOT_AVAILABLE
    parameter.data = torch.empty(0, device=partition.device)
    # Engine construction asks every trainable parameter for one gather; nothing is to travel for it.
    zero.all_gather = lambda *args, **kwargs: None
    return parameter


def set_partition(parameter: nn.Parameter, flat: Tensor) -> None:
    """Give DeepSpeed `flat` as this rank's partition of `parameter`."""
    held: Any = flat
    held.requires_grad = False
    held.ds_numel = flat.numel()
    held.status = PartitionedParamStatus.AVAILABLE
    held.final_location = None
    parameter.ds_tensor = held  # type: ignore[attr-defined]  # DeepSpeed's own attribute


def forbid_gather(parameter: nn.Parameter) -> None:
    """From here on, an attempt to gather the whole parameter is a bug and raises."""

    def all_gather(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"something tried to gather the whole item table {tuple(parameter.ds_shape)}")  # type: ignore[attr-defined]  # DeepSpeed's own attribute

    parameter.all_gather = all_gather  # type: ignore[attr-defined]  # DeepSpeed's own attribute
