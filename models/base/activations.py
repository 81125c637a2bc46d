"""Count the memory that a block's activations take per slot of a micro-batch.

Formulas use the letters D = d_model, E = expand * D, N = d_state, H = heads of Mamba-2, L = context_length.
`benchmarks/plan.py` compares them with what PyTorch allocates.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The circumstances of a training step that its memory depends on.

    Attributes:
        device_type: "cpu" or "cuda"; selects the form of the scan.
        bf16: matrix products run in bfloat16 under autocast.
        padding: slots of the segments' padded rectangles per slot, at least 1; see `PaddedBuckets`.
    """

    device_type: str = "cpu"
    bf16: bool = False
    padding: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Elements per slot of the tensors that a module keeps or works in.

    Attributes:
        wide: elements kept from forward to backward in 4 bytes each.
        narrow: elements kept that take 2 bytes under bf16 and 4 otherwise: operands of matrix products.
        masks: elements kept in 1 byte each.
        passing: float32 elements that the backward needs at its peak, beyond the memory it has freed by then.
    """

    wide: float = 0.0
    narrow: float = 0.0
    masks: float = 0.0
    passing: float = 0.0

    def saved_bytes(self, bf16: bool) -> float:
        """Return the bytes per slot kept from forward to backward."""
        return 4 * self.wide + (2 if bf16 else 4) * self.narrow + self.masks


def total(*parts: Activations) -> Activations:
    """Return the sum of `parts`, which make up one block."""
    return Activations(
        wide=sum(part.wide for part in parts),
        narrow=sum(part.narrow for part in parts),
        masks=sum(part.masks for part in parts),
        passing=sum(part.passing for part in parts),
    )
