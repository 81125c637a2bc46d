"""Table partitions in the machine's memory that a GPU works on: page-locked, and reached over the bus.

A kernel of ours reads and writes page-locked rows where they lie, so that only touched rows cross the bus and
the CPU does nothing. Where the kernels do not run, rows are gathered and updated on the CPU and copied.
"""

import weakref
from typing import Any

import torch
from torch import Tensor

from longplay.distributed.table import triton_kernels


def page_lock(tensor: Tensor, owner: object) -> None:
    """Lock a CPU tensor's memory for GPUs until `owner` is dropped; without a GPU nothing is done.

    The memory is locked where it is: PyTorch's own page-locked memory comes in powers of two, up to twice as
    much as asked for.

    Raises:
        RuntimeError: the system does not allow that much, see `ulimit -l` and the container's limits.
    """
    if not torch.cuda.is_available() or not tensor.numel():
        return
    runtime: Any = torch.cuda.cudart()
    address = tensor.data_ptr()
    size = tensor.numel() * tensor.element_size()
    failed = int(runtime.cudaHostRegister(address, size, 0))
    if failed:
        raise RuntimeError(
            f"{size / 2**30:.1f} GiB of memory could not be locked for the GPU (CUDA error {failed}); raise "
            "the limit that `ulimit -l` shows, or set --table.placement device"
        )
    weakref.finalize(owner, runtime.cudaHostUnregister, address)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """(n, D) rows of `table` (R, D), on the device of `rows` (n,) int64, wherever the table lies."""
    if table.device == rows.device:
        return table.index_select(0, rows)
    if kernels_reach(table, rows.device):
        return triton_kernels.take_rows(table, rows)
    return table.index_select(0, rows.to(table.device)).to(rows.device)


def kernels_reach(table: Tensor, device: torch.device) -> bool:
    """Whether kernels on `device` can work on `table` where it lies."""
    if table.device == device:
        return True
    return table.is_pinned() and triton_kernels.works(host_rows_kernel, device)


def host_rows_kernel(device: torch.device) -> bool:
    """Whether a kernel on `device` reads the rows of page-locked memory that PyTorch reads."""

    class Owner:
        pass

    owner = Owner()
    table = torch.randn(100, 24, generator=torch.Generator().manual_seed(0))
    page_lock(table, owner)
    rows = torch.tensor([99, 0, 37, 37], device=device)
    return torch.equal(triton_kernels.take_rows(table, rows).cpu(), table[rows.cpu()])
