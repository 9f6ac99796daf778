"""Activation functions by their published names, in PyTorch."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


def _gelu_clipped(x: Tensor) -> Tensor:
    """GELU kept within 10 of zero, for quantised training (Wu et al., 2020, arXiv:2004.09602)."""
    return F.gelu(x).clamp(-10.0, 10.0)


def _laplace(x: Tensor) -> Tensor:
    """The distribution function of N(sqrt(1/2), 1 / (4 pi)) (Ma et al., 2022, arXiv:2209.10655)."""
    return 0.5 * (1.0 + torch.erf((x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)))


def _linear(x: Tensor) -> Tensor:
    return x


def _quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al., 2021, arXiv:2109.08668)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_10": _gelu_clipped,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python": F.gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "laplace": _laplace,
    "leaky_relu": F.leaky_relu,
    "linear": _linear,
    "mish": F.mish,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "relu2": _relu2,
    "relu6": F.relu6,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


class Activation(nn.Module):
    """The function of that name, as a module that hooks can watch; a function stands for itself.

    Raises: ValueError naming the known ones.
    """

    def __init__(self, name: str | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.name = name
        if callable(name):
            self.function = name
        elif isinstance(name, str) and name in ACTIVATIONS:
            self.function = ACTIVATIONS[name]
        else:
            raise ValueError(f"The activation function must be one of {', '.join(ACTIVATIONS)}; got {name!r}.")

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        """The name, as the module is printed."""
        return str(self.name)
