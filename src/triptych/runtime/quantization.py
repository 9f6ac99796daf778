"""Which quantised layer takes the place of a linear layer, for each kind and device; and doing and undoing it."""

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from triptych.runtime.int4_linear import Int4Linear
from triptych.runtime.int8_linear import Int8Linear
from triptych.runtime.quantized_linear import QuantizedLinear, is_transposed, refuse_endless
from triptych.runtime.torchao_linear import TorchaoInt4Linear, TorchaoInt8Linear

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel

KINDS = ("int8", "int4")
LAYERS: dict[tuple[str, str], type[QuantizedLinear]] = {  # kind and type of device -> what holds a weight there
    ("int8", "cpu"): Int8Linear,
    ("int4", "cpu"): Int4Linear,
    ("int8", "cuda"): TorchaoInt8Linear,
    ("int4", "cuda"): TorchaoInt4Linear,
}
_OF_HEADS = {"int4": "int8"}  # 4 bits of a head cost more in perplexity than those of all blocks together
_FLAGS = {"load_in_8bit": "int8", "load_in_4bit": "int4"}


def check_quantization(kind: Any) -> str | None:
    """The name of a quantisation; None is none.

    Raises: ValueError for one that there is not.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"quantization must be {' or '.join(KINDS)}; got {kind!r}. Leave it out for floats.")
    return None if kind is None else str(kind)


def named_quantization(kind: Any, flags: Mapping[str, Any], config: Any = None) -> str | None:
    """The quantisation that the arguments of `from_pretrained` ask for, each in its own way; None where none does.

    `flags` are `load_in_8bit` and `load_in_4bit`; `config` is a `quantization_config`, an object or a dict that has
    them.

    Raises: ValueError for a kind that there is not, for two that differ, and for a config that asks for another.
    """
    asked = {f"quantization={kind!r}": check_quantization(kind)} if kind is not None else {}
    asked |= {f"{name}=True": _FLAGS[name] for name, value in flags.items() if value}
    configured = None if config is None else _configured(config)
    if configured is not None:
        asked["quantization_config"] = configured
    if len(set(asked.values())) > 1:
        raise ValueError(f"The weights can be quantised in one way only; got {' and '.join(asked)}. Leave out one.")
    return next(iter(asked.values()), None)


def _configured(config: Any) -> str | None:
    """What a config's flags ask for; None where it has them and all are False."""
    values = config if isinstance(config, Mapping) else {name: getattr(config, name, None) for name in _NAMES}
    kinds = [kind for name, kind in _FLAGS.items() if values.get(name)]
    method = values.get("quant_method")
    known = any(values.get(name) is not None for name in _FLAGS) and str(getattr(method, "value", method)) in _METHODS
    if known and not kinds:
        return None
    if not known or len(kinds) > 1:
        raise ValueError(
            "quantization_config must have load_in_8bit=True or load_in_4bit=True, as a BitsAndBytesConfig has; got "
            f"{config!r}. Pass quantization='int8' or 'int4' instead."
        )
    return kinds[0]


_NAMES = (*_FLAGS, "quant_method")
_METHODS = ("None", "bitsandbytes")


def layer_for(kind: str, device: torch.device) -> type[QuantizedLinear]:
    """What holds a weight in that kind on that device.

    Raises: ValueError where this machine has nothing for it; ImportError naming the extra that is missing.
    """
    found = LAYERS.get((str(check_quantization(kind)), device.type))
    if found is None:
        types = " or ".join(place for each, place in LAYERS if each == kind)
        raise ValueError(
            f"quantization={kind!r} is for models on {types}; this one is on {device.type}. Choose such a device."
        )
    found.check(device)
    return found


def check_devices(kind: str, devices: Collection[torch.device | None]) -> None:
    """Refuse what a model on these devices (None: the disk) cannot have.

    Raises: ValueError naming the devices, or what the machine lacks; ImportError naming the extra that is missing.
    """
    types = sorted({"disk" if device is None else device.type for device in devices})
    if len(types) > 1 or "disk" in types:
        raise ValueError(f"quantization={kind!r} needs the whole model on the CPU or on GPUs; got {', '.join(types)}.")
    for device in set(devices):
        layer_for(kind, device or torch.device("cpu"))


def quantize_model(model: "PreTrainedModel", kind: str) -> None:
    """What `PreTrainedModel.quantize` does to the layers."""
    if check_quantization(kind) is None:
        raise ValueError(f"quantize() takes {' or '.join(map(repr, KINDS))}; got None. For floats call dequantize().")
    if model.quantization not in (None, kind):
        raise ValueError(f"The model is quantised to {model.quantization} already. Call model.dequantize() first.")
    check_devices(kind, {value.device for value in model.parameters()})
    quantize_layers(model, kind)


def quantize_layers(
    model: "PreTrainedModel",
    kind: str,
    *,
    device_of: Callable[[str], torch.device | None] | None = None,
    dtype: torch.dtype | None = None,
    at_once: bool = False,
) -> None:
    """Put a quantised layer in the place of every linear layer within a model's blocks, and of the head.

    With "int4" the head has 8 bits.

    Some at a time, so that at no time two copies of more than these layers exist. `device_of` says where a layer of
    some name shall be, else each stays; `dtype` is that of the floats that it stands for. Layers whose inputs the kind
    cannot split stay as they are.

    Raises: ValueError where nothing can be quantised, and for weights that are no numbers: the model is then as it
        was, unless `at_once` does without reading all weights first.
    """
    places = _places_of(model, kind, device_of)
    if not (quantized_layers(model) or any(make.quantization == kind for _, _, make, _ in places)):
        raise ValueError(f"quantization={kind!r} needs layers whose inputs 32 divides; this model has none.")
    if not at_once:
        for parent, name, _, _ in places:
            low, high = parent.get_submodule(name).get_parameter("weight").detach().aminmax()
            refuse_endless(high.float() - low.float())

    def put(place: _Place) -> None:
        parent, name, make, device = place
        layer = parent.get_submodule(name)
        parent._modules[name] = make.of(layer, device, dtype).train(layer.training)

    # packing is work for one thread on a CPU; a GPU does one after the other
    threads = 1 if any(device.type != "cpu" for *_, device in places) else min(torch.get_num_threads(), _MOST_AT_ONCE)
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(put, places):
            pass


_MOST_AT_ONCE = 8
_Place = tuple[nn.Module, str, type[QuantizedLinear], torch.device]


def _places_of(
    model: "PreTrainedModel", kind: str, device_of: Callable[[str], torch.device | None] | None
) -> list[_Place]:
    """Where layers are to be quantised: parent and name (nothing shall keep the layer itself); by what, and where."""
    blocks = [each for each in model.modules() if type(each).__name__ in model._no_split_modules]
    inside = {layer for block in blocks for layer in block.modules()}
    head = model.get_output_embeddings()
    places = []
    for parent, name, path, layer in _children(model):
        if (layer in inside or layer is head) and (type(layer) is nn.Linear or is_transposed(type(layer))):
            device = (device_of(path) if device_of else None) or layer.get_parameter("weight").device
            make = layer_for(_OF_HEADS.get(kind, kind) if layer is head else kind, device)
            if make.takes(_in_features(layer)):
                places.append((parent, name, make, device))
    return places


def dequantize_layers(model: nn.Module) -> None:
    """Put float layers in the place of every quantised one."""
    for parent, name, _, layer in list(_children(model)):
        if isinstance(layer, QuantizedLinear):
            parent._modules[name] = layer.restored().train(layer.training)


def quantized_layers(model: nn.Module) -> list[QuantizedLinear]:
    """The quantised layers of a model."""
    return [each for each in model.modules() if isinstance(each, QuantizedLinear)]


def quantization_of(model: nn.Module) -> str | None:
    """The kind that the layers of a model's blocks are quantised to; None for floats."""
    kinds = {layer.quantization for layer in quantized_layers(model)}
    return next((kind for kind in ("int4", "int8") if kind in kinds), None)


def untied_numel(model: "PreTrainedModel") -> int:
    """How many numbers the quantised layers hold, without a head that is the embedding, which counts there."""
    tied: nn.Module | None = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    return sum(int(layer.numel) for layer in quantized_layers(model) if layer is not tied)


def _in_features(layer: nn.Module) -> int:
    return int(layer.get_parameter("weight").shape[0 if is_transposed(type(layer)) else 1])


def _children(root: nn.Module) -> Iterator[tuple[nn.Module, str, str, nn.Module]]:
    """Each module's parent, name there, name in the whole, and itself."""
    for prefix, parent in root.named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, f"{prefix}.{name}".lstrip("."), child
