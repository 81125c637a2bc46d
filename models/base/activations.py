"""Memory of a block's activations per slot of a micro-batch.

The formulas use D = d_model, E = expand * D, N = d_state, H = heads of Mamba-2, L = context_length.
`benchmarks/plan.py` compares the formulas with PyTorch's allocations.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The properties of a training step that determine the memory of its activations.

    Attributes:
        device_type: "cpu" or "cuda"; determines the scan backend.
        bf16: run matrix products in bfloat16 under autocast.
        padding: padded slots of `PaddedBuckets` divided by B * L; at least 1.
    """

    device_type: str = "cpu"
    bf16: bool = False
    padding: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Elements per slot of the tensors that a module saves for the backward or allocates in it.

    Attributes:
        wide: saved elements of 4 bytes.
        narrow: saved elements of 2 bytes under bf16 and 4 bytes otherwise: operands of matrix products.
        masks: saved elements of 1 byte.
        transient: float32 elements allocated at the peak of the backward, minus those freed by then.
    """

    wide: float = 0.0
    narrow: float = 0.0
    masks: float = 0.0
    transient: float = 0.0

    def saved_bytes(self, bf16: bool) -> float:
        """Return the bytes per slot saved from the forward for the backward."""
        return 4 * self.wide + (2 if bf16 else 4) * self.narrow + self.masks


def total(*parts: Activations) -> Activations:
    """Return the sum of the activations of the parts of a block."""
    return Activations(
        wide=sum(part.wide for part in parts),
        narrow=sum(part.narrow for part in parts),
        masks=sum(part.masks for part in parts),
        transient=sum(part.transient for part in parts),
    )
