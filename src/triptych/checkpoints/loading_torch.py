"""Tensors of a checkpoint → the parameters and buffers of a PyTorch model that was built without memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.device_map_torch import Placement
from triptych.checkpoints.matching import Matching, is_any_of, quote, targets
from triptych.errors import CheckpointError


class TensorSource(Protocol):
    """What tensors are taken from: a `Checkpoint`, or a `StateDict`."""

    source: str
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Tensor:
        """One tensor in `dtype` (None: as stored): as it lies if `mapped`, else in memory of its own."""


class StateDict:
    """A state dict that the caller holds already, seen as a source of tensors."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.source = "state_dict"
        self._values = values
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in values.items()
        }

    def read(self, name: str, *, mapped: bool, dtype: Any = None) -> Tensor:
        """One tensor; shares the caller's memory if `mapped`."""
        value = self._values[name].detach()
        return value.to(dtype or value.dtype, copy=not mapped).contiguous()


# How layers fill what they allocated. On the meta device that changes nothing, but makes PyTorch import its compiler.
_FILLING = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_}


class _EmptyOnMeta(TorchFunctionMode):
    """Sends `torch.empty` to the meta device: what layers allocate to fill in later takes no memory and no time.

    Values that a constructor computes (positions, frequencies, constants) stay real, and so does what asks for a
    device by name, as a file that is read inside a constructor does.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FILLING:
            tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if tensor.is_meta:
                return tensor
        if func is torch.empty and kwargs.get("device") is None:
            kwargs["device"] = "meta"
            if kwargs.get("dtype") is None:
                kwargs["dtype"] = self._dtype
        return func(*args, **kwargs)


@contextmanager
def without_weights(dtype: torch.dtype) -> Iterator[None]:
    """Models made inside, in this thread, have parameters of shape and dtype, but no memory."""
    with _EmptyOnMeta(dtype):
        yield


def match(model: Any, source: TensorSource) -> Matching:
    """Compare names and shapes; nothing is read.

    The prefix of the base model may be there or not on either side. Of tied tensors one is enough.

    Raises: CheckpointError if not one of the checkpoint's names belongs to the model.
    """
    slots: dict[str, Tensor] = model.state_dict(keep_vars=True)
    target_of = targets(source.tensors, slots, model.base_model_prefix)
    if source.tensors and slots and not target_of:
        raise CheckpointError(
            f"The weights must belong to {type(model).__name__}, which has {quote(slots, 2)}, but none of the "
            f"{len(source.tensors)} tensors of {source.source} fits; it has {quote(source.tensors, 2)}. "
            "Load it with the class it was saved from."
        )
    stored = {target: name for name, target in target_of.items()}
    found = Matching(unexpected=sorted(_unexpected(source.tensors, target_of, model)))
    for names in _tied_groups(slots):
        own = [name for name in names if not is_any_of(name, model._tied_weights_keys)] or names
        name = next((name for name in (*own, *names) if name in stored), None)
        if name is None:
            found.missing += own
            found.to_initialise.append(names[0])
        elif source.tensors[stored[name]].shape != tuple(slots[name].shape):
            found.mismatched.append((stored[name], torch.Size(source.tensors[stored[name]].shape), slots[name].shape))
            found.to_initialise.append(names[0])
        else:
            found.stored_name[name] = stored[name]
    found.missing.sort()
    return found


def assign(
    model: nn.Module, source: TensorSource, stored_name: Mapping[str, str], placement: Placement, *, mapped: bool
) -> None:
    """Give every parameter and buffer of `stored_name` its tensor, one at a time, where `placement` wants it."""
    slots: dict[str, Tensor] = model.state_dict(keep_vars=True)
    names_of = {id(slots[names[0]]): names for names in _tied_groups(slots)}
    for name, stored in stored_name.items():
        slot = slots[name]
        devices = {alias: placement(alias) for alias in names_of[id(slot)]}
        device = next((device for device in devices.values() if device is not None), None)
        is_cast = source.tensors[stored].dtype != str(slot.dtype).removeprefix("torch.")
        is_copied_anyway = device is None or device.type != "cpu"
        tensor = source.read(
            stored, mapped=is_copied_anyway or (mapped and not is_cast), dtype=slot.dtype if is_cast else None
        )
        _offload(tensor, devices, placement)
        if device is None:
            continue
        tensor = tensor.to(device).contiguous()
        if tensor.data_ptr() % tensor.element_size():  # some writers pad the header to any length
            tensor = tensor.clone()
        _put(model, (alias for alias in devices if devices[alias] is not None), slot, tensor)


def initialise(model: Any, names: Iterable[str], placement: Placement) -> None:
    """Allocate and initialise these parameters and buffers; their modules' other parameters keep their values.

    What the constructor gave a value keeps it.
    """
    slots: dict[str, Tensor] = model.state_dict(keep_vars=True)
    names_of = {id(slots[group[0]]): group for group in _tied_groups(slots)}
    new: dict[str, set[str]] = {}
    names = list(names)
    for name in names:
        slot = slots[name]
        if not slot.is_meta:
            continue
        _put(model, names_of[id(slot)], slot, torch.zeros(slot.shape, dtype=slot.dtype, device=placement(name)))
        for alias in names_of[id(slot)]:
            owner, _, leaf = alias.rpartition(".")
            new.setdefault(owner, set()).add(leaf)
    for owner, leaves in new.items():
        _initialise_module(model, model.get_submodule(owner), leaves)
    values = model.state_dict()
    for name in names:
        _offload(values[name], {alias: placement(alias) for alias in names_of[id(slots[name])]}, placement)


def _offload(tensor: Tensor, devices: Mapping[str, torch.device | None], placement: Placement) -> None:
    """Write a (tied) tensor to disk under each of its names that lives there."""
    for name, device in devices.items():
        if device is None:
            placement.offload(name, tensor)


def materialise_rest(model: nn.Module, placement: Placement) -> None:
    """Bring every buffer that is in no file to its device; those that nobody computed become zeros."""
    for prefix, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            device = placement(f"{prefix}.{leaf}".lstrip("."))
            if buffer is None or device is None or buffer.device == device:
                continue
            is_meta = buffer.device.type == "meta"
            module._buffers[leaf] = torch.zeros_like(buffer, device=device) if is_meta else buffer.to(device)


def _unexpected(stored: Iterable[str], target_of: Mapping[str, str], model: Any) -> list[str]:
    left = (name for name in stored if name not in target_of)
    return [name for name in left if not is_any_of(name, model._keys_to_ignore_on_load_unexpected)]


def _tied_groups(slots: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each distinct parameter or buffer."""
    groups: dict[int, list[str]] = {}
    for name, slot in slots.items():
        if isinstance(slot, Tensor):
            groups.setdefault(id(slot), []).append(name)
    return list(groups.values())


def _put(model: nn.Module, names: Iterable[str], slot: Tensor, tensor: Tensor) -> None:
    """Put one tensor in every place of a (tied) parameter or buffer."""
    is_parameter = isinstance(slot, nn.Parameter)
    value = nn.Parameter(tensor, requires_grad=slot.requires_grad) if is_parameter else tensor
    for name in names:
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if isinstance(value, nn.Parameter):
            module._parameters[leaf] = value
        else:
            module._buffers[leaf] = value


def _initialise_module(model: Any, module: nn.Module, leaves: set[str]) -> None:
    """Run the layer's own and the model's initialisation on some of a module's parameters only."""
    kept = {leaf: value for leaf, value in module._parameters.items() if value is not None and leaf not in leaves}
    try:
        for leaf, value in kept.items():
            module._parameters[leaf] = nn.Parameter(torch.empty_like(value), requires_grad=False)
        with torch.no_grad():
            for name in ("reset_parameters", "_reset_parameters"):  # torch's layers have one or the other
                if callable(reset := getattr(module, name, None)):
                    reset()
            model._init_weights(module)
    finally:
        module._parameters.update(kept)
