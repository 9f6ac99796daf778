"""Small GPT Neo models in Flax with large weights, for the tests: attention in them is far from uniform."""

import math
import os
from typing import Any

# These programs run for milliseconds: compiling them with less care is what saves time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax.numpy as jnp
import numpy as np

from triptych import FlaxGPTNeoForCausalLM, GPTNeoConfig
from triptych.trees import leaves_of, tree_of

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "max_position_embeddings": 40,
    "hidden_size": 12,
    "num_layers": 2,
    "num_heads": 3,
    "window_size": 3,
    "attention_types": [[["global", "local"], 1]],
}


def drawn(shapes: dict[str, Any], seed: int) -> dict[str, Any]:
    """Large random parameters of those shapes."""
    generator = np.random.default_rng(seed)
    found = {}
    for leaf, shape in leaves_of(shapes).items():
        noise = generator.standard_normal(shape.shape).astype(np.float32)
        scale = 0.4 if leaf[-1] == "embedding" else 1 / math.sqrt(shape.shape[0]) if noise.ndim == 2 else 0.2
        found[leaf] = jnp.asarray(noise * scale + (leaf[-1] == "scale"))
    return tree_of(found)


def made(model_class: Any, config: GPTNeoConfig, **kwargs: Any) -> Any:
    """A model that waits for its parameters: drawing them costs a second of compilation."""
    model = model_class(config, _do_init=False, **kwargs)
    model._is_initialized = True
    return model


def make(model_class: Any = FlaxGPTNeoForCausalLM, seed: int = 0, dtype: Any = jnp.float32, **fields: Any) -> Any:
    """A model; fields replace those of SMALL."""
    model = made(model_class, GPTNeoConfig(**(SMALL | fields)), dtype=dtype)
    model.params = drawn(model.params_shape_tree, seed)
    return model


def tokens(batch: int = 2, length: int = 9, seed: int = 0, vocab: int = 31) -> Any:
    return np.random.default_rng(seed).integers(1, vocab, (batch, length)).astype(np.int32)


def gap(a: Any, b: Any) -> float:
    """The largest absolute difference."""
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    assert a.shape == b.shape
    return float(np.abs(a - b).max())
