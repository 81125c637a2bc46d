"""The Mamba-2 mixer, with parameter names, shapes and initialisation of mamba-ssm's `Mamba2`, one group."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.config import ScanName
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers.causal_conv import causal_conv_silu, causal_conv_step
from longplay.models.mixers.mamba import MambaState, initial_dt_bias
from longplay.models.scans.ssd import ssd, ssd_step

_A_INIT_RANGE = (1.0, 16.0)


class Mamba2(nn.Module):
    """State space duality: (B, L, d_model) -> (B, L, d_model), causal within each segment.

    A state_dict of mamba-ssm's `Mamba2` of the same sizes loads with strict=True. Parameters may be bfloat16:
    the step size, A and the recurrence are computed in float32.
    Source: Dao and Gu 2024; mamba_ssm/modules/mamba2.py.

    Args:
        d_model: width of input and output.
        d_state: state per channel.
        d_conv: convolution taps.
        expand: inner width / d_model.
        headdim: channels per head; divides expand * d_model.
        scan: how the recurrence is computed, see `ssd`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        scan: ScanName = "auto",
    ) -> None:
        super().__init__()
        self.d_state, self.headdim = d_state, headdim
        self.scan: ScanName = scan
        self.d_inner = expand * d_model
        if self.d_inner % headdim:
            raise ValueError(f"headdim={headdim}: must divide expand * d_model = {self.d_inner}")
        self.nheads = self.d_inner // headdim
        conv_dim = self.d_inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + conv_dim + self.nheads, bias=False)  # z, x, B, C, dt
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, d_conv, groups=conv_dim, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.nheads))
        self.A_log = nn.Parameter(torch.empty(self.nheads).uniform_(*_A_INIT_RANGE).log())
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None) -> Tensor:
        """x (B, L, d_model) of the parameters' dtype -> the same shape and dtype; (Q, d_model) at flat slots
        `at`.
        """
        z, xBC, dt = self._project(x)
        xBC = causal_conv_silu(xBC, self.conv1d.weight.squeeze(1), self._conv_bias(), layout)
        u, dt, A, B, C = self._scan_inputs(xBC, dt)
        y = ssd(u, dt, A, B, C, layout, self.scan)
        return self._skip_norm_project(*(select_slots(tensor, at) for tensor in (y, u, z)))

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """The state before the first event; `dtype` is the parameters'."""
        window_shape = batch_size, self.conv1d.kernel_size[0] - 1, self.conv1d.in_channels
        memory_shape = batch_size, self.nheads, self.headdim, self.d_state
        memory_dtype = torch.promote_types(dtype, torch.float32)
        return MambaState(
            torch.zeros(window_shape, device=device, dtype=dtype),
            torch.zeros(memory_shape, device=device, dtype=memory_dtype),
        )

    def step(self, x_t: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One event: x_t (B, d_model) -> (B, d_model), as `forward` gives at that slot."""
        z, xBC, dt = self._project(x_t)
        xBC, window = causal_conv_step(xBC, self.conv1d.weight.squeeze(1), self._conv_bias(), state.window)
        u, dt, A, B, C = self._scan_inputs(xBC, dt)
        memory, y = ssd_step(u, dt, A, B, C, state.memory)
        return self._skip_norm_project(y, u, z), MambaState(window, memory)

    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., d_model) -> z (..., E), the convolution's input xBC (..., E + 2 N), raw dt (..., H)."""
        z, xBC, dt = self.in_proj(x).split([self.d_inner, self.conv1d.in_channels, self.nheads], dim=-1)
        return z, xBC, dt

    def _scan_inputs(self, xBC: Tensor, dt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """-> u (..., H, P), dt (..., H), A (H,), B, C (..., N), all float32 or wider."""
        wide = torch.promote_types(xBC.dtype, torch.float32)
        u, B, C = xBC.to(wide).split([self.d_inner, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        return u.unflatten(-1, (self.nheads, self.headdim)), dt, -torch.exp(self.A_log.to(wide)), B, C

    def _skip_norm_project(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        y = torch.addcmul(y, u, self.D.to(u.dtype).unsqueeze(1)).flatten(-2)
        return self.out_proj(self.norm(y.to(z.dtype), z))


class GatedRMSNorm(nn.Module):
    """rms_norm(y * silu(z)) * weight, in float32 or wider inside.

    Source: mamba_ssm/ops/triton/layernorm_gated.py with norm_before_gate=False and one group.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """y, z (..., E) -> (..., E)."""
        wide = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(wide) * F.silu(z.to(wide))
        return F.rms_norm(gated, self.weight.shape, self.weight.to(wide), self.eps).to(y.dtype)
