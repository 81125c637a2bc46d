"""Tensors of a second device, simulated on the CPU, and a record of what makes the host wait for it.

A build of PyTorch without CUDA has no CUDA tensors. The tensors here report the device "meta" and hold CPU
tensors, with which every operation is computed. An operation that mixes them with CPU tensors fails, as it
does on a GPU. Triton kernels run in the interpreter.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
aten = torch.ops.aten
# They return a value to the host, or a tensor whose size the host must know.
WAITS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
_INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
_REPOSITORY = Path(__file__).resolve().parents[2]
_NOT_OURS = {"tests", ".venv"}


class OtherTensor(Tensor):
    """A tensor on the other device. Attributes: `held`, the CPU tensor with its elements."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OtherTensor":
        layout = dict(strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype)
        made: Any = Tensor._make_wrapper_subclass(cls, held.size(), device=DEVICE, **layout)  # type: ignore[attr-defined]  # untyped
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OtherTensor({self.held})"

    def new_tensor(self, data: Any, *_: Any, **__: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] -- as used
        return torch.tensor(data, dtype=self.dtype, device=DEVICE)

    def tolist(self) -> Any:  # PyTorch's own refuses subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: not within OtherDevice")


class OtherDevice(TorchDispatchMode):
    """Compute with the other device's tensors while entered.

    Attributes:
        waits: number of times that the host waited for the device, by operation and place.
    """

    def __init__(self) -> None:
        super().__init__()
        from triton.runtime.interpreter import GridExecutor  # pyright: ignore[reportMissingImports] -- optional

        launch = GridExecutor.__call__

        def launch_held(executor: Any, *args: Any, **kwargs: Any) -> Any:
            args, kwargs = tree_map(_held, (args, kwargs))
            return launch(executor, *args, **kwargs)

        make = torch.tensor

        def make_and_copy(data: Any, *, device: Any = None, **options: Any) -> Tensor:
            """Copy the tensor, as PyTorch does, except to the device "meta"."""
            made = make(data, **options)
            return made if device is None else made.to(device)

        self._patches = ExitStack()
        self._to_patch = (
            mock.patch.object(GridExecutor, "__call__", launch_held),
            mock.patch.object(torch, "tensor", make_and_copy),
        )
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> "OtherDevice":
        for patch in self._to_patch:
            self._patches.enter_context(patch)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        others = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, OtherTensor)}
        on_other = bool(others)
        if kwargs.get("device") is not None:
            on_other = torch.device(kwargs["device"]) == DEVICE
            kwargs["device"] = torch.device("cpu")
        if func is aten._to_copy.default:
            self._record_copy(args[0], on_other, kwargs.get("non_blocking", False))
        elif func is aten.copy_.default:
            on_other = isinstance(args[0], OtherTensor)
            self._record_copy(args[1], on_other, args[2:] == (True,))
        elif others:
            on_cpu = [tensor for tensor in tensors if not isinstance(tensor, OtherTensor) and tensor.dim()]
            shapes = [tuple(tensor.shape) for tensor in on_cpu]
            assert not on_cpu, f"{func} mixes devices in {_place()}: CPU tensors of shapes {shapes}"
            indices = args[1] if func in _INDEXING else ()
            if func in WAITS or any(index is not None and index.dtype == torch.bool for index in indices):
                self.waits[f"{func.overloadpacket.__name__} in {_place()}"] += 1
        args, kwargs = tree_map(_held, (args, kwargs))

        def result(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not on_other:
                return leaf
            return others[id(leaf)] if id(leaf) in others else OtherTensor(leaf)  # others: changed in place

        return tree_map(result, func(*args, **kwargs))

    def _record_copy(self, source: Tensor, to_other: bool, non_blocking: bool) -> None:
        """Record a copy between the devices, unless it is to this device and `non_blocking`."""
        if isinstance(source, OtherTensor) != to_other and not (to_other and non_blocking):
            self.waits[f"{'to' if to_other else 'from'} the device in {_place()}"] += 1


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OtherTensor) else leaf


def _place() -> str:
    """Return the innermost function of the package that is being called."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename).resolve()
        if path.is_relative_to(_REPOSITORY) and not _NOT_OURS & set(path.relative_to(_REPOSITORY).parts):
            return f"{path.stem}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "PyTorch"
