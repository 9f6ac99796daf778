"""What the Flax models are given, checked before any other work. Values are looked at only where they are known: inside
`jit`, `vmap` and `grad` of the inputs there are shapes alone.

Shapes: B batch, T new tokens, L capacity of the cache.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from triptych.errors import SequenceTooLongError, TokenIdError


def is_near(value: Any) -> bool:
    """Whether an array's numbers can be looked at without waiting for an accelerator."""
    if isinstance(value, jax.core.Tracer):
        return False
    return not isinstance(value, jax.Array) or next(iter(value.devices())).platform == "cpu"


def is_known(value: Any) -> bool:
    """Whether the numbers of (B, T) can be looked at: on an accelerator not at every single token."""
    if isinstance(value, jax.core.Tracer):
        return False
    return bool(value.size) and (is_near(value) or value.shape[-1] > 1)


def checked_ids(input_ids: Any, vocab_size: int) -> jax.Array:
    """Ids (B, T) as an array of int32.

    Raises: TypeError for other numbers than ints; ValueError for another rank; TokenIdError naming the first id outside
        the vocabulary and its place.
    """
    ids = input_ids if isinstance(input_ids, jax.Array | np.ndarray) else np.asarray(input_ids)
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(
            f"input_ids must hold ids, which are ints; got {ids.dtype}. "
            'Make them with tokenizer(texts, return_tensors="np").'
        )
    if ids.ndim != 2:
        raise ValueError(
            f"input_ids must have shape (batch, length); got {ids.shape}. For one row, pass input_ids[None, :]."
        )
    if is_known(ids):
        values = np.asarray(ids)
        outside = (values < 0) | (values >= vocab_size)
        if outside.any():
            place = [int(index) for index in np.argwhere(outside)[0]]
            raise TokenIdError(
                f"input_ids must be from 0 to {vocab_size - 1}, the vocabulary's size less one; got "
                f"{values[tuple(place)]} at {place}. Use the tokenizer that belongs to the model."
            )
    return jnp.asarray(ids, jnp.int32)


def checked_mask(attention_mask: Any, batch: int, length: int, capacity: int | None) -> jax.Array | None:
    """The documented mask as booleans: (B, T), or (B, L) with a cache, whose places to come count as tokens.

    Raises: ValueError for any other shape.
    """
    if attention_mask is None:
        return None
    mask = jnp.asarray(attention_mask) != 0
    most = length if capacity is None else capacity
    if mask.ndim != 2 or mask.shape[0] != batch or not length <= mask.shape[1] <= most:
        wanted = f"{(batch, length)}" if capacity is None else f"({batch}, {length} to {capacity})"
        raise ValueError(f"attention_mask must have shape (batch, tokens) = {wanted}; got {mask.shape}.")
    return jnp.pad(mask, ((0, 0), (0, most - mask.shape[1])), constant_values=True)


def checked_positions(position_ids: Any, batch: int, length: int, positions: int) -> jax.Array:
    """Positions (B, T), (1, T) or (T,) as (B, T).

    Raises: ValueError for another shape; SequenceTooLongError for a position that the model has no embedding for.
    """
    given = position_ids if isinstance(position_ids, jax.Array | np.ndarray) else np.asarray(position_ids)
    if given.shape not in ((batch, length), (1, length), (length,)):
        raise ValueError(f"position_ids must have shape {(batch, length)}; got {given.shape}.")
    if is_known(given) and (np.min(given) < 0 or np.max(given) >= positions):
        raise SequenceTooLongError(
            f"position_ids must be from 0 to {positions - 1}, the model's positions less one; got {np.min(given)} to "
            f"{np.max(given)}. Shorten the input, or count positions from its first token."
        )
    return jnp.broadcast_to(jnp.asarray(given, jnp.int32), (batch, length))


def check_length(needed: int, positions: int) -> None:
    """Raises: SequenceTooLongError for more tokens than the model has positions."""
    if needed > positions:
        raise SequenceTooLongError(
            f"The model has {positions} positions but was given {needed} tokens. Shorten the input, for example with "
            f"tokenizer(..., truncation=True, max_length={positions})."
        )


def warn_of_left_padding(attention_mask: Any) -> None:
    """Without positions, padding on the left counts as positions, which is seldom meant."""
    if attention_mask is None or isinstance(attention_mask, jax.core.Tracer):
        return
    if is_known(attention_mask) and bool((np.asarray(attention_mask)[:, 0] == 0).any()):
        warnings.warn(
            "The batch is padded on the left but position_ids were not given, so padding counts as positions. Pass "
            "position_ids=(attention_mask.cumsum(-1) - 1).clip(0), or use generate(), which does.",
            stacklevel=3,
        )
