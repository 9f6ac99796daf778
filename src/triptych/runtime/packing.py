"""Weights in the order in which the processor reads them, for the few rows of a decoding step.

A product with one to some dozens of rows reads each weight once, so it takes as long as the weights take to come from
memory. In the blocked layout of oneDNN (which PyTorch ships) they come about twice as fast as row by row.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.activations_torch import gelu_tanh
from triptych.runtime.quantization import Int8Linear, is_transposed

Function = Callable[[Tensor], Tensor]
_ROWS = 8  # the layout is chosen for this many; it was the best or near it from 1 to 16
_FUSED = {gelu_tanh: ("gelu", "tanh"), F.gelu: ("gelu", "none"), F.relu: ("relu", "")}


def packed(*layers: nn.Module, activation: Function | None = None) -> Function:
    """One product (B, in) -> (B, sum of the layers' out) for linear layers that see the same input, then `activation`.

    Float32 weights are copied into the blocked layout. Quantised layers are packed already and are called as they are.
    """
    if any(isinstance(layer, Int8Linear) for layer in layers):
        return _in_turn(layers, activation)
    weight = torch.cat([_rows(layer) for layer in layers]) if len(layers) > 1 else _rows(layers[0])
    biases = [each.detach() for each in (layer.bias for layer in layers) if isinstance(each, Tensor)]
    bias = torch.cat(biases) if biases else None
    blocked = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)
    kind, algorithm = _FUSED.get(activation, ("none", "")) if activation else ("none", "")
    run = torch.ops.mkldnn._linear_pointwise.default

    def product(x: Tensor) -> Tensor:
        out: Tensor = run(x, blocked, bias, kind, [], algorithm)
        return out

    return product if activation is None or kind != "none" else lambda x: activation(product(x))


def _in_turn(layers: tuple[nn.Module, ...], activation: Function | None) -> Function:
    if len(layers) > 1:
        return lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    (layer,) = layers
    return layer if activation is None else lambda x: activation(layer(x))


def _rows(layer: nn.Module) -> Tensor:
    """The weight as (out, in), whichever way the layer keeps it."""
    weight: Tensor = layer.get_parameter("weight").detach()
    return weight.t() if is_transposed(type(layer)) else weight


def normalised(norm: nn.LayerNorm) -> Function:
    """A layer norm without the cost of calling a module."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def available_memory() -> int | None:
    """Bytes that programs can still have without swapping; None where the system does not tell."""
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
