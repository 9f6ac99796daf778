"""The device that a command's `--device` means."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch


def device_named(name: str, quantization: str | None = None) -> "torch.device":
    """A device of this machine; "auto" is a GPU where there is one, and torchao too where weights are quantised.

    Raises: typer.BadParameter when there is no such device, or no such quantisation on it.
    """
    import torch

    from triptych import frameworks
    from triptych.runtime.devices import check_device
    from triptych.runtime.quantization import check_devices, check_quantization

    try:
        check_quantization(quantization)
    except ValueError as error:
        raise typer.BadParameter(f"--{error}") from error
    if name == "auto":
        has_gpu = torch.cuda.is_available() and (quantization is None or frameworks.is_available("torchao"))
        name = "cuda" if has_gpu else "cpu"
    try:
        device = check_device(name, "--device")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if quantization:
        try:
            check_devices(quantization, [device])
        except (ValueError, ImportError) as error:
            raise typer.BadParameter(f"--device {name}: {error}") from error
    return device
