"""Weights in the order in which the processor reads them, for the few rows of a decoding step.

A product with one to some dozens of rows reads each weight once, so it takes as long as the weights take to come from
memory. On a CPU they come about twice as fast in the blocked layout of oneDNN (which PyTorch ships) as row by row. A
GPU reads rows well; there weights that see the same input are put side by side, so that one product reads them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.activations_torch import gelu_tanh
from triptych.runtime.quantized_linear import QuantizedLinear, is_transposed

Function = Callable[[Tensor], Tensor]
BLOCKING = ("cpu",)  # devices that read blocked weights sooner
_ROWS = 8  # the layout is chosen for this many; it was the best or near it from 1 to 16
_FUSED = {gelu_tanh: ("gelu", "tanh"), F.gelu: ("gelu", "none"), F.relu: ("relu", "")}


def packed(*layers: nn.Module, activation: Function | None = None) -> Function:
    """One product (B, in) -> (B, sum of the layers' out) for linear layers that see the same input, then `activation`.

    On the CPU weights are copied into the blocked layout. Elsewhere they stay, side by side (`side_by_side`). Quantised
    layers are packed already and are called as they are.
    """
    if any(isinstance(layer, QuantizedLinear) for layer in layers):
        return _in_turn([_product(layer) for layer in layers], activation)
    if layers[0].get_parameter("weight").device.type not in BLOCKING:
        if len(layers) > 1 and any(layer.bias is not None for layer in layers):
            return _in_turn([packed(layer) for layer in layers], activation)
        return _in_turn([_linear(side_by_side(layers), _biases(layers))], activation)
    weight = torch.cat([_rows(layer) for layer in layers]) if len(layers) > 1 else _rows(layers[0])
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    bias = _biases(layers)
    kind, algorithm = _FUSED.get(activation, ("none", "")) if activation else ("none", "")
    run = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        out: Tensor = run(x, blocked, bias, kind, [], algorithm)
        return out

    product(weight.new_zeros(1, weight.shape[1]))  # what this processor cannot do shows here, not at the first token
    return product if activation is None or kind != "none" else lambda x: activation(product(x))


def side_by_side(layers: Sequence[nn.Module]) -> Tensor:
    """A matrix (sum of out, in) whose parts are the layers' weights: they are moved there, so nothing is held twice."""
    if len(layers) == 1:
        return _rows(layers[0])
    matrix = torch.cat([_rows(layer) for layer in layers])
    for layer, part in zip(layers, torch.split(matrix, [len(_rows(layer)) for layer in layers]), strict=True):
        layer.get_parameter("weight").data = part.t() if is_transposed(type(layer)) else part
    return matrix


def _linear(weight: Tensor, bias: Tensor | None) -> Function:
    return lambda x: F.linear(x, weight, bias)


def _product(layer: nn.Module) -> Function:
    return layer.product if isinstance(layer, QuantizedLinear) else packed(layer)


def _in_turn(products: Sequence[Function], activation: Function | None) -> Function:
    if len(products) > 1:
        return lambda x: torch.cat([product(x) for product in products], dim=-1)
    (product,) = products
    return product if activation is None else lambda x: activation(product(x))


def _biases(layers: Sequence[nn.Module]) -> Tensor | None:
    """The biases of all layers, one behind the other, zeros where a layer has none; None where none has one."""
    biases = [each.detach() if isinstance(each, Tensor) else None for each in (layer.bias for layer in layers)]
    if len(layers) == 1 or all(bias is None for bias in biases):
        return biases[0]
    weights = [_rows(layer) for layer in layers]
    return torch.cat([w.new_zeros(len(w)) if bias is None else bias for w, bias in zip(weights, biases, strict=True)])


def _rows(layer: nn.Module) -> Tensor:
    """The weight as (out, in), whichever way the layer keeps it."""
    weight: Tensor = layer.get_parameter("weight").detach()
    return weight.t() if is_transposed(type(layer)) else weight


def normalised(norm: nn.LayerNorm) -> Function:
    """A layer norm without the cost of calling a module."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def available_memory() -> int | None:
    """Bytes that programs can still have without swapping; None where the system does not tell.

    Within a container that is what its limit leaves, where that is less.
    """
    limits = [free for free in (_of_the_machine(), *_of_the_container()) if free is not None]
    return min(limits, default=None)


def _of_the_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_LIMIT_AND_USE = (  # version 2, then version 1; as a container sees its own
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def _of_the_container() -> Iterator[int]:
    """What the limits of control groups leave; cached files that are not in use count as free."""
    for limit, use, statistics, cached in _LIMIT_AND_USE:
        try:
            most, used = (int((_CONTROL_GROUPS / name).read_text()) for name in (limit, use))
            lines = (line.split() for line in (_CONTROL_GROUPS / statistics).read_text().splitlines())
            yield max(0, most - used + sum(int(value) for name, value in lines if name == cached))
        except (OSError, ValueError):  # no such group; or "max", which is no limit
            continue
