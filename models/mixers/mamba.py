"""The Mamba-1 mixer, with the parameter names, shapes and initialisation of mamba-ssm's `Mamba`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.config import ScanName
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers.causal_conv import causal_conv_silu, causal_conv_step
from longplay.models.mixers.elementwise import skip_and_gate, softplus
from longplay.models.scans.selective_scan import selective_scan, selective_step

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class MambaState(NamedTuple):
    """What a Mamba mixer carries from one event to the next.

    Attributes:
        window: (B, d_conv - 1, channels), the convolution's last inputs, oldest first.
        memory: (B, ..., d_state), the recurrence's state, float32 or wider.
    """

    window: Tensor
    memory: Tensor


class Mamba(nn.Module):
    """Selective state space: (B, L, d_model) -> (B, L, d_model), causal within each segment.

    A state_dict of mamba-ssm's `Mamba` of the same sizes loads with strict=True. Parameters may be bfloat16:
    the step size, A and the scan are computed in float32.
    Source: Gu and Dao 2023; mamba_ssm/modules/mamba_simple.py.

    Args:
        d_model: width of input and output.
        d_state: state per channel.
        d_conv: convolution taps.
        expand: inner width / d_model.
        scan: how the recurrence is computed, see `selective_scan`.
    """

    def __init__(
        self, d_model: int, *, d_state: int = 16, d_conv: int = 4, expand: int = 2, scan: ScanName = "auto"
    ) -> None:
        super().__init__()
        self.d_state = d_state
        self.scan: ScanName = scan
        self.d_inner = expand * d_model
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(self.d_inner, 1))  # S4D-real
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(initial_dt_bias(self.d_inner))

    def forward(self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None) -> Tensor:
        """x (B, L, d_model) of the parameters' dtype -> the same shape and dtype; (Q, d_model) at flat slots
        `at`.
        """
        if at is None:
            u, z = self.in_proj(x).chunk(2, dim=2)
        else:
            of_u, of_z = self.in_proj.weight.chunk(2)
            u, z = F.linear(x, of_u), F.linear(select_slots(x, at), of_z)
        u = causal_conv_silu(u, self.conv1d.weight.squeeze(1), self._conv_bias(), layout)
        u32, dt, A, B, C = self._scan_inputs(u)
        y = selective_scan(u32, dt, A, B, C, layout.starts, self.scan)
        return self.out_proj(self._skip_and_gate(select_slots(y, at), select_slots(u, at), z))

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """The state before the first event; `dtype` is the parameters'."""
        window = torch.zeros(
            batch_size, self.conv1d.kernel_size[0] - 1, self.d_inner, device=device, dtype=dtype
        )
        memory_dtype = torch.promote_types(dtype, torch.float32)
        memory = torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=memory_dtype)
        return MambaState(window, memory)

    def step(self, x_t: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """One event: x_t (B, d_model) -> (B, d_model), as `forward` gives at that slot."""
        u, z = self.in_proj(x_t).chunk(2, dim=1)
        u, window = causal_conv_step(u, self.conv1d.weight.squeeze(1), self._conv_bias(), state.window)
        memory, y = selective_step(*self._scan_inputs(u), state.memory)
        return self.out_proj(self._skip_and_gate(y, u, z)), MambaState(window, memory)

    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """u (..., E) -> u, dt (..., E), A (E, N), B, C (..., N), all float32 or wider."""
        wide = torch.promote_types(u.dtype, torch.float32)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = softplus(F.linear(dt, self.dt_proj.weight).to(wide), self.dt_proj.bias.to(wide))
        return u.to(wide), dt, -torch.exp(self.A_log.to(wide)), B.to(wide), C.to(wide)

    def _skip_and_gate(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """(y + D u) silu(z), in u's dtype."""
        return skip_and_gate(y.to(u.dtype), u, self.D.to(u.dtype), z)


def initial_dt_bias(count: int) -> Tensor:
    """(count,) whose softplus is log-uniform in [1e-3, 1e-1]: Mamba's initial step sizes."""
    low, high = math.log(_DT_MIN), math.log(_DT_MAX)
    dt = torch.exp(torch.rand(count) * (high - low) + low).clamp(min=_DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus
