"""The Mamba-1 mixer, with the parameter names, shapes and initialization of mamba-ssm's `Mamba`."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longplay.models.base.activations import Activations, Execution
from longplay.models.base.config import EncoderConfig, ScanName
from longplay.models.base.segments import SegmentLayout, select_slots
from longplay.models.mixers import elementwise
from longplay.models.mixers.causal_conv import causal_conv_silu, causal_conv_step, require_conv_package
from longplay.models.mixers.elementwise import skip_and_gate, softplus
from longplay.models.scans import kernel as scan_kernel
from longplay.models.scans import triton_scan
from longplay.models.scans.chunk import BACKWARD_TENSORS, CHUNK_LENGTH
from longplay.models.scans.packages import require_no_atomics
from longplay.models.scans.selective_scan import choose_backend, selective_scan, selective_step
from longplay.native.tracing import not_traced

_DT_MIN, _DT_MAX, _DT_FLOOR = 1e-3, 1e-1, 1e-4


class MambaState(NamedTuple):
    """State of a Mamba or Mamba-2 mixer between events.

    Attributes:
        conv_state: (B, d_conv - 1, channels), the last inputs of the convolution, oldest first.
        ssm_state: (B, ..., d_state), the state of the recurrence, float32 or wider.
    """

    conv_state: Tensor
    ssm_state: Tensor


class Mamba(nn.Module):
    """Selective state-space mixer, causal within each segment.

    The state_dict of mamba-ssm's `Mamba` of the same size loads with strict=True. The step size, A and the
    scan are computed in float32 even if the parameters are bfloat16.

    Source: Gu and Dao 2023; mamba_ssm/modules/mamba_simple.py.

    Args:
        d_model: width of input and output.
        d_state: state per channel.
        d_conv: convolution taps.
        expand: inner width / d_model.
        scan: backend of the recurrence, see `choose_backend`.
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

    @classmethod
    def from_config(cls, config: EncoderConfig) -> "Mamba":
        """Build the mixer described by an encoder configuration."""
        return cls(
            config.d_model,
            d_state=config.d_state,
            d_conv=config.d_conv,
            expand=config.expand,
            scan=config.scan_backend,
        )

    @not_traced
    def forward(self, x: Tensor, layout: SegmentLayout, at: Tensor | None = None) -> Tensor:
        """Map x (B, L, D), of the parameters' dtype, to (B, L, D), or to (Q, D) at the flat slots `at`.

        Raises:
            ValueError: the backend does not support this device or dtype.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        scan = choose_backend(self.scan, device_type=x.device.type, dtype=wide, d_state=self.d_state)
        if at is None or scan == "triton":  # which gates all slots
            u, z = self.in_proj(x).chunk(2, dim=2)
        else:
            u_weight, z_weight = self.in_proj.weight.chunk(2)
            u, z = F.linear(x, u_weight), F.linear(select_slots(x, at), z_weight)
        u = causal_conv_silu(u, self.conv1d.weight.squeeze(1), self._conv_bias(), layout, scan)
        if scan == "triton":
            return self.out_proj(select_slots(self._fused_scan(u, z, layout.starts), at))
        u32, dt, A, B, C = self._scan_inputs(u)
        y = selective_scan(u32, dt, A, B, C, layout.starts, scan)
        return self.out_proj(self._skip_and_gate(select_slots(y, at), select_slots(u, at), z))

    def require_packages(self) -> None:
        """Check that the packages for CUDA can be imported.

        Raises:
            ValueError: one cannot, and `scan` needs it.
        """
        scan = self._cuda_backend()
        if scan == "kernel":
            scan_kernel.KERNEL.require()
        require_conv_package(self.conv1d, scan)

    def require_deterministic(self) -> None:
        """Check that the gradients repeat bitwise on a GPU.

        Raises:
            ValueError: `scan` selects kernels with atomic additions.
        """
        require_no_atomics(self._cuda_backend())

    def require_fixed_shapes(self) -> None:
        """Check that a CUDA graph can hold the mixer.

        Raises:
            ValueError: `scan` is not "triton" on a GPU; other kernels have not been checked.
        """
        if self._cuda_backend() != "triton":
            raise ValueError(
                f"engine.cuda_graph: needs encoder.scan_backend triton, not {self.scan}; "
                "or set engine.cuda_graph false"
            )

    def init_state(self, batch_size: int, device: torch.device, dtype: torch.dtype) -> MambaState:
        """Return the state before the first event. `dtype` is the parameters' dtype."""
        conv_state = torch.zeros(
            batch_size, self.conv1d.kernel_size[0] - 1, self.d_inner, device=device, dtype=dtype
        )
        ssm_dtype = torch.promote_types(dtype, torch.float32)
        ssm_state = torch.zeros(batch_size, self.d_inner, self.d_state, device=device, dtype=ssm_dtype)
        return MambaState(conv_state, ssm_state)

    def step(self, x_t: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """Advance by one event: x_t (B, D) -> (B, D), equal to `forward` at that slot."""
        u, z = self.in_proj(x_t).chunk(2, dim=1)
        u, conv_state = causal_conv_step(
            u, self.conv1d.weight.squeeze(1), self._conv_bias(), state.conv_state
        )
        ssm_state, y = selective_step(*self._scan_inputs(u), state.ssm_state)
        return self.out_proj(self._skip_and_gate(y, u, z)), MambaState(conv_state, ssm_state)

    @staticmethod
    def activations(config: EncoderConfig, execution: Execution) -> Activations:
        """Return the activations of the mixer.

        Saved are the output of in_proj (2 E), the input and output of the convolution (2 E), the output of
        x_proj, the input and output of the softplus (2 E), the inputs and chunk states of the scan, and the
        operands and product of the gate (3 E, or 2 E if skip and gate are fused).
        """
        L, E, N = config.context_length, config.inner_width, config.d_state
        bf16, on_cpu = execution.bf16, execution.device_type == "cpu"
        backend = choose_backend(
            config.scan_backend, device_type=execution.device_type, dtype=torch.float32, d_state=N
        )
        if backend == "triton":
            return _triton_activations(config)
        in_chunks = backend not in ("kernel", "cpp")
        padded_state = 8 * math.ceil(N / 8)
        scanned = 2 * padded_state + math.ceil(L / CHUNK_LENGTH) * E * padded_state / L
        scanned += E * (bf16 + in_chunks)  # further copies of the inputs: in float32, and time-major
        fused_gate = on_cpu and not bf16 and elementwise.is_available(E)
        transient = 0.0
        if in_chunks and not on_cpu:  # on the CPU the chunked scan runs on a few rows at a time
            transient = BACKWARD_TENSORS * min(CHUNK_LENGTH, L) * E * N / L
        return Activations(
            wide=2 * E + scanned,
            narrow=(6 if fused_gate else 7) * E + math.ceil(config.d_model / 16) + 2 * N,
            transient=transient,
        )

    def _cuda_backend(self) -> ScanName:
        return choose_backend(self.scan, device_type="cuda", dtype=torch.float32, d_state=self.d_state)

    def _conv_bias(self) -> Tensor:
        assert self.conv1d.bias is not None
        return self.conv1d.bias

    def _fused_scan(self, u: Tensor, z: Tensor, starts: Tensor) -> Tensor:
        """Return the gated output (B, L, E) in u's dtype for u, z (B, L, E). The inputs keep their dtypes."""
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt, A = F.linear(dt, self.dt_proj.weight), -torch.exp(self.A_log.float())
        return triton_scan.selective_scan_triton(u, dt, A, B, C, self.D, z, self.dt_proj.bias, starts)

    def _scan_inputs(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return u, dt (..., E), A (E, N), B, C (..., N), all float32 or wider, for u (..., E)."""
        wide = torch.promote_types(u.dtype, torch.float32)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = softplus(F.linear(dt, self.dt_proj.weight).to(wide), self.dt_proj.bias.to(wide))
        return u.to(wide), dt, -torch.exp(self.A_log.to(wide)), B.to(wide), C.to(wide)

    def _skip_and_gate(self, y: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """Return (y + D u) silu(z), in u's dtype."""
        return skip_and_gate(y.to(u.dtype), u, self.D.to(u.dtype), z)


def _triton_activations(config: EncoderConfig) -> Activations:
    """Return the activations of the mixer with the backend "triton".

    Saved are the output of in_proj (2 E), the output of the convolution (E), the output of x_proj, the step
    sizes (E), the gated output (E), and the states that the scan saves.
    """
    sizes = config.context_length, config.inner_width, config.d_state
    return Activations(
        wide=triton_scan.saved_elements(*sizes),
        narrow=5 * config.inner_width + math.ceil(config.d_model / 16) + 2 * config.d_state,
        transient=triton_scan.transient_elements(*sizes),
    )


def initial_dt_bias(count: int) -> Tensor:
    """Draw (count,) step-size biases whose softplus is log-uniform in [1e-3, 1e-1], as Mamba does."""
    low, high = math.log(_DT_MIN), math.log(_DT_MAX)
    dt = torch.exp(torch.rand(count) * (high - low) + low).clamp(min=_DT_FLOOR)
    return dt + torch.log(-torch.expm1(-dt))  # the inverse of softplus
