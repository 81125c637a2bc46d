"""Causal self-attention within the segments of packed rows, without attention masks."""

from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from longplay.models.base.activations import Activations, Execution
from longplay.models.base.config import EncoderConfig
from longplay.models.base.segments import SegmentLayout, select_slots

# Not cuDNN's, which compiles a plan for each shape: the shapes of the buckets change from step to step.
_CUDA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class SegmentAttention(nn.Module):
    """Multi-head causal self-attention within segments.

    Segments of similar length are padded at the end and batched for
    `scaled_dot_product_attention(is_causal=True)`. Causality excludes the padding, and no L x L mask is
    built. There is no dropout on attention weights: apply `KeyedDropout` to the output, so that the mask
    depends only on the row.

    Args:
        d_model: width of input and output.
        num_heads: number of heads; must divide d_model.
    """

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None) -> Tensor:
        """Map (B, L, D) to (B, L, D), or to (Q, D) at the flat slots `at`."""
        return self.out_proj(select_slots(layout.buckets.map(self._attend, self.qkv_proj(x)), at))

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations: q, k, v and output of the padded segments, and the output in row layout."""
        D, padding = config.d_model, execution.padding
        return Activations(narrow=4 * D * padding + D, wide=config.num_heads * padding)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attend within the segments of one bucket: qkv (S, T, 3 D) -> (S, T, D)."""
        q, k, v = qkv.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(_CUDA_BACKENDS) if qkv.is_cuda else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(2)
