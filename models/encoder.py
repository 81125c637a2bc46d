"""The sequence encoder (input stage, blocks, final norm) and its construction."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longplay.models.base.block import EncoderBlock, RecurrentBlock
from longplay.models.base.config import EncoderConfig
from longplay.models.base.dropout import KeyedDropout
from longplay.models.base.registry import ENCODERS
from longplay.models.base.segments import SegmentLayout
from longplay.models.blocks.layers import build_norm
from longplay.models.inputs.spec import ITEMS_ONLY, NO_TIME, TIMES, InputSpec
from longplay.models.inputs.stage import Inputs, InputStage, previous_times

_POSITION_STD = 0.02


def build_encoder(
    config: EncoderConfig,
    generator: torch.Generator | None = None,
    *,
    inputs: InputSpec = ITEMS_ONLY,
    device: str = "cpu",
) -> "SequenceEncoder":
    """Build an encoder with float32 parameters initialized from `generator`.

    The global generator is neither read nor changed.

    Args:
        config: configuration of the encoder.
        generator: CPU generator, advanced by one draw; None = a generator seeded with 0.
        inputs: the encoder's inputs besides the items.
        device: device of the parameters; "meta" allocates no memory.
    """
    generator = generator or torch.Generator().manual_seed(0)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        blocks = [config.entry.block(config, index) for index in range(config.num_blocks)]
        final_norm = nn.Identity() if config.entry.ends_normalized else build_norm(config)
        return SequenceEncoder(config, blocks, final_norm, inputs)


@dataclass(frozen=True)
class EncoderState:
    """State of a recurrent encoder between events.

    Attributes:
        position: (B,) int64, number of events so far.
        blocks: the state of each block.
        time: (B,) int64, time of the latest event; None if the encoder does not read times.
    """

    position: Tensor
    blocks: list[Any]
    time: Tensor | None = None


class SequenceEncoder(nn.Module):
    """Encode the item embeddings of packed rows.

    The encoder is causal and keeps segments separate: an output is bitwise independent of the contents of
    later slots and of other segments. With gru4rec, their lengths may change its rounding.

    Args:
        config: configuration of the encoder.
        blocks: blocks in order of application.
        final_norm: norm of the last block's output.
        inputs: the encoder's inputs besides the items.
    """

    def __init__(
        self,
        config: EncoderConfig,
        blocks: list[EncoderBlock],
        final_norm: nn.Module,
        inputs: InputSpec = ITEMS_ONLY,
    ) -> None:
        super().__init__()
        self.config = config
        self.input_dropout = KeyedDropout(config.input_dropout_p, layer_id=0)
        std = _POSITION_STD * config.embedding_scale
        self.position_embedding: nn.Embedding | None = None
        if config.has_positions:
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
            nn.init.normal_(self.position_embedding.weight, std=std)
        self.input_stage = InputStage(inputs, config.d_model, std) if inputs else None
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm

    def forward(
        self,
        x: Tensor,
        seq_idx: Tensor,
        dropout_keys: Tensor | None = None,
        at: Tensor | None = None,
        inputs: Inputs | None = None,
    ) -> Tensor:
        """Encode packed rows.

        Args:
            x: (B, L, D), item embeddings, any float dtype; cast to the parameters' dtype.
            seq_idx: (B, L) int32, the segment number of each slot within its row. Trailing padding is a
                separate segment.
            dropout_keys: (B,) int64, see `keyed_random.row_keys`; required to train with dropout, unused
                in eval mode.
            at: (Q,) int64, flat slots b * L + t to return; eval mode only. The slot-wise layers of the last
                block then run for these slots only, which saves up to half of a shallow encoder's compute.
            inputs: tensors (B, L) of the input stage; None for an encoder of items only.

        Returns:
            Hidden states (B, L, D) of the parameters' dtype, or (Q, D) at the slots `at`.

        Raises:
            ValueError: shapes do not match, dropout is active without keys, `at` is given in training, or
                `inputs` are missing.
        """
        if at is not None and self.training:
            raise ValueError("at: requires eval mode; in training mode, index the result instead")
        if x.shape[:2] != seq_idx.shape or x.shape[2] != self.config.d_model:
            raise ValueError(
                f"x {tuple(x.shape)}, seq_idx {tuple(seq_idx.shape)}: "
                f"must be (B, L, {self.config.d_model}) and (B, L)"
            )
        layout = SegmentLayout(seq_idx)
        positions = layout.positions if self.position_embedding is not None else None
        previous = None
        if inputs is not None and TIMES in inputs:
            previous = previous_times(inputs[TIMES], layout)
        hidden = self.input_dropout(self._embed(x, positions, inputs, previous), dropout_keys)
        for number, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, layout, dropout_keys, at if number == len(self.blocks) else None)
        return self.final_norm(hidden)

    @property
    def recurrent(self) -> bool:
        """Whether the encoder supports `init_state`, `step` and `prefill`."""
        return all(isinstance(block, RecurrentBlock) for block in self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return next(self.parameters()).dtype

    def gate_weights(self) -> dict[str, float]:
        """Return the mean gate weights of the last forward keyed "block0/mamba" etc.; {} without gates."""
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
            device: None = the device of the parameters.
            dtype: None = the dtype of the parameters.

        Raises:
            TypeError: the encoder is not recurrent.
        """
        parameter = next(self.parameters())
        device, dtype = device or parameter.device, dtype or parameter.dtype
        states = [block.init_state(batch_size, device, dtype) for block in self._recurrent_blocks()]
        position = torch.zeros(batch_size, dtype=torch.int64, device=device)
        reads_times = self.input_stage is not None and self.input_stage.spec.uses_times
        return EncoderState(position, states, torch.full_like(position, NO_TIME) if reads_times else None)

    def step(
        self, x_t: Tensor, state: EncoderState, inputs: Inputs | None = None
    ) -> tuple[Tensor, EncoderState]:
        """Advance each sequence by one event, in constant time.

        The result equals `forward` in eval mode: dropout is never applied.

        Args:
            x_t: (B, D), embeddings of the new items.
            state: from `init_state`, `prefill` or the previous step.
            inputs: tensors (B,) of the input stage; None for an encoder of items only.

        Returns:
            The hidden states (B, D) after the event and the new state.

        Raises:
            TypeError: the encoder is not recurrent.
            ValueError: `inputs` are missing.
        """
        hidden = self._embed(x_t, state.position, inputs, state.time)
        new_states = []
        for block, block_state in zip(self._recurrent_blocks(), state.blocks, strict=True):
            hidden, block_state = block.step(hidden, block_state)
            new_states.append(block_state)
        time = None if inputs is None else inputs.get(TIMES)
        return self.final_norm(hidden), EncoderState(state.position + 1, new_states, time)

    def prefill(
        self, x: Tensor, lengths: Tensor, inputs: Inputs | None = None
    ) -> tuple[Tensor, EncoderState]:
        """Run `step` over whole histories.

        Args:
            x: (B, L, D), item embeddings, padded at the end.
            lengths: (B,) int64, number of events of each history, at least 1.
            inputs: tensors (B, L) of the input stage; None for an encoder of items only.

        Returns:
            The hidden states (B, D) after the last event of each history and the state for the next `step`.

        Raises:
            TypeError: the encoder is not recurrent.
            ValueError: `inputs` are missing.
        """
        state = self.init_state(x.shape[0])
        last = torch.zeros_like(x[:, 0], dtype=self.dtype)
        for t in range(x.shape[1]):
            active = t < lengths
            inputs_t = inputs and {key: values[:, t] for key, values in inputs.items()}
            hidden, new_state = self.step(x[:, t], state, inputs_t)
            last = torch.where(active.unsqueeze(1), hidden, last)
            state = _where_active(active, new_state, state)
        return last, state

    def _embed(
        self, x: Tensor, positions: Tensor | None, inputs: Inputs | None, previous: Tensor | None
    ) -> Tensor:
        """Scale x and add the embeddings of positions and inputs.

        Positions beyond context_length share the last embedding.

        Args:
            previous: time of the event before each event; None if the encoder does not read times.
        """
        hidden = x.to(self.dtype) * self.config.embedding_scale
        if self.position_embedding is not None and positions is not None:
            hidden = hidden + self.position_embedding(positions.clamp(max=self.config.context_length - 1))
        if self.input_stage is None:
            return hidden
        if inputs is None:
            raise ValueError(
                "inputs=None: this encoder has an input stage; if the inputs are unknown, pass those of "
                "`missing_inputs`"
            )
        return hidden + self.input_stage(inputs, previous)

    def _recurrent_blocks(self) -> Sequence[RecurrentBlock]:
        blocks = [block for block in self.blocks if isinstance(block, RecurrentBlock)]
        if len(blocks) < len(self.blocks):
            recurrent = [name for name, entry in ENCODERS.items() if entry.recurrent]
            raise TypeError(f"model={self.config.model}: not recurrent; use one of {', '.join(recurrent)}")
        return blocks


def _where_active(active: Tensor, new: EncoderState, old: EncoderState) -> EncoderState:
    """Return `new` in rows where `active` (B,) is True, else `old`."""

    def select(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(active.view(-1, *[1] * (a.dim() - 1)), a, b)

    blocks = [
        after._make(map(select, after, before)) for after, before in zip(new.blocks, old.blocks, strict=True)
    ]
    time = None if new.time is None or old.time is None else select(new.time, old.time)
    return EncoderState(select(new.position, old.position), blocks, time)
