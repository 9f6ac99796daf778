"""The device that a command's `--device` means."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch


def device_named(name: str) -> "torch.device":
    """A device of this machine; "auto" is a GPU where there is one.

    Raises: typer.BadParameter when there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device must be one of this machine's; got {name!r}. Try cpu.") from error
