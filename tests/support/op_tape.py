"""Record the operations of a function and repeat them on the same memory, as a CUDA graph does."""

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support.other_device import WAITS, OtherTensor

T = TypeVar("T")


class TapeRecorder:
    """Stands for `GraphRecorder`: operations of PyTorch and launches of interpreted kernels are repeated.

    As in a CUDA graph, what Python computed during the recording is fixed: numbers, shapes, branches.
    """

    def warm_up(self, function: Callable[[], object]) -> None:
        function()

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        tape = _Tape()
        with tape:
            result = function()
        assert tape.entries
        return tape.replay, result


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []
        self._patches = ExitStack()

    def __enter__(self) -> "_Tape":
        if find_spec("triton") is not None:
            from triton.runtime.interpreter import GridExecutor  # pyright: ignore[reportMissingImports] -- optional

            launch = GridExecutor.__call__

            def launch_and_record(*args: Any, **kwargs: Any) -> None:
                launch(*args, **kwargs)
                self.entries.append((launch, args, kwargs, None))

            self._patches.enter_context(mock.patch.object(GridExecutor, "__call__", launch_and_record))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in WAITS, f"{func} needs the host, which a graph leaves out"
        out = func(*args, **(kwargs or {}))
        if "empty" not in func.__name__:  # memory only; other operations may resize it
            self.entries.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, recorded in self.entries:
            repeated = function(*args, **kwargs)
            for ours, theirs in zip(_tensors(recorded), _tensors(repeated), strict=True):
                if _address(ours) != _address(theirs):  # neither a view nor changed in place
                    ours.copy_(theirs)


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return (tensor.held if isinstance(tensor, OtherTensor) else tensor).data_ptr()
