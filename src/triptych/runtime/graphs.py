"""A function of fixed tensors, made quicker to run again: captured as a CUDA graph, or compiled.

A decoding step of a small model is some hundreds of kernels that take a few microseconds each, which is less than
Python needs to start them. A graph starts all of them at once
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

from collections.abc import Callable
from threading import Lock

import torch
from torch import Tensor

_WARM_UPS = 2  # in which libraries choose their kernels and take their memory, which a capture may not
_capturing = Lock()  # a capture begins by waiting for the device, which is not allowed during another


def captured(function: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """`function` as a CUDA graph: each call computes the same on the same tensors anew, and gives the same tensor.

    It is run before it is captured, so what it writes must not build on what it wrote. Other threads may go on using
    the GPU meanwhile, but one that waits for all of its work can make the capture fail.

    Raises: RuntimeError when something in it cannot be captured, or there is no memory.
    """
    with _capturing, torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(stream)
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                function()
        stream.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Left alone, it would take one stream for all captures, of the device that had the first.
            with torch.cuda.graph(graph, stream=beside, capture_error_mode="thread_local"):
                out = function()
        finally:
            torch.cuda.set_stream(stream)  # a capture that fails may leave its own

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def compiled(function: Callable[[], Tensor], backend: str = "inductor") -> Callable[[], Tensor]:
    """`function` compiled by `torch.compile`, at its first call; PyTorch keeps what it made on disk for later ones."""

    def run() -> Tensor:
        return function()

    run.__code__ = run.__code__.replace()  # PyTorch compiles one code object 8 times at most
    return torch.compile(run, dynamic=False, fullgraph=True, backend=backend)
