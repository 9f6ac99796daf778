"""Keys and values of the tokens so far, in TensorFlow: tensors of a fixed size, written where XLA can write in place.

A cache goes into a step and the changed one comes out; nothing about its shapes changes, so that one compiled loop can
carry it.

Shapes: B rows, H heads, T new tokens, S the capacity, D head_dim.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

Tensor = Any  # tf.Tensor; TensorFlow publishes no types


class LayerCache(NamedTuple):
    """`key` and `value` (B, H, S, D) of one layer."""

    key: Tensor
    value: Tensor


class Cache(NamedTuple):
    """The `layers`, and how many of their S places are taken: `length` ()."""

    layers: tuple[LayerCache, ...]
    length: Tensor

    @property
    def capacity(self) -> int:
        """S, how many tokens there is room for."""
        return int(self.layers[0].key.shape[2])


def new_cache(layers: int, batch: Any, heads: int, capacity: int, head_dim: int, dtype: Any = "float32") -> Cache:
    """An empty cache for `batch` rows and `capacity` tokens."""
    empty = tf.zeros((batch, heads, capacity, head_dim), dtype)
    return Cache(tuple(LayerCache(empty, empty) for _ in range(layers)), tf.constant(0, tf.int32))


def append(layer: LayerCache, key: Tensor, value: Tensor, length: Tensor) -> LayerCache:
    """The layer with `key` and `value` (B, H, T, D) written behind the first `length` tokens."""
    start = tf.stack([0, 0, tf.cast(length, tf.int32), 0])
    return LayerCache(*(_written(old, new, start) for old, new in zip(layer, (key, value), strict=True)))


def _written(old: Tensor, new: Tensor, start: Tensor) -> Tensor:
    return keras.ops.slice_update(old, start, tf.cast(new, old.dtype))


def visible(attention_mask: Tensor, length: Tensor, new: int) -> Tensor:
    """Which of the S places (B, 1, T, S) each of `new` = T tokens behind the first `length` may see.

    These are the places up to its own that `attention_mask` (B, S), bool, leaves.
    """
    places = tf.range(attention_mask.shape[1])
    own = length + tf.range(new)
    return attention_mask[:, None, None, :] & (places <= own[:, None])


def advanced(cache: Cache, layers: tuple[LayerCache, ...], new: int) -> Cache:
    """The cache after a step that wrote `new` tokens into `layers`."""
    return Cache(layers, cache.length + new)


def picked(cache: Cache, rows: Tensor) -> Cache:
    """The cache with its `rows` (n,) in the order asked for; some may be asked for more than once, or not at all."""
    return Cache(tuple(LayerCache(*(tf.gather(leaf, rows) for leaf in layer)) for layer in cache.layers), cache.length)
