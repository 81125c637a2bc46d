"""The encoder's forward and backward as CUDA graphs: the host launches one graph instead of each kernel.

A graph repeats the same kernels on the same memory. The inputs, which differ between steps (item embeddings,
segments, keys of dropout), are copied into buffers that the graph reads; the weights are read in place.
Shapes are those of the captured step. Rows of other shapes run without the graph.

`torch.cuda.make_graphed_callables` does the same, but fails if another thread uses CUDA during the capture.
Here threads pin batches and NCCL's watchdog queries events at any time.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_WARM_UP = 3  # runs before a capture, in which kernels are compiled and workspaces allocated
T = TypeVar("T")


class GraphRecorder:
    """Captures CUDA graphs that share one memory pool; replay them in the order of their capture."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run a function on a stream of its own."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture a function; return its replay and its result, which each replay overwrites."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = function()
        return graph.replay, result


class GraphedCall:
    """Calls a function of a module in training; the first call captures its graphs.

    Args:
        function: maps tensors to one tensor and reads the module's parameters. Its kernels and their shapes
            and scalar arguments must not depend on the elements of the tensors. The gradients of its first
            argument and of the parameters are computed.
        module: its parameters may change their values, not their memory.
    """

    def __init__(self, function: Callable[..., Tensor], module: nn.Module) -> None:
        self._function, self._module = function, module
        self._parameters: list[nn.Parameter] = []
        self._inputs: list[Tensor] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Return the function's result. It is overwritten by the next call."""
        if self._inputs is None:
            self._capture(inputs)
        assert self._inputs is not None
        if [each.shape for each in inputs] != [each.shape for each in self._inputs]:
            return self._function(*inputs)
        assert self._addresses == self._parameter_addresses(), "weights have moved since the capture"
        return _Replay.apply(self, *inputs, *self._parameters)

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        recorder = GraphRecorder()
        self._parameters = [each for each in self._module.parameters() if each.requires_grad]
        self._inputs = [each.detach().clone() for each in inputs]
        sources = [self._inputs[0].requires_grad_(), *self._parameters]

        def forward() -> Tensor:
            assert self._inputs is not None
            return self._function(*self._inputs)

        def backward(output: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(output, sources, grad, allow_unused=True)

        def both() -> None:
            for _ in range(_WARM_UP):
                output = forward()
                backward(output, torch.zeros_like(output))

        recorder.warm_up(both)
        self.replay_forward, output = recorder.record(forward)
        self.output_grad = torch.zeros_like(output)
        self.replay_backward, self.grads = recorder.record(lambda: backward(output, self.output_grad))
        self.output = output.detach()
        self._addresses = self._parameter_addresses()

    def copy_inputs(self, inputs: tuple[Tensor, ...]) -> None:
        """Copy the inputs of a step to where the graph reads them."""
        assert self._inputs is not None
        for ours, theirs in zip(self._inputs, inputs, strict=False):  # the parameters follow
            ours.copy_(theirs)

    def _parameter_addresses(self) -> list[int]:
        return [each.data_ptr() for each in self._parameters]


class _Replay(torch.autograd.Function):
    """A node of autograd with the parameters as inputs, so that DeepSpeed's hooks on their gradients run."""

    @staticmethod
    def forward(ctx: Any, call: GraphedCall, *tensors: Tensor) -> Tensor:
        ctx.call, ctx.num_tensors = call, len(tensors)
        call.copy_inputs(tensors)
        call.replay_forward()
        return call.output.detach()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] -- the decorator hides the name of ctx
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        call: GraphedCall = ctx.call
        call.output_grad.copy_(grad_outputs[0])
        call.replay_backward()
        first, *of_parameters = (grad if grad is None else grad.detach() for grad in call.grads)
        others = ctx.num_tensors - 1 - len(of_parameters)
        return None, first, *(others * [None]), *of_parameters
