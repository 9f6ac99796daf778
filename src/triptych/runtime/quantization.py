"""Weights of 8 bits: a quarter of the memory, and about three times the speed where reading weights is what takes time.

Each output of a layer has a scale of its own (its largest weight is 127 steps); inputs are quantised as they come.
The products are those of FBGEMM and oneDNN, which PyTorch ships. Dettmers et al., 2022, arXiv:2208.07339, compares
such schemes; this one has no outlier path.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

KINDS = ("int8",)


def check_quantization(kind: Any) -> str | None:
    """The name of a quantisation; None is none.

    Raises: ValueError for one that there is not, or that this build of PyTorch has no kernels for.
    """
    if kind is None:
        return None
    if kind not in KINDS:
        raise ValueError(f"quantization must be one of {', '.join(KINDS)}, or None; got {kind!r}.")
    if torch.backends.quantized.engine in (None, "none"):
        raise ValueError("quantization='int8' needs a PyTorch with int8 kernels for this processor, and it has none.")
    return str(kind)


class Int8Linear(nn.Module):
    """A linear layer (..., in) -> (..., out) whose weight is held in 8 bits, on the CPU.

    In a state dict it is the layer that it was made from: a float weight, in that layer's order, and the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed  # the file's weight is (in, out), as a Conv1D has it
        # Without VNNI the kernels add pairs of products in 16 bits, for which inputs may have 7 bits only.
        self.reduce_range = not getattr(torch.cpu, "_is_vnni_supported", bool)()
        self._pack(weight, bias)

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """The same layer with 8 bits; `layer` is an nn.Linear, or a Conv1D, whose weight is (in, out)."""
        weight, bias = layer.weight.detach(), layer.bias  # type: ignore[operator, union-attr]
        return cls(weight, None if bias is None else bias.detach(), transposed=not isinstance(layer, nn.Linear))  # type: ignore[arg-type, operator]

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        rows = (weight.t() if self.transposed else weight).float()  # (out, in)
        self.out_features, self.in_features = rows.shape
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        steps = (rows / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        zeros = torch.zeros(len(rows), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # such tensors are deprecated, packing has no other way in
            quantised = torch._make_per_channel_quantized_tensor(steps, scales.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.float().contiguous())

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("Weights of 8 bits cannot be trained. Call model.dequantize() before training.")
        out: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self.packed, self.reduce_range)
        return out.to(x.dtype)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight that the steps stand for, in float32 and in the file's order, and the bias."""
        quantised, bias = torch.ops.quantized.linear_unpack(self.packed)
        rows = quantised.int_repr().float() * quantised.q_per_channel_scales().float()[:, None]
        return rows.t().contiguous() if self.transposed else rows, bias

    def restore(self, layer: nn.Module) -> nn.Module:
        """A float layer like the one that it was made from, with the weight that the steps stand for."""
        weight, bias = self.weight_and_bias()
        layer.weight = nn.Parameter(weight)
        layer.bias = None if bias is None else nn.Parameter(bias)
        return layer

    @property
    def nbytes(self) -> int:
        """Bytes of the steps, scales and bias."""
        return self.out_features * (self.in_features + 8)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device = fn(torch.empty(0)).device
        if device.type != "cpu":
            raise ValueError(f"Weights of 8 bits are for the CPU; got device {device}. Call model.dequantize() first.")
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight, bias = self.weight_and_bias()
        destination[prefix + "weight"] = weight
        if bias is not None:
            destination[prefix + "bias"] = bias

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        own, own_bias = self.weight_and_bias()
        weight, bias = state.get(prefix + "weight"), state.get(prefix + "bias", own_bias)
        if weight is None:
            missing.append(prefix + "weight")
        elif weight.shape != own.shape:
            errors.append(f"{prefix}weight has shape {tuple(weight.shape)}, not {tuple(own.shape)}.")
        else:
            self._pack(weight, bias)

    def extra_repr(self) -> str:
        """The sizes, as the module is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def replace_layers(root: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put `change(layer)` in the place of every layer below `root` for which it is not None, one after the other."""
    for parent, name, layer in list(_places(root)):
        new = change(layer)
        if new is not None:
            parent._modules[name] = new.train(layer.training)


def _places(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child
