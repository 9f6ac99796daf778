"""Where the parts of a PyTorch model live: on one device, or spread by accelerate over several, memory and disk."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych import frameworks
from triptych.runtime.devices import check_device

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
DeviceMap = Mapping[str, Any]


class Placement:
    """Says for each name of a model's state on which device it lives, and writes to disk what lives there."""

    def __init__(self, device_map: DeviceMap | None, offload_folder: str | os.PathLike[str] | None = None) -> None:
        self.device_map = device_map
        self._devices = {part: _device(value) for part, value in (device_map or {"": "cpu"}).items()}
        self._folder = Path(offload_folder) if offload_folder is not None else None
        self._on_disk: dict[str, Any] = {}
        if None in self._devices.values():
            if self._folder is None:
                raise ValueError(
                    "device_map sends parts of the model to disk, so offload_folder is needed. "
                    "Pass offload_folder='some/folder', or more max_memory."
                )
            self._folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str) -> torch.device | None:
        """The device of a parameter or buffer: that of the longest part of the map it lies in; None for disk."""
        part = name
        while part and part not in self._devices:
            part = part.rpartition(".")[0]
        if part not in self._devices:
            raise ValueError(f"device_map must cover the whole model, but {name} is in none of its parts. Add it.")
        return self._devices[part]

    def offload(self, name: str, tensor: Tensor) -> None:
        """Write a tensor into the offload folder."""
        frameworks.load("accelerate").utils.offload_weight(tensor, name, str(self._folder), self._on_disk)

    def dispatch(self, model: Any) -> None:
        """Let a model whose parts lie on several devices run as one."""
        model.hf_device_map = dict(self.device_map or {})
        if self.device_map is None or (len(self._devices) == 1 and None not in self._devices.values()):
            return
        accelerate = frameworks.load("accelerate")
        if self._on_disk:
            accelerate.utils.save_offload_index(self._on_disk, str(self._folder))
        accelerate.dispatch_model(
            model,
            device_map=dict(self.device_map),
            offload_dir=str(self._folder) if self._folder else None,
            offload_index=self._on_disk or None,
        )


def plan(
    model: Any, device_map: Any, max_memory: dict[Any, Any] | None, offload_folder: str | os.PathLike[str] | None
) -> Placement:
    """The placement that the `device_map` argument of `from_pretrained` asks for; `model` may have no memory yet.

    One device (a name, an index, a torch.device, or {"": device}) needs no accelerate.

    Raises: ImportError naming the extra if accelerate is needed but missing; ValueError for an unknown map, or
        for a device that this machine has not.
    """
    if device_map is None:
        return Placement(None)
    if isinstance(device_map, str) and device_map in STRATEGIES:
        return Placement(_spread(model, device_map, max_memory), offload_folder)
    if isinstance(device_map, Mapping):
        if len(device_map) > 1 or "disk" in device_map.values():
            frameworks.load("accelerate")
        return Placement(dict(device_map), offload_folder)
    return Placement({"": _device(device_map)}, offload_folder)


def _device(value: Any) -> torch.device | None:
    if value == "disk":
        return None
    if not isinstance(value, int):
        try:
            torch.device(value)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"device_map must be one of {', '.join(STRATEGIES)}, a device, or a dict of module names to devices or "
                f"'disk'; got {value!r}."
            ) from error
    return check_device(value, "device_map")


def _spread(model: Any, strategy: str, max_memory: dict[Any, Any] | None) -> dict[str, Any]:
    accelerate = frameworks.load("accelerate")
    whole = model._no_split_modules or []
    model.tie_weights()
    if strategy != "sequential":
        max_memory = accelerate.utils.get_balanced_memory(
            model, max_memory=max_memory, no_split_module_classes=whole, low_zero=strategy == "balanced_low_0"
        )
    result: dict[str, Any] = accelerate.infer_auto_device_map(
        model, max_memory=max_memory, no_split_module_classes=whole
    )
    return result
