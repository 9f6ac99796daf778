"""What the TensorFlow models are given: the three documented forms of input, and checks before any other work.

Values are looked at only where they are known; inside `tf.function` there are shapes alone.

Shapes: B batch, T new tokens, C hidden_size, H heads, L layers.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from triptych.errors import SequenceTooLongError, TokenIdError

Tensor = Any  # TensorFlow publishes no types


def by_name(names: Sequence[str], first: Any, others: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call by name, whichever of the documented forms they came in.

    `names` are the inputs in their documented order. The first argument is a tensor, a list or tuple of inputs in that
    order, or a mapping of names; other positional arguments follow a tensor. Keywords go with any form.

    Raises: ValueError for an input given twice; TypeError for a name that there is not, for too many inputs and for
        something that is no input.
    """
    if isinstance(first, Mapping):
        if others:
            raise TypeError("Inputs given as a dict are all in it; got more positional arguments. Put them into it.")
        given = {str(name): value for name, value in first.items()}
    elif isinstance(first, list | tuple) and not _is_of_numbers(first):
        if others:
            raise TypeError(
                "Inputs are a list or tuple of all of them, or positional arguments; got both. Pass one of the two."
            )
        given = _in_order(names, tuple(first))
    else:
        given = _in_order(names, (first, *others)) if first is not None or others else {}
    unknown = [name for name in given if name not in names and name not in _CARRIED]
    if unknown:
        raise TypeError(
            f"The inputs are {', '.join(names)}; got {', '.join(map(repr, unknown))} in the dict. Leave out what the "
            "model does not take."
        )
    given = {name: value for name, value in given.items() if name in names and value is not None}
    for name, value in keywords.items():
        if value is not None and name in given:
            raise ValueError(f"{name} was given twice, by its place or in a dict and by keyword. Pass it once.")
    return {**given, **{name: value for name, value in keywords.items() if value is not None}}


# What a tokenizer or a data set may carry along and no model takes.
_CARRIED = frozenset({"special_tokens_mask", "length", "overflow_to_sample_mapping", "offset_mapping"})


def _is_of_numbers(values: Sequence[Any]) -> bool:
    """Whether nested lists are ids themselves, as [[1, 2]], and not a list of inputs."""
    leaf: Any = values
    while isinstance(leaf, list | tuple) and leaf:
        leaf = leaf[0]
    return isinstance(leaf, int)


def _in_order(names: Sequence[str], values: tuple[Any, ...]) -> dict[str, Any]:
    if len(values) > len(names):
        raise TypeError(f"There are {len(names)} inputs, {', '.join(names)}; got {len(values)}.")
    for name, value in zip(names, values, strict=False):
        if isinstance(value, Mapping | str):
            raise TypeError(f"{name}, in its place, must be a tensor; got {type(value).__name__}. Pass inputs by name.")
    return dict(zip(names, values, strict=False))


def checked_ids(name: str, values: Any, vocab_size: int) -> Tensor:
    """Ids (..., T), at least of two axes, as int32.

    Raises: TypeError for other numbers than ints; ValueError for another rank; TokenIdError naming the first id outside
        the vocabulary and its place.
    """
    ids = values if tf.is_tensor(values) else tf.convert_to_tensor(values)
    if not ids.dtype.is_integer:
        raise TypeError(
            f"{name} must hold ids, which are ints; got {ids.dtype.name}. "
            'Make them with tokenizer(texts, return_tensors="tf").'
        )
    if ids.shape.rank is not None and ids.shape.rank < 2:
        raise ValueError(
            f"{name} must have shape (batch, length); got {tuple(ids.shape)}. For one row, pass ids[None]."
        )
    if is_known(ids):
        looked_at = ids.numpy()
        outside = (looked_at < 0) | (looked_at >= vocab_size)
        if outside.any():
            place = [int(index) for index in np.argwhere(outside)[0]]
            raise TokenIdError(
                f"{name} must be from 0 to {vocab_size - 1}, the vocabulary's size less one; got "
                f"{looked_at[tuple(place)]} at {place}. Use the tokenizer that belongs to the model, or call "
                "resize_token_embeddings(len(tokenizer))."
            )
    return tf.cast(ids, tf.int32)


def is_known(values: Any) -> bool:
    """Whether a tensor's numbers can be looked at."""
    return hasattr(values, "numpy") and tf.executing_eagerly()


def as_rows(values: Tensor) -> Tensor:
    """(..., T) -> (B, T): all axes before the last are the batch."""
    if values.shape.rank == 2:
        return values
    return tf.reshape(values, tf.stack([-1, tf.shape(values)[-1]]))


def checked_mask(attention_mask: Any, rows: Tensor) -> Tensor | None:
    """The documented mask as booleans (B, T), True at tokens, for `rows` (B, T, ...).

    Raises: ValueError for another shape.
    """
    if attention_mask is None:
        return None
    mask = as_rows(tf.convert_to_tensor(attention_mask))
    mask = mask if mask.dtype == tf.bool else mask != 0
    if not mask.shape.is_compatible_with(rows.shape[:2]):
        raise ValueError(
            f"attention_mask must have shape (batch, tokens) = {tuple(rows.shape[:2])}; got {tuple(mask.shape)}."
        )
    return mask


def checked_positions(position_ids: Any, attention_mask: Any, rows: Tensor, length: Any, positions: int) -> Tensor:
    """Positions (B, T), (1, T) or (T,) of `rows` (B, T, ...) as int32; counted from 0 where they were not given.

    Raises: ValueError for another shape; TypeError for other numbers than ints; SequenceTooLongError for more tokens or
        another position than the model has embeddings for.
    """
    if isinstance(length, int) and length > positions:
        raise SequenceTooLongError(
            f"The model has {positions} positions but was given {length} tokens. Shorten the input, for example with "
            f"tokenizer(..., truncation=True, max_length={positions})."
        )
    if position_ids is None:
        _warn_of_left_padding(attention_mask)
        return tf.range(length)
    given = tf.convert_to_tensor(position_ids)
    if not given.dtype.is_integer:
        raise TypeError(f"position_ids must be ints; got {given.dtype.name}.")
    given = given if given.shape.rank == 1 else as_rows(given)
    batch, length = rows.shape[:2]
    if not any(given.shape.is_compatible_with(shape) for shape in ((batch, length), (1, length), (length,))):
        raise ValueError(f"position_ids must have shape {(batch, length)}; got {tuple(given.shape)}.")
    if is_known(given):
        values = given.numpy()
        if values.size and (values.min() < 0 or values.max() >= positions):
            raise SequenceTooLongError(
                f"position_ids must be from 0 to {positions - 1}, the model's positions less one; got "
                f"{values.min()} to {values.max()}. Shorten the input, or count positions from its first token."
            )
    return tf.cast(given, tf.int32)


def _warn_of_left_padding(attention_mask: Any) -> None:
    """Without positions, padding on the left counts as positions, which is seldom meant."""
    if attention_mask is None or not (is_known(attention_mask) or isinstance(attention_mask, np.ndarray)):
        return
    if bool((np.asarray(attention_mask)[..., 0] == 0).any()):
        warnings.warn(
            "The batch is padded on the left but position_ids were not given, so padding counts as positions. Pass "
            "position_ids=tf.maximum(tf.cumsum(attention_mask, axis=-1) - 1, 0), or use generate(), which does.",
            stacklevel=3,
        )


def per_layer_head_mask(head_mask: Any, layers: int, heads: int) -> list[Tensor | None]:
    """(H,) or (L, H) -> a mask (H,) for each layer.

    Raises: ValueError for another shape.
    """
    if head_mask is None:
        return [None] * layers
    mask = tf.cast(tf.convert_to_tensor(head_mask), tf.float32)
    if tuple(mask.shape) not in ((heads,), (layers, heads)):
        raise ValueError(f"head_mask must have shape {(heads,)} or {(layers, heads)}; got {tuple(mask.shape)}.")
    return [mask if mask.shape.rank == 1 else mask[layer] for layer in range(layers)]
