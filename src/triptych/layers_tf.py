"""The layers that TensorFlow models are made of, whose weights have the names and shapes of the published files.

An attribute is called as the file calls it, and a list of layers counts them, so the name of a weight is the way to it:
`named_weights(model)` reads `transformer.h.0.attn.c_attn.weight` off the attributes, and no table of names is needed.

Layers are called as functions, without what Keras does around a call: only whole models go through Keras. Weights are
cast to the dtype of what they meet, which is the compute dtype of Keras' policy from the embedding on.
"""

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

Tensor = Any  # TensorFlow publishes no types


class Module(keras.Layer):  # type: ignore[misc]  # Keras publishes no types
    """A layer whose weights are made at once, not at the first call, as their shapes are known."""

    has_published_names = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.built = True

    def normal(self, shape: tuple[int, ...], stddev: float) -> Any:
        """A new weight drawn from a normal distribution."""
        return self.add_weight(shape=shape, initializer=keras.initializers.RandomNormal(stddev=stddev), name="weight")

    def constant(self, shape: tuple[int, ...], value: float, name: str) -> Any:
        """A new weight of one value."""
        return self.add_weight(shape=shape, initializer=keras.initializers.Constant(value), name=name)


def named_weights(layer: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Published name and variable of every weight of a layer, in the order in which they were made."""
    for name, value in vars(layer).items():
        if name.startswith("_"):
            continue
        if isinstance(value, keras.Variable):
            yield prefix + name, value
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                if getattr(item, "has_published_names", False):
                    yield from named_weights(item, f"{prefix}{name}.{index}.")
        elif getattr(value, "has_published_names", False):
            yield from named_weights(value, f"{prefix}{name}.")


class Table(Module):
    """A layer whose weight has a row for each token or class."""

    weight: Any

    def resize(self, rows: int) -> None:
        """Grow or shrink the table; new rows start at the mean of the old ones."""
        old = tf.cast(self.weight.value, tf.float32)
        width = old.shape[1]
        mean = tf.reduce_mean(old, axis=0, keepdims=True)
        new = tf.concat([old[:rows], tf.repeat(mean, max(0, rows - old.shape[0]), axis=0)], axis=0)
        kept = self.weight
        self._tracker.unlock()
        self._untrack_variable(kept)
        self.weight = self.add_weight(
            shape=(rows, width), initializer="zeros", name="weight", dtype=kept.dtype, trainable=kept.trainable
        )
        self._tracker.lock()
        self.weight.assign(new)


class Conv1D(Module):
    """A linear layer whose weight is (in, out), as the published files of OpenAI GPT have it."""

    def __init__(self, out_features: int, in_features: int, initializer_range: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = self.normal((in_features, out_features), initializer_range)
        self.bias = self.constant((out_features,), 0.0, "bias")

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return times(x, cast(self.weight, x.dtype)) + cast(self.bias, x.dtype)


class Linear(Table):
    """A linear layer whose weight is (out, in)."""

    def __init__(
        self, in_features: int, out_features: int, initializer_range: float, bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.weight = self.normal((out_features, in_features), initializer_range)
        self.bias = self.constant((out_features,), 0.0, "bias") if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out = times(x, cast(self.weight, x.dtype), transposed=True)
        return out if self.bias is None else out + cast(self.bias, x.dtype)


def cast(weight: Any, dtype: Any) -> Tensor:
    """A weight as a tensor of that dtype."""
    return tf.cast(weight.value, dtype)


def times(x: Tensor, weight: Tensor, transposed: bool = False) -> Tensor:
    """(..., in) and a weight (in, out), or (out, in) if `transposed`, -> (..., out), as one product of matrices."""
    out = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), weight, transpose_b=transposed)
    return out if x.shape.rank == 2 else tf.reshape(out, tf.concat([tf.shape(x)[:-1], [out.shape[-1]]], axis=0))


class LayerNorm(Module):
    """Layer norm over the last axis, in float32 (Ba et al., 2016, arXiv:1607.06450)."""

    def __init__(self, width: int, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.weight = self.constant((width,), 1.0, "weight")
        self.bias = self.constant((width,), 0.0, "bias")

    def __call__(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), in x's dtype."""
        wide = tf.cast(x, tf.float32)
        mean, variance = tf.nn.moments(wide, axes=[-1], keepdims=True)
        normal = tf.cast((wide - mean) * tf.math.rsqrt(variance + self.epsilon), x.dtype)
        return normal * cast(self.weight, x.dtype) + cast(self.bias, x.dtype)


class Embedding(Table):
    """A table of vectors, (rows, width)."""

    def __init__(self, rows: int, width: int, initializer_range: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weight = self.normal((rows, width), initializer_range)

    def __call__(self, ids: Tensor) -> Tensor:
        """(...) -> (..., width)."""
        return tf.cast(tf.gather(self.weight.value, ids), self.compute_dtype)
