"""The devices that this machine has, and the error for one that it has not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NOT_THERE = (AssertionError, ImportError, RuntimeError)  # what PyTorch raises, which depends on the kind of device


def machine() -> str:
    """What this machine has, in words: "only the CPU", or "the CPU and cuda:0 (NVIDIA H100)"."""
    names = []
    for kind in ("cuda", "xpu"):
        module: Any = getattr(torch, kind)
        names += [f"{kind}:{index} ({module.get_device_name(index)})" for index in range(module.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return f"the CPU and {', '.join(names)}" if names else "only the CPU"


def check_device(wanted: Any, argument: str = "device") -> torch.device:
    """The device that `wanted` means: a name, an index or a torch.device.

    Raises: ValueError naming the devices of this machine when it is none of them.
    """
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (*NOT_THERE, TypeError) as error:
        raise ValueError(f"{argument} must be a device of this machine; got {wanted!r}. {_has(error)}") from error
    return device


def check_move(move: Callable[[Tensor], Tensor]) -> None:
    """Called when `move` has failed for a tensor of a model: was it for want of the device?

    Returns: when another tensor can be moved, so that it was something else.
    Raises: ValueError naming the devices of this machine when none can.
    """
    try:
        move(torch.empty(0))
    except NOT_THERE as error:
        raise ValueError(f"A model can be moved to a device of this machine only. {_has(error)}") from error


def _has(error: BaseException) -> str:
    reason = str(error).partition("\n")[0].partition(". ")[0].strip().removesuffix(".")  # may go on for pages
    return f"It has {machine()}; choose from that. (PyTorch: {reason}.)"
