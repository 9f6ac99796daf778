"""The loops of `generate` in TensorFlow, traced into one program of XLA: greedy, sampling, beam search, beam sampling.

Shapes: B rows, N ids of the prompt, L ids of the longest text, K beams, V vocabulary; rows are B * K with beams.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from keras import ops

from triptych.generation import cache_tf
from triptych.generation.checks import as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.logits_tf import Transform

Tensor = Any  # tf.Tensor; TensorFlow publishes no types
OUT = -1.0e7  # the score of a beam that is none


class Result(NamedTuple):
    """`sequences` (rows, L), of which the first `length` are in use; `kept`, the scores (L - N, rows, V) if asked for.

    Of beams, `sums` (rows,), the texts' scores, and `origin` (rows, L - N), which row of the scores each token came
    from. `is_sound` () is False when a step had no token to draw.
    """

    sequences: Tensor
    length: Tensor
    kept: tuple[Tensor, ...]
    is_sound: Tensor
    sums: Tensor
    origin: Tensor


@dataclass(frozen=True)
class Step:
    """The model's side of a loop: from tokens to the next token's scores, and the cache that holds them."""

    next_token_logits: Callable[..., tuple[Tensor, cache_tf.Cache]]
    new_cache: Callable[[int, int], cache_tf.Cache]
    capacity: int  # L

    def first(self, ids: Tensor, mask: Tensor, copies: int) -> tuple[Tensor, cache_tf.Cache, Tensor, Tensor]:
        """Feed the prompt (B, N) once, then have each row `copies` times.

        Returns: scores (rows, V), the cache, and mask and positions (rows, L).
        """
        rows, width = ids.shape
        mask = tf.pad(mask, [[0, 0], [0, self.capacity - width]], constant_values=True)
        positions = tf.maximum(tf.cumsum(tf.cast(mask, tf.int32), axis=-1) - 1, 0)
        scores, cache = self.next_token_logits(ids, self.new_cache(rows, self.capacity), mask, positions[:, :width])
        scores = tf.cast(scores, tf.float32)
        if copies > 1:
            places = np.repeat(np.arange(rows), copies)
            scores, mask, positions = (tf.gather(each, places) for each in (scores, mask, positions))
            cache = cache_tf.picked(cache, places)
        return scores, cache, mask, positions

    def next(
        self, cache: cache_tf.Cache, token: Tensor, mask: Tensor, positions: Tensor, length: Tensor
    ) -> tuple[Tensor, cache_tf.Cache]:
        """Feed the token (rows,) that is the last of `length`."""
        position = _column(positions, length - 1)
        scores, cache = self.next_token_logits(token[:, None], cache, mask, position[:, None])
        return tf.cast(scores, tf.float32), cache


def _column(values: Tensor, place: Tensor) -> Tensor:
    """(…, L) -> (…)."""
    return tf.gather(values, place, axis=-1)


def _with_column(values: Tensor, place: Tensor, column: Tensor) -> Tensor:
    """(…, L) with `column` (…) at `place`."""
    start = tf.stack([*[0] * (values.shape.rank - 1), place])
    return ops.slice_update(values, start, tf.cast(column, values.dtype)[..., None])


def _kept(kept: tuple[Tensor, ...], place: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    return tuple(ops.slice_update(each, tf.stack([place, 0, 0]), scores[None]) for each in kept)


def _nothing_kept(options: GenerationConfig, steps: int, scores: Tensor) -> tuple[Tensor, ...]:
    asked = options.output_scores and options.return_dict_in_generate
    return (tf.zeros((steps, *scores.shape), tf.float32),) if asked else ()


def _ends(tokens: Tensor, options: GenerationConfig) -> Tensor:
    """Which tokens (rows, …) end a text."""
    ends = np.asarray(as_ids(options.eos_token_id), np.int32)
    return tf.reduce_any(tokens[..., None] == ends, axis=-1)


def _noise(scores: Tensor, seed: Tensor, length: Tensor) -> Tensor:
    """Gumbel noise: the largest of noisy scores is a draw from their softmax, the n largest are n without repeats."""
    least = np.finfo(np.float32).tiny
    drawn = tf.random.stateless_uniform(scores.shape, tf.random.fold_in(seed, length), minval=least)
    return -tf.math.log(-tf.math.log(drawn))


class _Rows(NamedTuple):
    """Texts (rows, L), which of them go on, and what their last tokens left."""

    length: Tensor
    ids: Tensor
    running: Tensor
    is_sound: Tensor
    kept: tuple[Tensor, ...]
    cache: cache_tf.Cache


def chosen(
    step: Step, prompt: Tensor, mask: Tensor, seed: Tensor, options: GenerationConfig, transform: Transform
) -> Result:
    """Greedy decoding and sampling: transform the scores, choose a token for each row, until all rows end."""
    longest, pad, width = options.max_length, options.pad_token_id or 0, prompt.shape[1]
    scores, cache, mask, positions = step.first(prompt, mask, options.num_return_sequences)
    ids = tf.repeat(prompt, options.num_return_sequences, axis=0)
    ids = tf.pad(ids, [[0, 0], [0, longest - width]], constant_values=pad)
    ids = tf.ensure_shape(ids, (scores.shape[0], longest))

    def choose(state: _Rows, scores: Tensor) -> _Rows:
        length, running = state.length, state.running
        scores = transform(state.ids, scores, length)
        is_sound = state.is_sound
        if options.do_sample:
            best = tf.reduce_max(scores, axis=-1)
            is_sound &= tf.reduce_all(tf.math.is_finite(best) | ~running)
            tokens = tf.argmax(scores + _noise(scores, seed, length), axis=-1, output_type=tf.int32)
        else:
            tokens = tf.argmax(scores, axis=-1, output_type=tf.int32)
        tokens = tf.where(running, tokens, pad)
        return _Rows(
            length + 1,
            _with_column(state.ids, length, tokens),
            running & ~_ends(tokens, options),
            is_sound,
            _kept(state.kept, length - width, scores),
            state.cache,
        )

    def go_on(state: _Rows) -> Tensor:
        return (state.length < longest) & tf.reduce_any(state.running)

    def one_more(state: _Rows) -> tuple[_Rows]:
        last = _column(state.ids, state.length - 1)
        scores, cache = step.next(state.cache, last, mask, positions, state.length)
        return (choose(state._replace(cache=cache), scores),)

    kept = _nothing_kept(options, longest - width, scores)
    start = _Rows(tf.constant(width), ids, tf.ones(ids.shape[0], tf.bool), tf.constant(True), kept, cache)
    (end,) = tf.while_loop(go_on, one_more, (choose(start, scores),))
    none = tf.zeros((0,))
    return Result(end.ids, end.length, end.kept, end.is_sound, none, none)


class _Beams(NamedTuple):
    """Texts (B, K, L) and their scores (B, K) that go on, and those that have ended; where each token came from."""

    length: Tensor
    running: Tensor
    running_origin: Tensor  # (B, K, L - N), -1 where there is no token
    running_scores: Tensor
    ended: Tensor
    ended_origin: Tensor
    ended_scores: Tensor
    has_ended: Tensor  # (B, K), whether an ended text is one
    is_open: Tensor  # (B,), whether better texts may still come
    is_sound: Tensor
    kept: tuple[Tensor, ...]
    cache: cache_tf.Cache


def beams(
    step: Step, prompt: Tensor, mask: Tensor, seed: Tensor, options: GenerationConfig, transform: Transform
) -> Result:
    """Beam search: the K likeliest texts go on; of those that end, the K of the best score per length are kept.

    A text's score is the sum of its tokens' log probabilities, over the number of new tokens to the power of
    `length_penalty` once it has ended. With do_sample, the 2K continuations are drawn without repeats from the sums
    instead of taken from the top.
    """
    count, longest = options.num_beams, options.max_length
    rows, width = prompt.shape
    ids = as_ids(
        options.eos_token_id
    )  # each of the K may end in each: so many more are looked at, to have K that go on
    scores, cache, mask, positions = step.first(prompt, mask, count)

    def per_length(sums: Tensor, length: Any) -> Tensor:
        return sums / tf.cast(length - width, tf.float32) ** options.length_penalty

    def can_improve(best: Tensor, worst: Tensor, has_ended: Tensor, length: Tensor) -> Tensor:
        """Whether the best continuation of each row (B,) may still beat the worst ended one, as PyTorch asks."""
        furthest = longest if options.early_stopping == "never" and options.length_penalty > 0 else length
        beats = (per_length(best, furthest) > worst) & (options.early_stopping is not True)
        return beats | ~tf.reduce_all(has_ended, axis=-1)

    def extend(state: _Beams, scores: Tensor) -> _Beams:
        """One more token for each text."""
        length = state.length
        scores = transform(tf.reshape(state.running, [-1, longest]), tf.nn.log_softmax(scores, axis=-1), length)
        vocabulary = scores.shape[-1]
        looked_at = 2 * count if options.do_sample else min(count * max(2, 1 + len(ids)), count * vocabulary)
        sums = tf.reshape(scores, [rows, count, vocabulary]) + state.running_scores[..., None]  # (B, K, V)
        sums, places = _continuations(tf.reshape(sums, [rows, -1]), looked_at, length, seed, options)  # (B, C)
        is_sound = state.is_sound & tf.reduce_all(tf.math.is_finite(sums[:, 0]))
        origin, tokens = places // vocabulary, places % vocabulary
        ends = _ends(tokens, options)
        tokens = (
            tf.where(ends, ids[0], tokens) if ids else tokens
        )  # as in PyTorch, all texts end in the first of the ids
        texts = _with_column(_picked(state.running, origin), length, tokens)
        flat_origin = origin + np.arange(rows)[:, None] * count
        origins = _with_column(_picked(state.running_origin, origin), length - width, flat_origin)
        running_scores, best = tf.math.top_k(tf.where(ends, sums + OUT, sums), count)  # (B, K)
        # Only an end among the K best counts, and only in a row that is not done: other rows do not keep it going.
        counts = ends & (np.arange(looked_at) < count) & state.is_open[:, None]
        candidates = tf.where(counts, per_length(sums, length + 1), OUT)
        ended_scores, best_ended = tf.math.top_k(tf.concat([state.ended_scores, candidates], axis=1), count)
        has_ended = _picked(tf.concat([state.has_ended, counts], axis=1), best_ended)
        return _Beams(
            length + 1,
            _picked(texts, best),
            _picked(origins, best),
            running_scores,
            _picked(tf.concat([state.ended, texts], axis=1), best_ended),
            _picked(tf.concat([state.ended_origin, origins], axis=1), best_ended),
            ended_scores,
            has_ended,
            state.is_open & can_improve(sums[:, 0], ended_scores[:, -1], has_ended, length + 1),
            is_sound,
            _kept(state.kept, length - width, scores),
            cache_tf.picked(state.cache, tf.reshape(_picked(flat_origin, best), [-1])),
        )

    def go_on(state: _Beams) -> Tensor:
        return (state.length < longest) & tf.reduce_any(state.is_open)

    def one_more(state: _Beams) -> tuple[_Beams]:
        last = tf.reshape(_column(state.running, state.length - 1), [-1])
        scores, cache = step.next(state.cache, last, mask, positions, state.length)
        return (extend(state._replace(cache=cache), scores),)

    start = _first_beams(prompt, options, scores, cache)
    (end,) = tf.while_loop(go_on, one_more, (extend(start, scores),))
    return _best(end, per_length(end.running_scores, end.length), options.num_return_sequences, width)


def _first_beams(prompt: Tensor, options: GenerationConfig, scores: Tensor, cache: cache_tf.Cache) -> _Beams:
    """The prompt (B, N) as K texts that go on; all are alike, so that only one of each row counts."""
    (rows, width), count, longest = prompt.shape, options.num_beams, options.max_length
    texts = tf.pad(prompt, [[0, 0], [0, longest - width]], constant_values=options.pad_token_id or 0)
    texts = tf.tile(texts[:, None], [1, count, 1])
    origin = tf.fill((rows, count, longest - width), -1)
    alone = tf.tile(tf.where(tf.range(count) == 0, 0.0, OUT)[None], [rows, 1])
    return _Beams(
        length=tf.constant(width),
        running=texts,
        running_origin=origin,
        running_scores=alone,
        ended=texts,
        ended_origin=origin,
        ended_scores=tf.fill((rows, count), OUT),
        has_ended=tf.zeros((rows, count), tf.bool),
        is_open=tf.ones(rows, tf.bool),
        is_sound=tf.constant(True),
        kept=_nothing_kept(options, longest - width, scores),
        cache=cache,
    )


def _continuations(
    sums: Tensor, count: int, length: Tensor, seed: Tensor, options: GenerationConfig
) -> tuple[Tensor, Tensor]:
    """The `count` best, or drawn, of `sums` (B, K * V), best first, and their places."""
    if not options.do_sample:
        return tf.math.top_k(sums, count)  # type: ignore[no-any-return]
    _, places = tf.math.top_k(sums + _noise(sums, seed, length), count)
    drawn, order = tf.math.top_k(tf.gather(sums, places, batch_dims=1), count)
    return drawn, _picked(places, order)


def _picked(values: Tensor, places: Tensor) -> Tensor:
    """For each row, the values (B, n, …) at the places (B, K)."""
    return tf.gather(values, places, batch_dims=1)


def _best(end: _Beams, running_scores: Tensor, count: int, width: int) -> Result:
    """The `count` best texts of each row: of those that ended and, in a row that is not done, those still running."""
    rows, _, longest = end.running.shape
    running_scores = tf.where(end.is_open[:, None], running_scores, 2 * OUT)  # (B, K)
    sums, best = tf.math.top_k(tf.concat([end.ended_scores, running_scores], axis=1), count)
    texts = _picked(tf.concat([end.ended, end.running], axis=1), best)
    origin = _picked(tf.concat([end.ended_origin, end.running_origin], axis=1), best)
    new = tf.reduce_sum(tf.cast(origin >= 0, tf.int32), axis=-1)
    return Result(
        tf.reshape(texts, [rows * count, longest]),
        width + tf.reduce_max(new),
        end.kept,
        end.is_sound,
        tf.reshape(sums, [-1]),
        tf.reshape(origin, [rows * count, longest - width]),
    )
