"""A stand-in for CUDA graphs: the operations of a function, written down once and then run again on the same tensors.

Like a graph it knows nothing of the Python that made them: every shape, address and number is as it was.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def recorded(function: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """What `triptych.runtime.graphs.captured` gives, for any device."""
    for _ in range(2):
        function()
    with _Tape() as tape:
        out = function()

    def replay() -> Tensor:
        for func, args, kwargs, was in tape.calls:
            for old, new in zip(tree_leaves(was), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and not old.is_mkldnn and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
        return out

    return replay
