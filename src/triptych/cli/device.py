"""The device that a command's `--device` means."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch


def device_named(name: str, quantization: str | None = None) -> "torch.device":
    """A device of this machine; "auto" is a GPU where there is one, and the CPU for quantised weights.

    Raises: typer.BadParameter when there is no such device, or no such quantisation on it.
    """
    import torch

    from triptych.runtime.devices import check_device
    from triptych.runtime.quantization import check_quantization

    try:
        check_quantization(quantization)
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from error
    if quantization and name not in ("auto", "cpu"):
        raise typer.BadParameter(f"--quantization {quantization} is for --device cpu; got {name!r}.")
    if quantization:
        name = "cpu"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return check_device(name, "--device")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
