"""Logits transforms in TensorFlow: functions that change the next token's scores in the compiled loop of `generate`.

`logits_rules` tells which options ask for which of them, in which order. A transform maps the ids so far (B, L), of
which the first `length` are there, and scores (B, V) to scores (B, V). `length` is a tensor that changes from step to
step, so every transform does the same work at every step, with shapes that XLA knows.

Shapes: B rows, N ids of the prompt, L ids of the longest text, V vocabulary.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from triptych.generation import logits_rules
from triptych.generation.checks import INF, as_ids, require_ids, require_int, require_number, require_open_share
from triptych.generation.logits_rules import Call

Tensor = Any  # tf.Tensor; TensorFlow publishes no types
Transform = Callable[[Tensor, Tensor, Any], Tensor]  # ids (B, L), scores (B, V), length -> scores (B, V)


def transforms(call: Call, custom: Sequence[Transform] | None) -> Transform:
    """All transforms of a step as one: rules, the user's own, warpers when sampling, normalisation.

    Raises: ValueError for an option out of its range.
    """
    return logits_rules.transforms(sys.modules[__name__], call, custom)


def log_probabilities(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
    """Scores whose exponentials add up to 1."""
    return tf.nn.log_softmax(scores, axis=-1)


# -- helpers -------------------------------------------------------------------------------------------------------


def _at(ids: Sequence[int], scores: Tensor) -> Any:
    """(V,), True at `ids`."""
    marked = np.zeros(scores.shape[-1], bool)
    marked[np.asarray(ids)] = True
    return marked


def _without(scores: Tensor, ids: Sequence[int]) -> Tensor:
    return tf.where(_at(ids, scores), -INF, scores)


def _only(scores: Tensor, ids: Sequence[int]) -> Tensor:
    return tf.zeros_like(scores) + tf.where(_at(ids, scores), 0.0, -INF)


def _marked(scores: Tensor, ids: Tensor, counts: Tensor) -> Tensor:
    """True at the vocabulary's places (B, V) of those `ids` (B, n) that count (B or 1, n)."""
    rows = tf.zeros_like(ids) + tf.range(ids.shape[0])[:, None]
    counted = tf.zeros_like(ids) + tf.cast(counts, ids.dtype)
    return tf.scatter_nd(tf.stack([rows, ids], axis=-1), counted, scores.shape) > 0


def _tail(ids: Tensor, length: Any, width: int) -> Tensor:
    """The last `width` of the first `length` ids (B, width); -1 where there are fewer."""
    padded = tf.pad(ids, [[0, 0], [width, 0]], constant_values=-1)
    return tf.slice(padded, tf.stack([0, length]), [ids.shape[0], width])


# -- repetition ----------------------------------------------------------------------------------------------------


def repetition(penalty: float) -> Transform:
    """Make tokens that already stand in the row less likely, by the factor `penalty` (Keskar et al., 2019, CTRL)."""
    require_number("repetition_penalty", penalty, above=0.0)

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        seen = _marked(scores, ids, tf.range(ids.shape[1])[None] < length)
        return tf.where(seen, tf.where(scores < 0, scores * penalty, scores / penalty), scores)

    return transform


def prompt_repetition(penalty: float, prompt_length: int) -> Transform:
    """Make tokens of the prompt more likely, by the factor `penalty`."""
    require_number("encoder_repetition_penalty", penalty, above=0.0)
    inner = repetition(1 / penalty)
    return lambda ids, scores, length: inner(ids[:, :prompt_length], scores, prompt_length)


def no_repeats(name: str, n: int, prompt_length: int | None = None) -> Transform:
    """Forbid the token that would complete a run of `n` tokens of the row, or of its prompt (Paulus et al., 2017)."""
    require_int(name, n, 1)

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        source = ids if prompt_length is None else ids[:, :prompt_length]
        count = source.shape[1] - n + 1  # runs
        if count < 1:
            return scores
        tail = _tail(ids, length, n - 1)
        is_whole = tf.range(count) + n <= (length if prompt_length is None else prompt_length)
        same = is_whole[None] & (length >= n - 1)
        for place in range(n - 1):
            same &= source[:, place : place + count] == tail[:, place : place + 1]
        return tf.where(_marked(scores, source[:, n - 1 :], same), -INF, scores)

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

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        if not pairs:
            return scores
        tail = _tail(ids, length, width)
        fits = tf.reduce_all((starts == -1) | (starts == tail[:, None]), axis=-1) & (lengths <= length)  # (B, pairs)
        added = tf.where(fits, bias, 0.0)
        by_token = tf.math.unsorted_segment_sum(tf.transpose(added), last, scores.shape[-1])  # (V, B)
        return scores + tf.transpose(by_token)

    return transform


# -- the end and the beginning -------------------------------------------------------------------------------------


def at_length(is_there: Callable[[Any], Any], change: Callable[[Tensor], Tensor]) -> Transform:
    """Change the scores at the steps where the row's length is the right one."""
    return lambda ids, scores, length: tf.where(is_there(length), change(scores), scores)


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
    return at_length(lambda length: tf.equal(length, place), lambda scores: _only(scores, as_ids(ids)))


def rising_end(pair: Any, eos_token_id: Any, prompt_length: int) -> Transform:
    """Raise the end's score ever more, by `factor`**n, once the row is n tokens past `start` new ones."""
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"exponential_decay_length_penalty must be (start, factor); got {pair!r}.")
    require_ids("eos_token_id", eos_token_id)
    start, factor = pair

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        past = length - prompt_length - start
        rise = tf.abs(scores) * (tf.pow(tf.constant(factor, tf.float32), tf.cast(past, tf.float32)) - 1)
        return tf.where((past > 0) & _at(as_ids(eos_token_id), scores), scores + rise, scores)

    return transform


def suppressed(name: str, ids: Any, place: int | None = None) -> Transform:
    """Forbid tokens at every step, or where the row holds `place` tokens."""
    require_ids(name, ids)
    return at_length(
        lambda length: True if place is None else tf.equal(length, place),
        lambda scores: _without(scores, as_ids(ids)),
    )


def finite(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
    """Replace NaN by 0 and infinities by the largest finite numbers, so that sampling cannot fail."""
    return tf.clip_by_value(tf.where(tf.math.is_nan(scores), 0.0, scores), scores.dtype.min, scores.dtype.max)


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

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        least = tf.math.top_k(scores, min(count, scores.shape[-1]))[0][:, -1:]
        return tf.where(scores < least, -INF, scores)

    return transform


def top_p(share: Any) -> Transform:
    """Keep the smallest set of tokens whose probability reaches `share` (Holtzman et al., 2020)."""
    require_number("top_p", share, least=0.0)
    if share > 1.0:
        raise ValueError(f"top_p is a probability, from 0 to 1; got {share!r}.")

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        order = tf.argsort(scores, axis=-1, stable=True)
        ascending = tf.gather(scores, order, batch_dims=1)
        out = tf.cumsum(tf.nn.softmax(ascending, axis=-1), axis=-1) <= 1 - share
        is_best = np.arange(scores.shape[-1]) == scores.shape[-1] - 1
        return _where_unsorted(scores, out & ~is_best, order)

    return transform


def typical(mass: Any) -> Transform:
    """Keep the tokens of nearly the expected surprise, up to the probability `mass` (Meister et al., 2022)."""
    require_open_share("typical_p", mass)

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        log_p = tf.nn.log_softmax(scores, axis=-1)
        distance = tf.abs(-log_p - _entropy(log_p))
        order = tf.argsort(distance, axis=-1, stable=True)
        near = tf.gather(distance, order, batch_dims=1)
        p = tf.nn.softmax(tf.gather(scores, order, batch_dims=1), axis=-1)
        last = tf.reduce_sum(tf.cast(tf.cumsum(p, axis=-1) < mass, tf.int32), axis=-1, keepdims=True)
        out = near > tf.gather(near, tf.minimum(last, scores.shape[-1] - 1), batch_dims=1)
        return _where_unsorted(scores, out & (np.arange(scores.shape[-1]) > 0), order)

    return transform


def _entropy(log_p: Tensor) -> Tensor:
    """(B, V) -> (B, 1); a token that is ruled out adds nothing."""
    return -tf.reduce_sum(tf.math.multiply_no_nan(log_p, tf.exp(log_p)), axis=-1, keepdims=True)


def _where_unsorted(scores: Tensor, out: Tensor, order: Tensor) -> Tensor:
    """-inf at tokens that are out; `out` is in the order of `order`."""
    return tf.where(tf.gather(out, tf.argsort(order, axis=-1), batch_dims=1), -INF, scores)


def epsilon(least: Any) -> Transform:
    """Keep the tokens whose probability is at least `least` (Hewitt et al., 2022)."""
    require_open_share("epsilon_cutoff", least)
    return lambda ids, scores, length: _cut(scores, tf.nn.softmax(scores, axis=-1) < least)


def eta(value: Any) -> Transform:
    """Keep the tokens of probability min(eta, sqrt(eta) * exp(-entropy)) or more (Hewitt et al., 2022)."""
    require_open_share("eta_cutoff", value)

    def transform(ids: Tensor, scores: Tensor, length: Any) -> Tensor:
        log_p = tf.nn.log_softmax(scores, axis=-1)
        return _cut(scores, tf.exp(log_p) < tf.minimum(value**0.5 * tf.exp(-_entropy(log_p)), value))

    return transform


def _cut(scores: Tensor, out: Tensor) -> Tensor:
    return tf.where(out & (scores < tf.reduce_max(scores, axis=-1, keepdims=True)), -INF, scores)
