"""What all quantised linear layers share: they stand in a model as the float layers that they were made from."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class QuantizedLinear(nn.Module):
    """A linear layer (..., in) -> (..., out) whose weight is held in few bits. Nothing of it is trained.

    In a state dict it is the layer that it was made from: a float weight, in that layer's order and dtype, and the
    bias. A kind says how a weight is packed and unpacked; what `packed` is only its own methods know.
    """

    quantization: ClassVar[str]
    packed: Any

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, kind: type[nn.Module], dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.kind = kind
        self.has_bias = bias is not None
        self.transposed = is_transposed(kind)
        self.dtype = dtype or weight.dtype
        rows = self._as_rows(weight)
        self.out_features, self.in_features = rows.shape
        self._pack(rows, bias)

    @classmethod
    def of(cls, layer: Any, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same layer with fewer bits; it stands for a float layer of that device and dtype, else of its own."""
        weight, bias = layer.weight.detach().to(device), layer.bias
        return cls(weight, None if bias is None else bias.detach().to(device), kind=type(layer), dtype=dtype)

    # -- what a kind says ------------------------------------------------------------------------------------

    @classmethod
    def check(cls, device: torch.device) -> None:
        """Refuse a machine that has no kernels of this kind.

        Raises: ValueError naming what it has; ImportError naming the extra that brings a missing library.
        """
        raise NotImplementedError

    @classmethod
    def takes(cls, in_features: int) -> bool:
        """Whether a layer of that many inputs can be held so."""
        return True

    def product(self, x: Tensor) -> Tensor:
        """The layer's output for an x that no gradient is wanted of, in its dtype; without the cost of a module."""
        raise NotImplementedError

    def _pack(self, rows: Tensor, bias: Tensor | None) -> None:
        """Hold a weight (out, in) of any strides and any floating dtype; neither it nor the bias is kept.

        Raises: ValueError if a number is none.
        """
        raise NotImplementedError

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in) that the bits stand for, in float32, and the bias."""
        raise NotImplementedError

    def _held(self) -> tuple[Any, ...]:
        """What is packed, in a form that any machine reads."""
        raise NotImplementedError

    def _hold(self, *held: Any) -> None:
        """Pack what `_held` gave, maybe on another machine."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the layer computes."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the weight's bits, of what scales them, and of the bias."""
        raise NotImplementedError

    def _move(self, device: torch.device) -> None:
        """Go to another device of the same type."""

    # -- what all kinds share --------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("Quantised weights cannot be trained. Call model.dequantize() before training.")
        return self.product(x)

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weight that the bits stand for, in the file's order, and the bias; both in the float layer's dtype."""
        rows, bias = self._rows()
        return self._as_rows(rows).to(self.dtype).contiguous(), None if bias is None else bias.to(self.dtype)

    def _as_rows(self, weight: Tensor) -> Tensor:
        """A weight in the file's order as (out, in), or the other way round."""
        return weight.t() if self.transposed else weight

    def restored(self) -> nn.Module:
        """A float layer of the kind that it was made from, with the weight that the bits stand for."""
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

    def check_place(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Refuse what would move tensors to a device of another type, for which the weight is not packed.

        Raises: ValueError naming the device.
        """
        device = fn(torch.empty(0, device=self.device)).device
        if device.type != self.device.type:
            raise ValueError(
                f"Weights quantised to {self.quantization} are packed for {self.device.type} and cannot be moved to "
                f"{device}. Call model.dequantize() first, or load with device_map={str(device)!r}."
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.check_place(fn)
        like = fn(torch.empty(0, dtype=self.dtype, device=self.device))
        self.dtype = like.dtype
        self._move(like.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "packed"} | {"held": self._held()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        held = state.pop("held")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._hold(*held)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight, bias = self.weight_and_bias()
        destination[prefix + "weight"] = weight
        if bias is not None:
            destination[prefix + "bias"] = bias

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        own = {"weight": self._as_rows(torch.empty(self.out_features, self.in_features, device="meta")).shape}
        if self.has_bias:
            own["bias"] = torch.Size([self.out_features])
        given = {name: state[prefix + name] for name in own if prefix + name in state}
        wrong = [name for name, value in given.items() if value.shape != own[name]]
        errors.extend(f"{prefix}{name} has shape {tuple(given[name].shape)}, not {tuple(own[name])}." for name in wrong)
        if strict:
            missing.extend(prefix + name for name in own if name not in given)
            unexpected.extend(key for key in state if key.startswith(prefix) and key[len(prefix) :] not in own)
        if given and not wrong:
            weight, bias = given.get("weight"), given.get("bias")
            if bias is None and self.has_bias:
                bias = self._rows()[1]
            rows = self._rows()[0] if weight is None else self._as_rows(weight.to(self.device))
            self._pack(rows, None if bias is None else bias.to(self.device))

    def extra_repr(self) -> str:
        """The sizes, as the module is printed."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def is_transposed(kind: type[nn.Module]) -> bool:
    """Whether a linear layer's weight is (in, out), as a Conv1D of the published files has it."""
    return bool(getattr(kind, "weight_is_transposed", False))


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few rows of each tensor (rows, …), again and again.

    They are so few that PyTorch shares out none of the work on them, which takes longer than the work where other
    programs are at work too; and what is computed on the way stays in the processor's cache.
    """
    rows = max(1, (_SHARED_OUT - 1) // tensors[0].shape[1])
    return zip(*(torch.split(each, rows) for each in tensors), strict=True)


_SHARED_OUT = 2**15  # numbers from which PyTorch shares an operation out among threads


def refuse_endless(*values: Tensor) -> None:
    """Refuse weights that are infinity or NaN, or so large that their range is.

    Raises: ValueError.
    """
    if not all(bool(value.isfinite().all()) for value in values):
        raise ValueError("Quantised weights must be finite; got infinity or NaN. Mend or reload the weights.")
