"""The encoder under DeepSpeed ZeRO data parallelism; its gradient norm is shared with the item table."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longplay.distributed.runtime.collectives import all_reduce_sum
from longplay.distributed.runtime.errors import NonFiniteError
from longplay.distributed.runtime.phases import phase
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.zero.deepspeed_env import deepspeed
from longplay.distributed.zero.parameter import forbid_gather

from deepspeed.utils import (  # isort: skip
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How the encoder is sharded, in which precision it runs, and how its weights move.

    Attributes:
        zero_stage: DeepSpeed ZeRO stage of the encoder; `table.update = zero_dense` needs 3.
        precision: "bf16" runs the encoder's matrix products in bfloat16 (weights, table and loss stay fp32).
        gradient_accumulation_steps: micro-batches per step.
        max_grad_norm: scale gradients down to this global norm, table included; 0 = never.
    """

    zero_stage: Literal[1, 2, 3] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    reduce_bucket_elements: int = 50_000_000

    def __post_init__(self) -> None:
        if self.zero_stage not in (1, 2, 3):
            raise ValueError(f"engine.zero_stage: {self.zero_stage} is not 1, 2 or 3 (1 shards least)")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"engine.precision: {self.precision!r} is not one of fp32, bf16")
        if self.gradient_accumulation_steps < 1:
            raise ValueError(
                f"engine.gradient_accumulation_steps: {self.gradient_accumulation_steps} must be at least 1"
            )
        for name in ("max_grad_norm", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"engine.{name}: {getattr(self, name)} must be at least 0 and finite")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"engine.betas: {self.betas} must lie in [0, 1); 0.9,0.999 is usual")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"engine.eps: {self.eps} must be positive; 1e-8 is usual")


def deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    """The DeepSpeed configuration of a run, whole: nothing else is ever read from a file."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": config.reduce_bucket_elements}
    if config.zero_stage < 3:
        zero["allgather_bucket_size"] = config.reduce_bucket_elements
        zero["overlap_comm"] = torch.cuda.is_available()
    else:
        # A table below the threshold would be kept whole on every rank.
        zero |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": config.reduce_bucket_elements,
            "sub_group_size": 10**12,
        }
    return {
        "train_micro_batch_size_per_gpu": 1,  # counts samples for DeepSpeed's own log only
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "steps_per_print": 10**12,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
    }


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """The same on every rank: the step's loss, its gradient norm, and whether any rank raised the flag."""

    loss: float
    grad_norm: float
    flag: bool


class _Trained(nn.Module):
    """What DeepSpeed trains: the encoder, and the table's holder where DeepSpeed's optimizer updates the
    table.
    """

    def __init__(
        self, encoder: nn.Module, holder: nn.Module | None, precision: str, device: torch.device
    ) -> None:
        super().__init__()
        self.encoder = encoder
        if holder is not None:
            self.item_table = holder
        self._bf16, self._device_type = precision == "bf16", device.type

    def forward(self, *inputs: Any) -> Tensor:
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._bf16):
            return self.encoder(*inputs)


class EncoderEngine:
    """Runs, differentiates and updates the encoder; the table's update is scaled by the same global norm.

    Building it is collective: every rank must call.

    Raises:
        ValueError: the table's update mode needs another ZeRO stage.
    """

    def __init__(self, encoder: nn.Module, table: ItemTable, config: EngineConfig, world: World) -> None:
        zero_dense = table.zero_dense
        if zero_dense and config.zero_stage != 3:
            raise ValueError(
                f"table.update zero_dense needs engine.zero_stage 3, not {config.zero_stage}: "
                "it writes into ZeRO-3's gradient partition (table.update row_sparse works with 1, 2 and 3)"
            )
        self.config, self.world, self.table, self.encoder = config, world, table, encoder
        trained = _Trained(encoder, table.holder if zero_dense else None, config.precision, world.device)
        encoder.to(world.device)
        named = dict(trained.named_parameters())
        groups = optimizer_groups(named, config.weight_decay)
        if zero_dense:
            groups.append(
                {"params": [table.holder.weight], "weight_decay": 0.0, "lr_scale": table.config.lr_scale}
            )
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=config.betas, eps=config.eps)
        self.engine: Any = deepspeed.initialize(
            model=trained, optimizer=optimizer, config=deepspeed_config(config)
        )[0]
        if zero_dense:
            forbid_gather(table.holder.weight)
        self.parameters = dict(encoder.named_parameters())
        self._optimizer: Any = self.engine.optimizer
        self._table_norm_sq = 0.0
        self._clip = self._optimizer.unscale_and_clip_grads
        self._optimizer.unscale_and_clip_grads = self._clip_by_joint_norm
        self.grad_norm = 0.0
        self._at = "at the start"
        self._set_moments_to_zero(0)

    def __call__(self, *inputs: Any) -> Tensor:
        """Run the encoder on this rank's micro-batch. Every rank must call (ZeRO-3 gathers its weights)."""
        return self.engine(*inputs)

    def train(self, mode: bool = True) -> None:
        self.engine.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Differentiate this micro-batch's share of the step's loss; shares add up over ranks. Every rank
        must call.

        DeepSpeed averages gradients over ranks; the loss is multiplied by their number so that they add up.

        Args:
            loss: fp32 scalar: this micro-batch's summed loss over the step's global number of targets.
            last: whether it is the step's last micro-batch; `step` follows that one alone.
        """
        self.engine.backward(loss * self.world.world_size, scale_wrt_gas=False)
        if not last:
            self.engine.step()  # DeepSpeed counts micro-batches here

    def step(self, *, lr: float, loss: Tensor, at: str, flag: bool = False) -> StepOutcome:
        """Update encoder and table by one step. Every rank must call.

        Args:
            lr: learning rate of this step.
            loss: scalar: this rank's share of the step's loss; shares add up over ranks.
            at: says where in the data the step stands, for the error.
            flag: the outcome says whether any rank has raised it.
        Raises:
            NonFiniteError: the loss or the norm is not finite; no weight has changed.
        """
        with phase("row update"):
            shares = [loss.double(), self.table.finish_gradients().double(), loss.new_tensor(flag).double()]
            summed = all_reduce_sum(torch.stack(shares), self.world).tolist()
        total_loss, self._table_norm_sq, flags = summed
        if not (math.isfinite(total_loss) and math.isfinite(self._table_norm_sq)):
            raise NonFiniteError(
                _non_finite(f"loss {total_loss}, squared table gradient {self._table_norm_sq}", at)
            )
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._at = at
        with phase("dense update"):
            self.engine.step()
        if self._optimizer.overflow:
            raise NonFiniteError(_non_finite("an encoder gradient", at))
        clip = self.config.max_grad_norm
        scale = min(1.0, clip / (self.grad_norm + 1e-6)) if clip else 1.0
        with phase("row update"):
            self.table.step(lr=lr, grad_scale=scale)
        return StepOutcome(loss=total_loss, grad_norm=self.grad_norm, flag=flags > 0)

    def _clip_by_joint_norm(self, gradients: Any, encoder_norm: Any) -> None:
        """Stands in for DeepSpeed's clipping of each gradient group: the norm also covers the table."""
        norm = float(encoder_norm)
        if not math.isfinite(norm) or norm < 0:  # DeepSpeed marks a norm that is not finite by -1
            raise NonFiniteError(_non_finite("an encoder gradient", self._at))
        self.grad_norm = math.sqrt(norm**2 + self._table_norm_sq)
        self._clip(gradients, torch.tensor(self.grad_norm, device=self.world.device))

    # ------------------------------------------------------------------ state

    def state(self) -> dict[str, Tensor]:
        """The encoder's fp32 weights and Adam moments, whole, on the CPU, by name. Every rank must call."""
        out: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            out[f"weight/{name}"] = _on_cpu(safe_get_full_fp32_param(parameter))
            for moment in _MOMENTS:
                out[f"{moment}/{name}"] = _on_cpu(safe_get_full_optimizer_state(parameter, moment))
        return out

    def load_state(self, state: dict[str, Tensor], *, steps: int) -> None:
        """Take over what `state()` returned after `steps` steps, whatever the world size then. Every rank
        must call.
        """
        self._set_moments_to_zero(steps)
        for name, parameter in self.parameters.items():
            self._set(parameter, None, state[f"weight/{name}"])
            for moment in _MOMENTS:
                self._set(parameter, moment, state[f"{moment}/{name}"])
        self.engine.global_steps = steps
        self._copy_master_weights()

    def _set(self, parameter: Any, moment: str | None, value: Tensor) -> None:
        """Set a whole fp32 weight (moment None) or Adam moment from `value`, of the parameter's shape."""
        value = value.to(self.world.device)
        if self.config.zero_stage == 3:
            # DeepSpeed's setters of whole tensors run past the end where a partition is padded.
            size = parameter.ds_tensor.numel()
            padded = torch.nn.functional.pad(
                value.flatten(), (0, size * self.world.world_size - value.numel())
            )
            value = padded.narrow(0, size * self.world.rank, size)
            if moment is None:
                safe_set_local_fp32_param(parameter, value)
            else:
                safe_set_local_optimizer_state(parameter, value, moment)
        elif moment is None:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, moment)

    def _set_moments_to_zero(self, steps: int) -> None:
        """Make Adam's state now rather than at its first step, so that it can be saved and filled at any
        time.
        """
        zero3 = self.config.zero_stage == 3
        optimizer = self._optimizer
        flats = optimizer.fp32_partitioned_groups_flat if zero3 else optimizer.single_partition_of_fp32_groups
        for flat in flats:
            moments = {moment: torch.zeros_like(flat.data) for moment in _MOMENTS}
            optimizer.optimizer.state[flat] = {"step": torch.tensor(float(steps)), **moments}
        if (
            not zero3
        ):  # DeepSpeed links a parameter to its moments once, too early for all but the first group
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()

    def _copy_master_weights(self) -> None:
        """Bring the weights that the forward uses in line with the fp32 ones that were just set."""
        if self.config.zero_stage == 3:
            for flat, group in zip(
                self._optimizer.fp32_partitioned_groups_flat, self._optimizer.fp16_groups, strict=True
            ):
                offset = 0
                for parameter in group:
                    size = parameter.ds_tensor.numel()
                    parameter.ds_tensor.data.copy_(flat.data.narrow(0, offset, size))
                    offset += size
            return
        self._optimizer.update_lp_params()


def optimizer_groups(named: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay (matrices) and those that do not (biases, norms, A_log, D).

    Without decay they are one group, since DeepSpeed runs its collectives for each.
    """
    named = {name: p for name, p in named.items() if not name.startswith("item_table.")}

    def decays(name: str, parameter: nn.Parameter) -> bool:
        return (
            weight_decay > 0
            and parameter.ndim >= 2
            and not name.endswith(("A_log", ".D", "position_embedding.weight"))
        )

    decayed = [p for n, p in named.items() if decays(n, p)]
    plain = [p for n, p in named.items() if not decays(n, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _on_cpu(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "DeepSpeed holds no such state"
    return tensor.detach().float().cpu().clone()


def _non_finite(what: str, at: str) -> str:
    return (
        f"{what} is not finite {at}; no weight was changed. "
        "Lower --train.lr, raise --train.warmup_steps or lower --engine.max_grad_norm, "
        "then run the command again"
    )
