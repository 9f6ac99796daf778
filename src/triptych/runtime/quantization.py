"""Weights of 8 bits: a quarter of the memory, and about three times the speed where reading weights is what takes time.

Each output of a layer has a scale of its own (its largest weight is 127 steps); inputs are quantised as they come.
The products are those of FBGEMM and oneDNN, which PyTorch ships. Dettmers et al., 2022, arXiv:2208.07339, compares
such schemes; this one has no outlier path.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
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
    if _engine() == "none":
        raise ValueError(
            "This PyTorch has no int8 kernels for this processor. Load without quantization, for example in bfloat16."
        )
    return str(kind)


def _engine() -> str:
    return str(torch.backends.quantized.engine)


class Int8Linear(nn.Module):
    """A linear layer (..., in) -> (..., out) whose weight is held in 8 bits, on the CPU.

    In a state dict it is the layer that it was made from: a float weight, in that layer's order, and the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, kind: type[nn.Module]) -> None:
        super().__init__()
        self.kind = kind
        self.has_bias = bias is not None
        self.transposed = is_transposed(kind)
        self._pack(weight, bias)

    @classmethod
    def of(cls, layer: Any) -> Self:
        """The same layer with 8 bits."""
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(layer.weight.detach(), bias, kind=type(layer))

    def _pack(self, weight: Tensor, bias: Tensor | None) -> None:
        rows = (weight.t() if self.transposed else weight).float().contiguous()  # (out, in)
        self.out_features, self.in_features = rows.shape
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        if not bool(scales.isfinite().all()):
            raise ValueError("Weights of 8 bits must be finite; got infinity or NaN. Mend or reload the weights.")
        with _quietly():
            self._hold(torch.quantize_per_channel(rows, scales.double(), _no_offsets(rows), 0, torch.qint8), bias)

    def _hold(self, quantised: Tensor, bias: Tensor | None) -> None:
        # Without VNNI the kernels add pairs of products in 16 bits, for which inputs may have 7 bits only. Asked here
        # because a pickle may come from another processor.
        self.reduce_range = not getattr(torch.cpu, "_is_vnni_supported", bool)()
        # a copy of the bias, which may lie in a mapped file
        self.packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.float().clone())

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("Weights of 8 bits cannot be trained. Call model.dequantize() before training.")
        return self.product(x.float()).to(x.dtype)

    def product(self, x: Tensor) -> Tensor:
        """The same for float32 that no gradient is wanted of, without the cost of calling a module."""
        out: Tensor = torch.ops.quantized.linear_dynamic.default(x, self.packed, self.reduce_range)
        return out

    def _held(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Steps (out, in), scales (out,) and bias (out,)."""
        quantised, bias = torch.ops.quantized.linear_unpack(self.packed)
        return quantised.int_repr(), quantised.q_per_channel_scales().float(), bias

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "packed"} | {"held": self._held()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        steps, scales, bias = state.pop("held")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        with _quietly():
            quantised = torch._make_per_channel_quantized_tensor(steps, scales.double(), _no_offsets(steps), 0)
        self._hold(quantised, bias)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight that the steps stand for, in float32 and in the file's order, and the bias."""
        steps, scales, bias = self._held()
        rows = steps.float() * scales[:, None]
        return rows.t().contiguous() if self.transposed else rows, bias

    def restored(self) -> nn.Module:
        """A float layer of the kind that it was made from, with the weight that the steps stand for."""
        weight, bias = self.weight_and_bias()
        with torch.device("meta"):
            make: Any = self.kind
            layer: nn.Module = make(self.out_features, self.in_features) if self.transposed else make(1, 1, bias=False)
        layer.in_features, layer.out_features = self.in_features, self.out_features  # type: ignore[assignment]
        layer.weight = nn.Parameter(weight)
        layer.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        return layer

    @property
    def numel(self) -> int:
        """How many numbers the weight and the bias hold."""
        return self.out_features * (self.in_features + self.has_bias)

    @property
    def nbytes(self) -> int:
        """Bytes of the steps, scales and bias."""
        return self.out_features * (self.in_features + 8)

    def check_place(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Refuse what would move tensors from the CPU.

        Raises: ValueError naming the device.
        """
        device = fn(torch.empty(0)).device
        if device.type != "cpu":
            raise ValueError(f"Weights of 8 bits are for the CPU; got device {device}. Call model.dequantize() first.")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.check_place(fn)
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


def _no_offsets(rows: Tensor) -> Tensor:
    return torch.zeros(len(rows), dtype=torch.long)


@contextmanager
def _quietly() -> Iterator[None]:
    """Tensors with scales of their own are deprecated in PyTorch, but its packed products have no other way in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def is_transposed(kind: type[nn.Module]) -> bool:
    """Whether a linear layer's weight is (in, out), as a Conv1D of the published files has it."""
    return bool(getattr(kind, "weight_is_transposed", False))


def quantize_layers(model: nn.Module, blocks: Collection[str], head: nn.Module | None) -> None:
    """Put an `Int8Linear` in the place of every linear layer within the named blocks, and of the head.

    One after the other, so that at no time two copies of more than a layer exist.
    """
    inside = {layer for each in model.modules() if type(each).__name__ in blocks for layer in each.modules()}
    for parent, name, layer in list(_places(model)):
        if (layer in inside or layer is head) and (type(layer) is nn.Linear or is_transposed(type(layer))):
            parent._modules[name] = Int8Linear.of(layer).train(layer.training)


def dequantize_layers(model: nn.Module) -> None:
    """Put float layers in the place of every `Int8Linear`."""
    for parent, name, layer in list(_places(model)):
        if isinstance(layer, Int8Linear):
            parent._modules[name] = layer.restored().train(layer.training)


def quantized_layers(model: nn.Module) -> list[Int8Linear]:
    """The layers of 8 bits in a model."""
    return [each for each in model.modules() if isinstance(each, Int8Linear)]


def _places(root: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in root.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child
