"""The Mamba-2 mixer, with the parameters and initialization of mamba-ssm's `Mamba2(ngroups=1)`."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.activations import Activations, Execution
from longplay.models.base.config import EncoderConfig, ScanName
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers.causal_conv import causal_conv_silu, causal_conv_step, require_conv_package
from longplay.models.mixers.mamba import MambaState, initial_dt_bias
from longplay.models.scans.packages import requested_backend, require_no_atomics, uses_packages
from longplay.models.scans.ssd import CHUNK_LENGTH, DETERMINISTIC_MODE, KERNEL, runs_kernel, ssd, ssd_step

_A_INIT_RANGE = (1.0, 16.0)


class Mamba2(nn.Module):
    """State-space-duality mixer, causal within each segment.

    The state_dict of mamba-ssm's `Mamba2` of the same size loads with strict=True. The step size, A and the
    states are computed in float32 even if the parameters are bfloat16.

    Source: Dao and Gu 2024; mamba_ssm/modules/mamba2.py.

    Args:
        d_model: width of input and output.
        d_state: state per channel.
        d_conv: convolution taps.
        expand: inner width / d_model.
        headdim: channels per head; must divide expand * d_model.
        scan: backend of the recurrence, see `ssd`.

    Raises:
        ValueError: `headdim` does not divide expand * d_model.
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

    @classmethod
    def from_config(cls, config: EncoderConfig) -> "Mamba2":
        """Build the mixer described by an encoder configuration."""
        return cls(
            config.d_model,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            headdim=config.headdim,
            scan=config.scan_backend,
        )

    def forward(self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None) -> Tensor:
        """Map x (B, L, D), of the parameters' dtype, to (B, L, D), or to (Q, D) at the flat slots `at`."""
        z, xBC, dt = self._project(x)
        xBC = causal_conv_silu(xBC, self.conv1d.weight.squeeze(1), self._conv_bias(), layout, self.scan)
        u, dt, A, B, C = self._scan_inputs(xBC, dt, widen=not runs_kernel(xBC, self.scan))
        y = ssd(u, dt, A, B, C, layout, self.scan)
        return self._skip_norm_project(*(select_slots(tensor, at) for tensor in (y, u, z)))

    def require_packages(self) -> None:
        """Check that the packages for CUDA can be imported.

        Raises:
            ValueError: one cannot, and `scan` needs it.
        """
        if uses_packages(self.scan):
            KERNEL.require()
        require_conv_package(self.conv1d, self.scan)

    def require_fixed_shapes(self) -> None:
        """Raise: the kernels have not been checked in a CUDA graph.

        Raises:
            ValueError: always.
        """
        raise ValueError("engine.cuda_graph: needs encoder.mixer mamba; or set engine.cuda_graph false")

    def require_deterministic(self) -> None:
        """Check that the gradients repeat bitwise on a GPU.

        Raises:
            ValueError: `scan` selects kernels with atomic additions, or mamba-ssm has no deterministic mode.
        """
        require_no_atomics(requested_backend(self.scan))
        if uses_packages(self.scan) and DETERMINISTIC_MODE.find() is None:
            raise ValueError(
                "train.deterministic: the installed mamba-ssm has no deterministic mode; install it with "
                "`pip install 'longplay[cuda]'`, or use --encoder.scan_backend chunk"
            )

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """Return the state before the first event. `dtype` is the parameters' dtype."""
        conv_shape = batch_size, self.conv1d.kernel_size[0] - 1, self.conv1d.in_channels
        ssm_shape = batch_size, self.nheads, self.headdim, self.d_state
        ssm_dtype = torch.promote_types(dtype, torch.float32)
        return MambaState(
            torch.zeros(conv_shape, device=device, dtype=dtype),
            torch.zeros(ssm_shape, device=device, dtype=ssm_dtype),
        )

    def step(self, x_t: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Advance by one event: x_t (B, D) -> (B, D), equal to `forward` at that slot."""
        z, xBC, dt = self._project(x_t)
        xBC, conv_state = causal_conv_step(
            xBC, self.conv1d.weight.squeeze(1), self._conv_bias(), state.conv_state
        )
        u, dt, A, B, C = self._scan_inputs(xBC, dt)
        ssm_state, y = ssd_step(u, dt, A, B, C, state.ssm_state)
        return self._skip_norm_project(y, u, z), MambaState(conv_state, ssm_state)

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of the mixer with the chunked backend and chunks of T slots.

        Saved are the weights between the slots of a chunk for every head (H T), the chunk states (E N / T),
        the output of in_proj, and the input and output of the convolution.
        """
        E, N = config.inner_width, config.d_state
        H, T = E // config.headdim, min(CHUNK_LENGTH, config.context_length)
        fill = math.ceil(config.context_length / T) * T / config.context_length
        operands = 2 * E + H * T + 2 * H * N + E * N / T + T + 2 * N  # operands of matrix products
        chunked = 3 * E + H * T + E * N / T + T + 5 * H
        projected = 2 * E + 2 * N + H + 2 * (E + 2 * N)
        return Activations(
            wide=3 * E + H + fill * chunked, narrow=projected + 2 * E + fill * operands, masks=fill * T
        )

    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (..., D) to z (..., E), xBC (..., E + 2 N) for the convolution, and raw dt (..., H)."""
        z, xBC, dt = self.in_proj(x).split([self.d_inner, self.conv1d.in_channels, self.nheads], dim=-1)
        return z, xBC, dt

    def _scan_inputs(
        self, xBC: Tensor, dt: Tensor, *, widen: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return u (..., H, P), dt (..., H), A (H,), B, C (..., N), all float32 or wider.

        Without `widen`, u, B and C keep xBC's dtype.
        """
        wide = torch.promote_types(xBC.dtype, torch.float32)
        xBC = xBC.to(wide) if widen else xBC
        u, B, C = xBC.split([self.d_inner, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(dt.to(wide) + self.dt_bias.to(wide))
        return u.unflatten(-1, (self.nheads, self.headdim)), dt, -torch.exp(self.A_log.to(wide)), B, C

    def _skip_norm_project(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Add the skip, gate, normalize and project: y, u (..., H, P), z (..., E) -> (..., D)."""
        y = torch.addcmul(y, u, self.D.to(u.dtype).unsqueeze(1)).flatten(-2)
        return self.out_proj(self.norm(y.to(z.dtype), z))


class GatedRMSNorm(nn.Module):
    """Compute rms_norm(y * silu(z)) * weight in float32 or wider.

    Source: mamba_ssm/ops/triton/layernorm_gated.py with norm_before_gate=False and one group.
    """

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate y (..., E) by z (..., E) and normalize. Return (..., E) of y's dtype."""
        wide = torch.promote_types(y.dtype, torch.float32)
        gated = y.to(wide) * F.silu(z.to(wide))
        return F.rms_norm(gated, self.weight.shape, self.weight.to(wide), self.eps).to(y.dtype)
