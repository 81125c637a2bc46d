"""The interface of the blocks that encoders are stacked from."""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from longplay.models.base.activations import Activations, Execution
from longplay.models.base.config import EncoderConfig
from longplay.models.base.segments import SegmentLayout


class EncoderBlock(nn.Module, ABC):
    """Base class of all blocks: (B, L, D) -> (B, L, D).

    Blocks are causal and keep segments separate: no output may depend on a later slot of its segment or on
    any slot of another segment. A block that can also advance one event at a time implements the two methods
    of `RecurrentBlock`.

    Args:
        config: the encoder's configuration.
        block_index: index of the block in the stack, from 0; distinguishes the blocks' dropout masks.
    """

    def __init__(self, config: EncoderConfig, block_index: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(
        self, x: Tensor, layout: SegmentLayout, dropout_keys: Tensor | None, at: Tensor | None = None
    ) -> Tensor:
        """Encode the rows of a micro-batch.

        Args:
            x: (B, L, D).
            layout: the segments of the rows.
            dropout_keys: (B,) int64, one key per row; None without dropout.
            at: (Q,) int64, flat slots b * L + t to return; only for the last block, in eval mode.

        Returns:
            (B, L, D), or (Q, D) at the slots `at`.
        """

    def require_deterministic(self) -> None:
        """Check that the gradients repeat bitwise on a GPU, apart from those of the block's mixer.

        Raises:
            ValueError: they may differ between runs.
        """

    def require_fixed_shapes(self) -> None:
        """Check that all shapes in `forward` and its backward follow from the shape of x alone.

        Raises:
            ValueError: they may depend on the lengths of the segments.
        """
        raise ValueError(
            f"engine.cuda_graph: shapes in {type(self).__name__} may depend on the lengths of the segments "
            "(a block of your own can override require_fixed_shapes); use encoder.model mambarec or recmamba "
            "or engine.cuda_graph false"
        )

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of one block, from which `longplay plan` estimates the memory of a step.

        Raises:
            ValueError: the block does not implement this method.
        """
        raise ValueError(
            f"encoder.model={config.model}: the block does not implement activations(config, execution); add "
            "it as a static method"
        )


@runtime_checkable
class RecurrentBlock(Protocol):
    """A block that can also advance one event at a time. Its state is a NamedTuple of (B, ...) tensors."""

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        """Return the state before a segment's first event."""
        ...

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance by one event.

        Args:
            x_t: (B, D), the input at the new event.
            state: from `init_state` or the previous step.

        Returns:
            The output (B, D) and the new state.
        """
        ...
