"""Lists of ids ↔ the tensors of a framework."""

from collections.abc import Callable
from typing import Any

import numpy as np

from triptych import frameworks
from triptych.tokenization.options import TensorType


def maker(kind: TensorType) -> Callable[[Any], Any]:
    """The function that turns a rectangular nest of numbers into a tensor.

    Ints become int64 for "pt" and "np", int32 otherwise; Python's floats float64 for "np", float32 otherwise.

    Raises: ImportError naming the extra to install if the framework is missing.
    """
    if kind is TensorType.PYTORCH:
        torch = frameworks.load("torch")
        return lambda value: torch.from_numpy(_single(value))
    if kind is TensorType.TENSORFLOW:
        tensorflow = frameworks.load("tensorflow")
        return lambda value: tensorflow.constant(_narrow(_single(value)))
    if kind is TensorType.JAX:
        jax_numpy = frameworks.load("jax").numpy
        return lambda value: jax_numpy.asarray(_narrow(_single(value)))
    return as_array


def as_array(value: Any) -> Any:
    """The values as a NumPy array; an empty list is a list of ids like any other, so it gives int64 too.

    Raises: ValueError if rows differ in length.
    """
    array = np.asarray(value)
    return array.astype(np.int64) if array.size == 0 and not is_tensor(value) else array


def _single(value: Any) -> Any:
    array = as_array(value)
    return array.astype(np.float32) if array.dtype == np.float64 and not is_tensor(value) else array


def _narrow(array: Any) -> Any:
    return array.astype(np.int32) if array.dtype == np.int64 else array


def is_tensor(value: Any) -> bool:
    """Whether the value is an array or a tensor of any framework."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def to_lists(value: Any) -> Any:
    """Arrays and tensors, also inside lists and tuples, as lists of Python numbers."""
    if isinstance(value, list):
        # One look decides for a list of ids: they are the common case and need no copy.
        return [to_lists(item) for item in value] if value and not isinstance(value[0], int | str) else value
    if isinstance(value, tuple):
        return [to_lists(item) for item in value]
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "numpy"):
        return value.numpy().tolist()
    return value


def kind_of(value: Any) -> TensorType | None:
    """Which framework a tensor belongs to; None if it is no tensor."""
    if not is_tensor(value):
        return None
    name = type(value).__module__.partition(".")[0]
    kinds = {"torch": TensorType.PYTORCH, "tensorflow": TensorType.TENSORFLOW, "numpy": TensorType.NUMPY}
    return kinds.get(name, TensorType.JAX if name in ("jax", "jaxlib") else None)
