"""Activation functions by their published names, in JAX."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

# The tanh approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415), and the function itself.
_gelu_tanh = partial(jax.nn.gelu, approximate=True)
_gelu = partial(jax.nn.gelu, approximate=False)


def _gelu_clipped(x: jax.Array) -> jax.Array:
    """GELU kept within 10 of zero, for quantised training (Wu et al., 2020, arXiv:2004.09602)."""
    return jnp.clip(_gelu(x), -10.0, 10.0)


def _laplace(x: jax.Array) -> jax.Array:
    """The distribution function of N(sqrt(1/2), 1 / (4 pi)) (Ma et al., 2022, arXiv:2209.10655)."""
    return 0.5 * (1.0 + jax.lax.erf((x - math.sqrt(0.5)) / math.sqrt(0.5 / math.pi)))


def _linear(x: jax.Array) -> jax.Array:
    return x


def _quick_gelu(x: jax.Array) -> jax.Array:
    """The sigmoid approximation of GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415)."""
    return x * jax.nn.sigmoid(1.702 * x)


def _relu2(x: jax.Array) -> jax.Array:
    """Squared ReLU (So et al., 2021, arXiv:2109.08668)."""
    return jnp.square(jax.nn.relu(x))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_10": _gelu_clipped,
    "gelu_accurate": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_python": _gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "laplace": _laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": _linear,
    "mish": jax.nn.mish,
    "quick_gelu": _quick_gelu,
    "relu": jax.nn.relu,
    "relu2": _relu2,
    "relu6": jax.nn.relu6,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation(name: str | Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """The function of that name; a function stands for itself.

    Raises: ValueError naming the known ones.
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise ValueError(f"The activation function must be one of {', '.join(ACTIVATIONS)}; got {name!r}.")
    return ACTIVATIONS[name]
