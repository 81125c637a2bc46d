"""Keep torch.compile out of functions that call C++, launch kernels or define their own backward."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def not_traced(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` such that torch.compile calls it, and its backward, instead of tracing them.

    Tracing fails at calls of C in some releases of PyTorch, and in 2.11 it silently returns zero gradients
    for autograd functions that work in place.
    """
    # torch.compiler.disable would import the compiler here, which takes seconds. This one imports it at its
    # first call, which only a compiled caller makes.
    untraced = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateImportUsage] -- see above

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return untraced(*args, **kwargs)
        return function(*args, **kwargs)

    return call
