"""The encoder under ZeRO data parallelism, and its joint step with the item table."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from longplay.common.settings import (
    Count,
    NonNegativeFloat,
    NotBool,
    PositiveFloat,
    Probability,
    settings_class,
)
from longplay.distributed.cuda_graph import GraphedCall
from longplay.distributed.runtime.collectives import all_reduce_sum
from longplay.distributed.runtime.errors import NonFiniteError
from longplay.distributed.runtime.phases import phase
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.runtime.world import World
from longplay.distributed.table.item_table import ItemTable
from longplay.distributed.zero.parameter import forbid_gather
from longplay.distributed.zero.parameter_groups import parameter_groups
from longplay.distributed.zero.zero_engine import ZeroEngine, deepspeed_config


@settings_class
class EngineConfig:
    """Sharding, precision and optimizer of the encoder.

    Attributes:
        zero_stage: DeepSpeed ZeRO stage of the encoder. `table.update` = zero_dense needs 3.
        precision: Precision of the encoder's matrix products. With bf16, weights, item table and loss stay
            in fp32.
        gradient_accumulation_steps: Micro-batches per step.
        max_grad_norm: Scale the gradients of encoder and item table down to this global norm. 0 = never.
        betas: Decay rates of Adam's two moments.
        eps: Term that Adam adds to the denominator.
        weight_decay: Decoupled weight decay of the encoder.
        reduce_bucket_elements: Elements that DeepSpeed reduces in one collective.
        cuda_graph: Launch the encoder's forward and backward as CUDA graphs. Needs a GPU, mambarec or
            recmamba with items only and `encoder.scan_backend` triton or auto, and one micro-batch.
    """

    zero_stage: Annotated[Literal[1, 2, 3], NotBool] = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_accumulation_steps: Count = 1
    max_grad_norm: NonNegativeFloat = 1.0
    betas: tuple[Probability, Probability] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    reduce_bucket_elements: Count = 50_000_000
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.cuda_graph and self.zero_stage == 3:
            raise ValueError("cuda_graph=True: needs zero_stage 1 or 2; ZeRO-3 moves the encoder's weights")
        if self.cuda_graph and self.gradient_accumulation_steps > 1:
            raise ValueError(
                "cuda_graph=True: needs gradient_accumulation_steps 1; each run of a graph overwrites the "
                "gradients of the last one"
            )


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """The result of a step, identical on every rank.

    Attributes:
        loss: the step's loss.
        grad_norm: the joint gradient norm of encoder and table before clipping.
        flag: whether any rank passed `flag=True`.
    """

    loss: float
    grad_norm: float
    flag: bool


class _Trained(nn.Module):
    """The module that DeepSpeed trains: the encoder, and with `zero_dense` the table's parameter."""

    def __init__(
        self, encoder: nn.Module, holder: nn.Module | None, config: EngineConfig, device: torch.device
    ) -> None:
        super().__init__()
        self.encoder = encoder
        if holder is not None:
            self.item_table = holder
        self._bf16, self._device_type = config.precision == "bf16", device.type
        self._graphed = GraphedCall(self._encode, encoder) if config.cuda_graph else None

    def forward(self, *inputs: Any) -> Tensor:
        if self._graphed is None or not self.training:
            return self._encode(*inputs)
        return self._graphed(*(each for each in inputs if each is not None))

    def _encode(self, *inputs: Any) -> Tensor:
        with torch.autocast(self._device_type, dtype=torch.bfloat16, enabled=self._bf16):
            return self.encoder(*inputs)


class EncoderEngine:
    """Forward, backward and update of the encoder; one gradient norm covers encoder and table. Collective.

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
        encoder.to(world.device)
        trained = _Trained(encoder, table.holder if zero_dense else None, config, world.device)
        groups = parameter_groups(
            {f"encoder.{name}": parameter for name, parameter in encoder.named_parameters()},
            config.weight_decay,
        )
        if zero_dense:
            groups.append(
                {"params": [table.holder.weight], "weight_decay": 0.0, "lr_scale": table.config.lr_scale}
            )
        self._zero = ZeroEngine(
            trained,
            groups,
            deepspeed_config(
                zero_stage=config.zero_stage,
                gradient_accumulation_steps=config.gradient_accumulation_steps,
                max_grad_norm=config.max_grad_norm,
                reduce_bucket_elements=config.reduce_bucket_elements,
                overlap_comm=world.device.type == "cuda" and world.world_size > 1,
            ),
            betas=config.betas,
            eps=config.eps,
        )
        if zero_dense:
            forbid_gather(table.holder.weight)
        self.parameters = dict(encoder.named_parameters())

    def __call__(self, *inputs: Any) -> Tensor:
        """Run the encoder on this rank's micro-batch. Collective: ZeRO-3 gathers its weights."""
        return self._zero(*inputs)

    def train(self, mode: bool = True) -> None:
        """Switch the encoder between training and evaluation."""
        self._zero.train(mode)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Run the backward pass of this micro-batch's share of the step's loss. Collective.

        The shares of all ranks and micro-batches add up to the step's loss.

        Args:
            loss: fp32 scalar, this micro-batch's summed loss over the step's global number of targets.
            last: whether this is the step's last micro-batch; `step` comes next.
        """
        # DeepSpeed averages gradients over ranks; this factor turns the mean into a sum.
        self._zero.backward(loss * self.world.world_size, last=last)

    def step(self, *, lr: float, loss: Tensor, at: str, flag: bool = False) -> StepOutcome:
        """Update encoder and table. Collective.

        Args:
            lr: learning rate of this step.
            loss: scalar, this rank's share of the step's loss; shares add up over ranks.
            at: the step's position in the data, for error messages.
            flag: set on the outcome if any rank passes True.
        Raises:
            NonFiniteError: the loss or the norm is not finite; no weight has changed.
        """
        with phase("row update"):
            loss = loss.double()
            shares = [loss, self.table.finish_gradients().double(), torch.full_like(loss, float(flag))]
            summed = all_reduce_sum(torch.stack(shares), self.world)
        with phase("dense update"):
            norm = self._zero.grad_norm().double()
            # The step's only wait for the device, before which all its work but the updates is queued.
            with waiting("the loss and the norms"):
                total_loss, table_norm_sq, flags, encoder_norm = torch.cat([summed, norm.view(1)]).tolist()
        if not (math.isfinite(total_loss) and math.isfinite(table_norm_sq)):
            raise NonFiniteError(
                _non_finite(f"loss {total_loss}, squared table gradient {table_norm_sq}", at)
            )
        if not math.isfinite(encoder_norm):
            raise NonFiniteError(_non_finite("an encoder gradient", at))
        grad_norm = math.sqrt(encoder_norm**2 + table_norm_sq)
        clip = self.config.max_grad_norm
        scale = min(1.0, clip / (grad_norm + 1e-6)) if clip else 1.0
        with phase("row update"):
            self.table.step(lr=lr, grad_scale=scale)
        with phase("dense update"):
            self._zero.step(lr=lr, norm=grad_norm)
        return StepOutcome(loss=total_loss, grad_norm=grad_norm, flag=flags > 0)

    def state(self) -> dict[str, Tensor]:
        """Return the encoder's fp32 weights and Adam moments, whole, on the CPU, by name. Collective."""
        with waiting("the encoder's state"):
            return self._zero.state(self.parameters)

    def load_state(self, state: dict[str, Tensor], *, steps: int) -> None:
        """Load what `state()` returned after `steps` steps, at any world size. Collective."""
        self._zero.load_state(self.parameters, state, steps=steps)

    def close(self) -> None:
        """Free DeepSpeed's engine, which keeps encoder and table alive otherwise; the last call."""
        self._zero.close()


def _non_finite(what: str, at: str) -> str:
    return (
        f"{what} is not finite {at}; no weight was changed. "
        "Lower --train.lr, raise --train.warmup_steps or lower --engine.max_grad_norm, "
        "then run the command again"
    )
