"""Logits transforms in JAX: functions that change the next token's scores inside the compiled loop of `generate`.

`logits_rules` tells which options ask for which of them, in which order. A transform maps the ids so far
(B, L), of which the first `length` are there, and scores (B, V) to scores (B, V). `length` is an array that changes
from step to step, so every transform does the same work at every step.

Shapes: B rows, N ids of the prompt, L ids of the longest text, V vocabulary.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from triptych.generation import logits_rules
from triptych.generation.checks import INF, as_ids, require_ids, require_int, require_number, require_open_share
from triptych.generation.logits_rules import Call

Array = jax.Array
Transform = Callable[[Array, Array, Any], Array]  # ids (B, L), scores (B, V), length -> scores (B, V)


def transforms(call: Call, custom: Sequence[Transform] | None) -> Transform:
    """All transforms of a step as one: rules, the user's own, warpers when sampling, normalisation.

    Raises: ValueError for an option out of its range.
    """
    return logits_rules.transforms(sys.modules[__name__], call, custom)


def log_probabilities(ids: Array, scores: Array, length: Any) -> Array:
    """Scores whose exponentials add up to 1."""
    return jax.nn.log_softmax(scores, axis=-1)


# -- helpers -------------------------------------------------------------------------------------------------------


def _without(scores: Array, ids: Sequence[int]) -> Array:
    return scores.at[:, np.asarray(ids)].set(-INF)


def _only(scores: Array, ids: Sequence[int]) -> Array:
    return jnp.full_like(scores, -INF).at[:, np.asarray(ids)].set(0.0)


def _marked(scores: Array, ids: Array, counts: Array) -> Array:
    """True at the vocabulary's places (B, V) of those `ids` (B, n) that count (B or 1, n)."""
    vocabulary = scores.shape[1]
    places = jnp.where(counts, ids, vocabulary)  # one column more takes those that do not count
    rows = jnp.arange(len(ids))[:, None]
    return jnp.zeros((len(ids), vocabulary + 1), bool).at[rows, places].set(True)[:, :vocabulary]


# -- repetition ----------------------------------------------------------------------------------------------------


def repetition(penalty: float) -> Transform:
    """Make tokens that already stand in the row less likely, by the factor `penalty` (Keskar et al., 2019, CTRL)."""
    require_number("repetition_penalty", penalty, above=0.0)

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        seen = _marked(scores, ids, jnp.arange(ids.shape[1])[None] < length)
        return jnp.where(seen, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)

    return transform


def prompt_repetition(penalty: float, prompt_length: int) -> Transform:
    """Make tokens of the prompt more likely, by the factor `penalty`."""
    require_number("encoder_repetition_penalty", penalty, above=0.0)
    inner = repetition(1 / penalty)
    return lambda ids, scores, length: inner(ids[:, :prompt_length], scores, prompt_length)


def no_repeats(name: str, n: int, prompt_length: int | None = None) -> Transform:
    """Forbid the token that would complete a run of `n` tokens of the row, or of its prompt (Paulus et al., 2017)."""
    require_int(name, n, 1)

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        source = ids if prompt_length is None else ids[:, :prompt_length]
        count = source.shape[1] - n + 1  # runs
        if count < 1 or ids.shape[1] < n - 1:
            return scores
        tail = lax.dynamic_slice_in_dim(ids, length - n + 1, n - 1, axis=1)  # (B, n - 1), the row's end
        is_whole = jnp.arange(count) + n <= (length if prompt_length is None else source.shape[1])
        same = jnp.broadcast_to(is_whole[None], (len(ids), count)) & (length >= n - 1)
        for place in range(n - 1):
            same &= source[:, place : place + count] == tail[:, place : place + 1]
        return jnp.where(_marked(scores, source[:, n - 1 :], same), -INF, scores)

    return transform


# -- sequences of tokens -------------------------------------------------------------------------------------------


def biased(pairs: Sequence[tuple[Sequence[int], float]]) -> Transform:
    """Add a bias to the last token of each sequence whose other tokens end the row."""
    width = max((len(ids) - 1 for ids, _ in pairs), default=0)
    starts = np.array([[-1] * (width - len(ids) + 1) + list(ids[:-1]) for ids, _ in pairs], np.int32)
    starts = starts.reshape(len(pairs), width)
    lengths = np.array([len(ids) for ids, _ in pairs], np.int32)
    last = np.array([ids[-1] for ids, _ in pairs], np.int32)
    bias = np.array([value for _, value in pairs], np.float32)

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        padded = jnp.pad(ids, ((0, 0), (width, 0)), constant_values=-1)
        tail = lax.dynamic_slice_in_dim(padded, length, width, axis=1)  # (B, width), the row's end
        fits = ((starts == -1) | (starts == tail[:, None])).all(axis=-1) & (lengths <= length)  # (B, pairs)
        return scores + jnp.zeros_like(scores).at[:, last].add(jnp.where(fits, bias, 0.0))

    return transform


# -- the end and the beginning -------------------------------------------------------------------------------------


def at_length(is_there: Callable[[Any], Any], change: Callable[[Array], Array]) -> Transform:
    """Change the scores at the steps where the row's length is the right one."""
    return lambda ids, scores, length: jnp.where(is_there(length), change(scores), scores)


def shortest(name: str, least: int, prompt_length: int, eos_token_id: Any) -> Transform:
    """Forbid the end until `least` tokens follow the first `prompt_length`."""
    require_int(name, least, 0)
    require_ids("eos_token_id", eos_token_id)
    return at_length(
        lambda length: length - prompt_length < least, lambda scores: _without(scores, as_ids(eos_token_id))
    )


def forced(name: str, ids: Any, place: int) -> Transform:
    """Make one of `ids` the token at `place`."""
    require_ids(name, ids)
    return at_length(lambda length: length == place, lambda scores: _only(scores, as_ids(ids)))


def rising_end(pair: Any, eos_token_id: Any, prompt_length: int) -> Transform:
    """Raise the end's score ever more, by `factor`**n, once the row is n tokens past `start` new ones."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"exponential_decay_length_penalty must be (start, factor); got {pair!r}.")
    require_ids("eos_token_id", eos_token_id)
    start, factor = pair
    ends = np.asarray(as_ids(eos_token_id))

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        past = length - prompt_length - start
        raised = scores[:, ends] + jnp.abs(scores[:, ends]) * (jnp.asarray(factor, jnp.float32) ** past - 1)
        return jnp.where(past > 0, scores.at[:, ends].set(raised), scores)

    return transform


def suppressed(name: str, ids: Any, place: int | None = None) -> Transform:
    """Forbid tokens at every step, or where the row holds `place` tokens."""
    require_ids(name, ids)
    return at_length(
        lambda length: True if place is None else length == place, lambda scores: _without(scores, as_ids(ids))
    )


def finite(ids: Array, scores: Array, length: Any) -> Array:
    """Replace NaN by 0 and infinities by the largest finite numbers, so that sampling cannot fail."""
    return jnp.nan_to_num(scores, nan=0.0)


# -- warpers -------------------------------------------------------------------------------------------------------


def temperature(value: Any) -> Transform:
    """Divide the scores: below 1 sharpens the distribution, above 1 flattens it."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise ValueError(
            f"temperature must be a number above 0; got {value!r}. For the most likely token at each step, "
            "pass do_sample=False."
        )
    return lambda ids, scores, length: scores / value


def top_k(count: Any) -> Transform:
    """Keep the `count` likeliest tokens, and those as likely as the last of them (Fan et al., 2018)."""
    require_int("top_k", count, 1)

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        least = lax.top_k(scores, min(count, scores.shape[-1]))[0][:, -1:]
        return jnp.where(scores < least, -INF, scores)

    return transform


def top_p(share: Any) -> Transform:
    """Keep the smallest set of tokens whose probability reaches `share` (Holtzman et al., 2020)."""
    require_number("top_p", share, least=0.0)
    if share > 1.0:
        raise ValueError(f"top_p is a probability, from 0 to 1; got {share!r}.")

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        order = jnp.argsort(scores, axis=-1)
        ascending = jnp.take_along_axis(scores, order, axis=-1)
        out = jnp.cumsum(jax.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - share
        return _where_unsorted(scores, out.at[:, -1].set(False), order)

    return transform


def typical(mass: Any) -> Transform:
    """Keep the tokens of nearly the expected surprise, up to the probability `mass` (Meister et al., 2022)."""
    require_open_share("typical_p", mass)

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        log_p = jax.nn.log_softmax(scores, axis=-1)
        entropy = -jnp.nansum(log_p * jnp.exp(log_p), axis=-1, keepdims=True)
        distance = jnp.abs(-log_p - entropy)
        order = jnp.argsort(distance, axis=-1)
        near = jnp.take_along_axis(distance, order, axis=-1)
        p = jax.nn.softmax(jnp.take_along_axis(scores, order, axis=-1), axis=-1)
        last = jnp.sum(jnp.cumsum(p, axis=-1) < mass, axis=-1, keepdims=True)
        out = near > jnp.take_along_axis(near, jnp.minimum(last, scores.shape[-1] - 1), axis=-1)
        return _where_unsorted(scores, out.at[:, 0].set(False), order)

    return transform


def _where_unsorted(scores: Array, out: Array, order: Array) -> Array:
    """-inf at tokens that are out; `out` is in the order of `order`."""
    return jnp.where(jnp.take_along_axis(out, jnp.argsort(order, axis=-1), axis=-1), -INF, scores)


def epsilon(least: Any) -> Transform:
    """Keep the tokens whose probability is at least `least` (Hewitt et al., 2022)."""
    require_open_share("epsilon_cutoff", least)
    return lambda ids, scores, length: _cut(scores, jax.nn.softmax(scores, axis=-1) < least)


def eta(value: Any) -> Transform:
    """Keep the tokens of probability min(eta, sqrt(eta) * exp(-entropy)) or more (Hewitt et al., 2022)."""
    require_open_share("eta_cutoff", value)

    def transform(ids: Array, scores: Array, length: Any) -> Array:
        log_p = jax.nn.log_softmax(scores, axis=-1)
        p = jnp.exp(log_p)
        entropy = -jnp.sum(p * jnp.maximum(log_p, np.finfo(np.float32).min), axis=-1, keepdims=True)
        return _cut(scores, p < jnp.minimum(value**0.5 * jnp.exp(-entropy), value))

    return transform


def _cut(scores: Array, out: Array) -> Array:
    return jnp.where(out & (scores < scores.max(axis=-1, keepdims=True)), -INF, scores)
