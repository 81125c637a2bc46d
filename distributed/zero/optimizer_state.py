"""Whole weights and Adam moments, read from and written to DeepSpeed's partitioned optimizers."""

from typing import Any

import torch
from torch import Tensor, nn

from longplay.distributed.zero.deepspeed_env import comm, deepspeed

MOMENTS = ("exp_avg", "exp_avg_sq")


class ZeroOptimizerState:
    """The state of a ZeRO optimizer, one parameter at a time.

    Args:
        optimizer: DeepSpeed's, over `torch.optim.AdamW`.
        zero_stage: 1, 2 or 3.
    """

    def __init__(self, optimizer: Any, zero_stage: int) -> None:
        self._optimizer, self._zero3 = optimizer, zero_stage == 3

    def get(self, parameter: nn.Parameter, moment: str | None) -> Tensor:
        """Return a whole fp32 weight (moment None) or Adam moment on the CPU. Collective."""
        if moment is None:
            value = deepspeed.utils.safe_get_full_fp32_param(parameter)
        else:
            value = deepspeed.utils.safe_get_full_optimizer_state(parameter, moment)
        assert value is not None, f"DeepSpeed holds no {moment or 'weight'}"
        return value.detach().float().cpu().clone()

    def set(self, parameter: Any, moment: str | None, value: Tensor) -> None:
        """Set a whole fp32 weight (moment None) or Adam moment; `value` has the parameter's shape."""
        value = value.to(parameter.device)
        if self._zero3:
            # DeepSpeed's setters of whole tensors write past the end of a padded partition.
            rank, world_size = comm.get_rank(), comm.get_world_size()
            size = parameter.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, size * world_size - value.numel()))
            value = padded.narrow(0, size * rank, size)
            if moment is None:
                deepspeed.utils.safe_set_local_fp32_param(parameter, value)
            else:
                deepspeed.utils.safe_set_local_optimizer_state(parameter, value, moment)
        elif moment is None:
            deepspeed.utils.safe_set_full_fp32_param(parameter, value)
        else:
            deepspeed.utils.safe_set_full_optimizer_state(parameter, value, moment)

    def set_moments_to_zero(self, steps: int) -> None:
        """Create Adam's state as it is after `steps` steps with zero gradients.

        Adam itself creates its state at its first step; checkpoints need it earlier.
        """
        optimizer = self._optimizer
        flats = (
            optimizer.fp32_partitioned_groups_flat
            if self._zero3
            else optimizer.single_partition_of_fp32_groups
        )
        for flat in flats:
            moments = {moment: torch.zeros_like(flat.data) for moment in MOMENTS}
            optimizer.optimizer.state[flat] = {"step": torch.tensor(float(steps)), **moments}
        if not self._zero3:
            # DeepSpeed links parameters to their moments once, before any group but the first has moments.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def copy_master_weights(self) -> None:
        """Copy the fp32 master weights to the weights that the forward uses."""
        if not self._zero3:
            self._optimizer.update_lp_params()
            return
        for flat, group in zip(
            self._optimizer.fp32_partitioned_groups_flat, self._optimizer.fp16_groups, strict=True
        ):
            offset = 0
            for parameter in group:
                size = parameter.ds_tensor.numel()
                parameter.ds_tensor.data.copy_(flat.data.narrow(0, offset, size))
                offset += size
