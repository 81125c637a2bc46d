"""A ZeRO-3 parameter built partition by partition: no rank allocates, sends or receives the whole parameter.

`deepspeed.zero.Init` partitions a full tensor. Here it is given one element expanded to the full shape, which
takes no memory, and turns it into a DeepSpeed parameter; each rank then supplies its own partition.
"""

from typing import Any

import torch
from torch import Tensor, nn

from longplay.distributed.zero.deepspeed_env import deepspeed


def zero_parameter(partition: Tensor, rows: int, *, trainable: bool) -> nn.Parameter:
    """Make a (rows, D) ZeRO-3 parameter from every rank's partition. Collective.

    Args:
        partition: (rows / world_size, D) fp32, this rank's consecutive rows; becomes the parameter's storage.
        rows: rows of the whole parameter, a multiple of the world size.
        trainable: whether DeepSpeed's optimizer updates the parameter.
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
    zero.ds_status = deepspeed.runtime.zero.partition_parameters.ZeroParamStatus.NOT_AVAILABLE
    parameter.data = torch.empty(0, device=partition.device)
    # Engine construction gathers every trainable parameter once; this one must stay partitioned.
    zero.all_gather = lambda *args, **kwargs: None
    return parameter


def set_partition(parameter: nn.Parameter, flat: Tensor) -> None:
    """Make `flat` this rank's partition of `parameter`."""
    held: Any = flat
    held.requires_grad = False
    held.ds_numel = flat.numel()
    held.status = deepspeed.runtime.zero.partition_parameters.PartitionedParamStatus.AVAILABLE
    held.final_location = None
    parameter.ds_tensor = held  # type: ignore[attr-defined]  # DeepSpeed's own attribute


def forbid_gather(parameter: nn.Parameter) -> None:
    """Make every later gather of the whole parameter raise an AssertionError."""

    def all_gather(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"DeepSpeed tried to gather the whole item table {tuple(parameter.ds_shape)}")  # type: ignore[attr-defined]  # DeepSpeed's own attribute

    parameter.all_gather = all_gather  # type: ignore[attr-defined]  # DeepSpeed's own attribute


def partition_of(parameter: nn.Parameter) -> Tensor:
    """Return this rank's flat partition of the weights that the forward uses."""
    held: Any = parameter
    return held.ds_tensor.data


def gradient_partition(parameter: nn.Parameter) -> Tensor:
    """Return the flat fp32 gradient of this rank's partition, a view that DeepSpeed's optimizer reads."""
    held: Any = parameter
    return held._z3_optimizer._get_fp32_grad_state_partition(held, release_swap_buffers=False)[0]


def optimizer_partition(parameter: nn.Parameter, moment: str | None) -> Tensor:
    """Return this rank's flat fp32 master weights, or one of Adam's moments, as a view.

    Args:
        moment: "exp_avg" or "exp_avg_sq"; None for the weights.
    """
    held: Any = parameter
    flat, _ = held._z3_optimizer._get_fp32_opt_state_partition(
        held, release_swap_buffers=False, optim_state_key=moment
    )
    return flat.data
