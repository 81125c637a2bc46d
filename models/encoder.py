"""The encoder that all five models share: input stage, a stack of blocks, final norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from longplay.models.base.config import EncoderConfig
from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.segments import SegmentLayout

_POSITION_STD = 0.02


@runtime_checkable
class RecurrentBlock(Protocol):
    """A block that can also advance one event at a time; its state is a NamedTuple of (B, ...) tensors."""

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any: ...

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]: ...


@dataclass(frozen=True)
class EncoderState:
    """What a recurrent encoder carries from one event to the next.

    Attributes:
        position: (B,) int64, events seen so far.
        blocks: one state per block.
    """

    position: Tensor
    blocks: list[Any]


class SequenceEncoder(nn.Module):
    """Item embeddings of packed rows -> hidden states, strictly causal, segments strictly separate.

    No output depends on a later slot of its segment or on any slot of another segment, to the last bit.

    Args:
        config: the switches of the input stage.
        blocks: modules `block(x, layout, dropout_keys, at)`, (B, L, D) -> (B, L, D), or, in eval mode, (Q, D)
            at the flat slots `at` (Q,), where it is not None.
        final_norm: applied to the last block's output.
    """

    def __init__(self, config: EncoderConfig, blocks: list[nn.Module], final_norm: nn.Module) -> None:
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
        """Encodes packed rows.

        Args:
            x: (B, L, D), item embeddings; cast to the parameters' dtype.
            seq_idx: (B, L) int32, the segment number of each slot within its row; trailing padding is a
                segment of its own.
            dropout_keys: (B,) int64, see `keyed_random.row_keys`; needed to train with dropout, unused in
                eval mode.
            at: (Q,) int64, flat slots b * L + t; in eval mode only. What the last block does slot by slot is
                then done for these alone, which saves up to half of a shallow encoder's work.

        Returns:
            (B, L, D) hidden states, of the parameters' dtype; (Q, D), those at `at`, where it is given.

        Raises:
            ValueError: if shapes disagree, dropout is active and no keys are given, or `at` is given in
                training mode.
        """
        if at is not None and self.training:
            raise ValueError("at: needs eval mode; in training select from the result")
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
        """The last forward's mean mixing weights, by block and branch; empty for models without a gate."""
        weights = {}
        for number, block in enumerate(self.blocks):
            mean_gate = getattr(block, "mean_gate", None)
            if mean_gate is not None:
                weights[f"block{number}/mamba"], weights[f"block{number}/attention"] = mean_gate.tolist()
        return weights

    def init_state(
        self, batch_size: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> EncoderState:
        """The state before a segment's first event; device and dtype default to the parameters'.

        Raises:
            TypeError: if the model is not recurrent.
        """
        parameter = next(self.parameters())
        device, dtype = device or parameter.device, dtype or parameter.dtype
        states = [block.init_state(batch_size, device, dtype) for block in self._recurrent_blocks()]
        return EncoderState(torch.zeros(batch_size, dtype=torch.int64, device=device), states)

    def step(self, x_t: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """One new event per sequence, in constant time: equals the full forward in eval mode. Never drops
        out.

        Args:
            x_t: (B, D), the new items' embeddings.
            state: from `init_state`, `prefill` or the previous step.

        Returns:
            (B, D), the hidden states after the event, and the new state.

        Raises:
            TypeError: if the model is not recurrent.
        """
        hidden = self._embed(x_t, state.position)
        new_states = []
        for block, block_state in zip(self._recurrent_blocks(), state.blocks, strict=True):
            hidden, block_state = block.step(hidden, block_state)
            new_states.append(block_state)
        return self.final_norm(hidden), EncoderState(state.position + 1, new_states)

    def prefill(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, EncoderState]:
        """Steps through whole histories, one event at a time.

        Args:
            x: (B, L, D), item embeddings, left-aligned.
            lengths: (B,) int64, how many events of each row count; at least 1.

        Returns:
            (B, D), the hidden state after each history's last event, and the state to step on from.
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
        """Scaled item embeddings plus positions; positions past context_length share the last one."""
        hidden = x.to(self.dtype) * self.config.embedding_scale
        if self.position_embedding is None or positions is None:
            return hidden
        return hidden + self.position_embedding(positions.clamp(max=self.config.context_length - 1))

    def _recurrent_blocks(self) -> Sequence[RecurrentBlock]:
        blocks = [block for block in self.blocks if isinstance(block, RecurrentBlock)]
        if len(blocks) < len(self.blocks):
            raise TypeError(
                f"model={self.config.model}: has no recurrent form; use gru4rec, recmamba or mambarec"
            )
        return blocks


def _where_active(active: Tensor, new: EncoderState, old: EncoderState) -> EncoderState:
    """The new state of the active rows, the old one of the others."""

    def select(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(active.view(-1, *[1] * (a.dim() - 1)), a, b)

    blocks = [
        ours._make(map(select, ours, theirs)) for ours, theirs in zip(new.blocks, old.blocks, strict=True)
    ]
    return EncoderState(select(new.position, old.position), blocks)
