"""Table shards in host memory for use by a GPU.

Triton kernels read and write rows of page-locked memory in place: only touched rows cross the bus and the CPU
does no work. Without the kernels, the CPU gathers and updates rows and copies them to and from the GPU.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from longplay.common.sizes import gib
from longplay.distributed.table import triton_kernels


def page_lock(tensor: Tensor, owner: object, device: torch.device) -> None:
    """Page-lock a CPU tensor's memory for use by a GPU until `owner` is deleted; do nothing for a CPU.

    PyTorch's own page-locked allocations are rounded up to powers of two, which may double their size.

    Raises:
        RuntimeError: the system's limit is too low, see `ulimit -l` and the container's limits.
    """
    if device.type != "cuda" or not tensor.numel():
        return
    runtime: Any = torch.cuda.cudart()
    address = tensor.data_ptr()
    size = tensor.numel() * tensor.element_size()
    failed = int(runtime.cudaHostRegister(address, size, 0))
    if failed:
        raise RuntimeError(
            f"{gib(size)} of memory could not be page-locked for the GPU (CUDA error {failed}); raise the "
            "limit that `ulimit -l` shows, or set --table.placement device"
        )
    weakref.finalize(owner, runtime.cudaHostUnregister, address)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows (n, D) of `table` (R, D), on the device of the row numbers `rows` (n,) int64."""
    if table.device == rows.device:
        return table.index_select(0, rows)
    if kernels_take_rows(table, rows.device):
        return triton_kernels.take_rows(table, rows)
    return table.index_select(0, rows.to(table.device)).to(rows.device)


def kernels_can_access(table: Tensor, device: torch.device) -> bool:
    """Return whether kernels on `device` can read and write `table` in place."""
    if table.device == device:
        return True
    return table.is_pinned() and triton_kernels.works(host_rows_kernel, device, table.shape[1])


def kernels_take_rows(table: Tensor, device: torch.device) -> bool:
    """Return whether a kernel on `device` can gather rows of `table`."""
    return triton_kernels.works(host_rows_kernel, device, table.shape[1]) and kernels_can_access(
        table, device
    )


def host_rows_kernel(device: torch.device, width: int) -> bool:
    """Check that a kernel on `device` reads page-locked rows correctly."""

    class Owner:
        pass

    owner = Owner()
    table = torch.randn(100, width, generator=torch.Generator().manual_seed(0))
    page_lock(table, owner, device)
    rows = torch.tensor([99, 0, 37, 37], device=device)
    return torch.equal(triton_kernels.take_rows(table, rows).cpu(), table[rows.cpu()])
