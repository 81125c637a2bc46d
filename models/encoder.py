"""The encoder around a stack of blocks: input stage, blocks, final norm; its construction and its cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longplay.models.base.activations import Activations, Execution, total
from longplay.models.base.block import EncoderBlock, RecurrentBlock
from longplay.models.base.config import EncoderConfig
from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.registry import ENCODERS
from longplay.models.base.segments import SegmentLayout
from longplay.models.blocks.layers import build_norm

_POSITION_STD = 0.02


def build_encoder(
    config: EncoderConfig, generator: torch.Generator | None = None, *, device: str = "cpu"
) -> "SequenceEncoder":
    """Build the encoder that `config` describes, in float32, initialised from `generator` alone.

    The global generator is neither read nor changed.

    Args:
        config: the model and its switches.
        generator: a CPU generator, advanced by one draw; None = one seeded with 0.
        device: device of the parameters; "meta" gives shapes without memory.
    """
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        blocks = [config.entry.block(config, index) for index in range(config.num_blocks)]
        final_norm = nn.Identity() if config.entry.ends_normalised else build_norm(config)
        return SequenceEncoder(config, blocks, final_norm)


@dataclass(frozen=True)
class EncoderState:
    """The state that a recurrent encoder carries from one event to the next.

    Attributes:
        position: (B,) int64, number of events so far.
        blocks: one state per block.
    """

    position: Tensor
    blocks: list[Any]


class SequenceEncoder(nn.Module):
    """Encode the item embeddings of packed rows, strictly causal, segments strictly separate.

    An output is bitwise independent of later slots and of other segments.

    Args:
        config: the switches of the input stage.
        blocks: applied in this order.
        final_norm: applied to the last block's output.
    """

    def __init__(self, config: EncoderConfig, blocks: list[EncoderBlock], final_norm: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.input_dropout = KeyedDropout(config.input_dropout_p, layer_id=0)
        self.position_embedding: nn.Embedding | None = None
        if config.has_positions:
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
            nn.init.normal_(self.position_embedding.weight, std=_POSITION_STD * config.embedding_scale)
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm

    def forward(
        self,
        x: Tensor,
        seq_idx: Tensor,
        dropout_keys: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Encode packed rows.

        Args:
            x: (B, L, D), item embeddings; cast to the parameters' dtype.
            seq_idx: (B, L) int32, the segment number of each slot within its row; trailing padding is a
                segment of its own.
            dropout_keys: (B,) int64, see `keyed_random.row_keys`; needed to train with dropout, unused in
                eval mode.
            at: (Q,) int64, flat slots b * L + t, in eval mode only. The last block then does its slot-wise
                work for these slots alone, which saves up to half of a shallow encoder's work.

        Returns:
            Hidden states (B, L, D) of the parameters' dtype; with `at`, those at its slots, (Q, D).

        Raises:
            ValueError: shapes disagree, an active dropout has no keys, or `at` is given in training mode.
        """
        if at is not None and self.training:
            raise ValueError("at: needs eval mode; in training, select from the result")
        if x.shape[:2] != seq_idx.shape or x.shape[2] != self.config.d_model:
            raise ValueError(
                f"x {tuple(x.shape)}, seq_idx {tuple(seq_idx.shape)}: "
                f"must be (B, L, {self.config.d_model}) and (B, L)"
            )
        layout = SegmentLayout(seq_idx)
        positions = layout.positions if self.position_embedding is not None else None
        hidden = self.input_dropout(self._embed(x, positions), dropout_keys)
        for number, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, layout, dropout_keys, at if number == len(self.blocks) else None)
        return self.final_norm(hidden)

    @property
    def recurrent(self) -> bool:
        """Whether `init_state`, `step` and `prefill` can be used."""
        return all(isinstance(block, RecurrentBlock) for block in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.parameters()).dtype

    def gate_weights(self) -> dict[str, float]:
        """Return the mean mixing weights of the last forward, by block and branch; empty without a gate."""
        weights = {}
        for number, block in enumerate(self.blocks):
            mean_gate = getattr(block, "mean_gate", None)
            if mean_gate is not None:
                weights[f"block{number}/mamba"], weights[f"block{number}/attention"] = mean_gate.tolist()
        return weights

    def init_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> EncoderState:
        """Return the state before a segment's first event.

        Args:
            batch_size: number of sequences B.
            device: None = that of the parameters.
            dtype: None = that of the parameters.

        Raises:
            TypeError: the model is not recurrent.
        """
        parameter = next(self.parameters())
        device, dtype = device or parameter.device, dtype or parameter.dtype
        states = [block.init_state(batch_size, device, dtype) for block in self._recurrent_blocks()]
        return EncoderState(torch.zeros(batch_size, dtype=torch.int64, device=device), states)

    def step(self, x_t: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Advance each sequence by one event, in constant time.

        The result equals that of the full forward in eval mode; nothing is dropped out.

        Args:
            x_t: (B, D), the embeddings of the new items.
            state: from `init_state`, `prefill` or the previous step.

        Returns:
            The hidden states after the event, (B, D), and the new state.

        Raises:
            TypeError: the model is not recurrent.
        """
        hidden = self._embed(x_t, state.position)
        new_states = []
        for block, block_state in zip(self._recurrent_blocks(), state.blocks, strict=True):
            hidden, block_state = block.step(hidden, block_state)
            new_states.append(block_state)
        return self.final_norm(hidden), EncoderState(state.position + 1, new_states)

    def prefill(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, EncoderState]:
        """Step through whole histories, one event at a time.

        Args:
            x: (B, L, D), item embeddings, left-aligned.
            lengths: (B,) int64, the number of events of each history, at least 1.

        Returns:
            The hidden state after each history's last event, (B, D), and the state for the next `step`.

        Raises:
            TypeError: the model is not recurrent.
        """
        state = self.init_state(x.shape[0])
        last = torch.zeros_like(x[:, 0], dtype=self.dtype)
        for t in range(x.shape[1]):
            active = t < lengths
            hidden, new_state = self.step(x[:, t], state)
            last = torch.where(active.unsqueeze(1), hidden, last)
            state = _where_active(active, new_state, state)
        return last, state

    def _embed(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Scale item embeddings and add positions; those beyond context_length share the last embedding."""
        hidden = x.to(self.dtype) * self.config.embedding_scale
        if self.position_embedding is None or positions is None:
            return hidden
        return hidden + self.position_embedding(positions.clamp(max=self.config.context_length - 1))

    def _recurrent_blocks(self) -> Sequence[RecurrentBlock]:
        blocks = [block for block in self.blocks if isinstance(block, RecurrentBlock)]
        if len(blocks) < len(self.blocks):
            recurrent = [name for name, entry in ENCODERS.items() if entry.recurrent]
            raise TypeError(
                f"model={self.config.model}: has no recurrent form; use one of {', '.join(recurrent)}"
            )
        return blocks


def _where_active(active: Tensor, new: EncoderState, old: EncoderState) -> EncoderState:
    """Take the new state in rows where `active` (B,) is True, and the old state in the others."""

    def select(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(active.view(-1, *[1] * (a.dim() - 1)), a, b)

    blocks = [
        after._make(map(select, after, before)) for after, before in zip(new.blocks, old.blocks, strict=True)
    ]
    return EncoderState(select(new.position, old.position), blocks)


@dataclass(frozen=True, kw_only=True)
class SlotBytes:
    """Memory of an encoder's activations, in bytes per slot of a micro-batch.

    Attributes:
        saved: kept from forward to backward.
        passing: needed by the backward at its peak, beyond the memory it has freed by then.
    """

    saved: float
    passing: float


def activation_bytes(config: EncoderConfig, execution: Execution) -> SlotBytes:
    """Return the memory that an encoder's activations take per slot of a training step."""
    D = config.d_model
    block = config.entry.block.activations(config, execution)
    first = Activations(masks=D if config.input_dropout_p > 0 else 0)
    last = Activations() if config.entry.ends_normalised else Activations(wide=D + 2)
    edges = total(first, last).saved_bytes(execution.bf16)
    saved = config.num_blocks * block.saved_bytes(execution.bf16) + edges
    return SlotBytes(saved=saved, passing=4 * block.passing)


@cache
def num_parameters(config: EncoderConfig) -> int:
    """Return the number of an encoder's parameters, without allocating them."""
    return sum(parameter.numel() for parameter in build_encoder(config, device="meta").parameters())
