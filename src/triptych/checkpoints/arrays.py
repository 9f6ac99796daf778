"""Checkpoints as NumPy arrays, for the frameworks that are not PyTorch."""

from typing import Any

import numpy as np

from triptych import frameworks

# Floating dtypes that NumPy knows only with ml_dtypes, which JAX and TensorFlow bring.
_EXTENDED = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name in a file ("float32", "bfloat16", …)."""
    return np.dtype(getattr(frameworks.load("ml_dtypes"), name) if name in _EXTENDED else name)


def is_floating(dtype: Any) -> bool:
    """Whether a dtype of NumPy or ml_dtypes is of real numbers."""
    return np.issubdtype(dtype, np.floating) or np.dtype(dtype).name in _EXTENDED
