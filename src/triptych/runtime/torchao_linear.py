"""Weights of 8 and 4 bits on a GPU, through torchao: inputs stay as they are, weights are widened as they are read.

8 bits have a scale for each output; 4 bits are rounded in groups of inputs, and multiplied in bfloat16 by the kernels
that PyTorch has for them. https://docs.pytorch.org/ao/stable/
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych import frameworks
from triptych.runtime.int4_linear import group_of
from triptych.runtime.quantized_linear import QuantizedLinear, refuse_endless


class TorchaoLinear(QuantizedLinear):
    """A linear layer (..., in) -> (..., out) whose weight is a tensor of torchao."""

    @classmethod
    def check(cls, device: torch.device) -> None:
        if not frameworks.is_available("torchao"):
            raise frameworks.missing("torchao")

    def _settings(self, torchao: Any) -> Any:
        """How torchao shall round a weight."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        weight, bias = self.packed
        return F.linear(x, weight, bias)

    def _pack(self, rows: Tensor, bias: Tensor | None) -> None:
        refuse_endless(rows.amin().float() - rows.amax().float())
        torchao = frameworks.load("torchao.quantization")
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.weight = nn.Parameter(rows.to(self._works_in, copy=True).contiguous(), requires_grad=False)
        torchao.quantize_(layer, self._settings(torchao))
        self._hold(layer.weight.detach(), None if bias is None else bias.to(self.dtype, copy=True))

    @property
    def _works_in(self) -> torch.dtype:
        return self.dtype

    def _held(self) -> tuple[Tensor, Tensor | None]:
        """The weight as torchao holds it, and the bias (out,)."""
        weight, bias = self.packed
        return weight, bias

    def _hold(self, weight: Tensor, bias: Tensor | None) -> None:
        self.packed = weight, bias

    def _move(self, device: torch.device) -> None:
        weight, bias = self.packed
        self.packed = weight.to(device), None if bias is None else bias.to(device, self.dtype)

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        device: torch.device = self.packed[0].device
        return device

    @property
    def nbytes(self) -> int:
        """Bytes of what torchao's tensor is made of, and of the bias."""
        weight, bias = self.packed
        parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        return sum(part.nbytes for part in (*parts, bias) if part is not None)


class TorchaoInt8Linear(TorchaoLinear):
    """A linear layer (..., in) -> (..., out) with a weight of 8 bits, for a GPU."""

    quantization = "int8"

    def product(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float16:
            return super().product(x)
        # torchao adds up steps of up to 127 before it scales them, which float16 has no room for
        weight, bias = self.packed
        out = F.linear(x * 2**-7, weight) * 2**7
        return out if bias is None else out + bias.to(x.dtype)

    def _settings(self, torchao: Any) -> Any:
        return torchao.Int8WeightOnlyConfig(set_inductor_config=False)

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.packed
        return weight.dequantize(torch.float32), bias


class TorchaoInt4Linear(TorchaoLinear):
    """A linear layer (..., in) -> (..., out) with a weight of 4 bits, for a GPU."""

    quantization = "int4"

    @classmethod
    def check(cls, device: torch.device) -> None:
        super().check(device)
        if torch.cuda.get_device_capability(device) < _TENSOR_CORES:
            has = ".".join(map(str, torch.cuda.get_device_capability(device)))
            raise ValueError(
                f"quantization='int4' needs a GPU of compute capability 8.0 or newer; this {_name(device)} has {has}. "
                "Pass quantization='int8'."
            )

    @classmethod
    def takes(cls, in_features: int) -> bool:
        return group_of(in_features) is not None

    @property
    def _works_in(self) -> torch.dtype:
        return torch.bfloat16

    def _settings(self, torchao: Any) -> Any:
        return torchao.Int4WeightOnlyConfig(
            group_size=group_of(self.in_features), int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )

    def _rows(self) -> tuple[Tensor, Tensor | None]:
        # torchao has no way back from this layout; the product with a one among zeros is a column, and nothing is lost
        weight, bias = self.packed
        ones = torch.eye(self.in_features, dtype=torch.bfloat16, device=self.device)
        columns = [F.linear(part, weight).float() for part in torch.split(ones, _COLUMNS)]
        return torch.cat(columns).t(), bias


_TENSOR_CORES = (8, 0)
_COLUMNS = 1024


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
