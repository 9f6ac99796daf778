"""Activation functions by their published names, in TensorFlow."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

Tensor = Any  # TensorFlow publishes no types

# The tanh approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415), and the function itself.
_gelu_tanh = partial(tf.nn.gelu, approximate=True)
_gelu = partial(tf.nn.gelu, approximate=False)


def _gelu_clipped(x: Tensor) -> Tensor:
    """GELU kept within 10 of zero, for quantised training (Wu et al., 2020, arXiv:2004.09602)."""
    return tf.clip_by_value(_gelu(x), -10.0, 10.0)


def _laplace(x: Tensor) -> Tensor:
    """The distribution function of N(sqrt(1/2), 1 / (4 pi)) (Ma et al., 2022, arXiv:2209.10655)."""
    return 0.5 * (1.0 + tf.math.erf((x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)))


def _quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    return x * tf.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al., 2021, arXiv:2109.08668)."""
    return tf.square(tf.nn.relu(x))


def _mish(x: Tensor) -> Tensor:
    """X tanh(softplus(x)) (Misra, 2019, arXiv:1908.08681)."""
    return x * tf.tanh(tf.math.softplus(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu,
    "gelu_10": _gelu_clipped,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "laplace": _laplace,
    "leaky_relu": partial(tf.nn.leaky_relu, alpha=0.01),
    "linear": tf.identity,
    "mish": _mish,
    "quick_gelu": _quick_gelu,
    "relu": tf.nn.relu,
    "relu2": _relu2,
    "relu6": tf.nn.relu6,
    "selu": tf.nn.selu,
    "sigmoid": tf.sigmoid,
    "silu": tf.nn.silu,
    "swish": tf.nn.silu,
    "tanh": tf.tanh,
}


def activation(name: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The function of that name; a function stands for itself.

    Raises: ValueError naming the known ones.
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"The activation function must be one of {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]
