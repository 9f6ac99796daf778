"""The loops of `generate` in JAX, traced into one program: greedy decoding and sampling, and beam search.

Shapes: B rows, N ids of the prompt, L ids of the longest text, K beams, V vocabulary; rows are B * K with beams.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from triptych.generation.checks import INF, as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.logits_flax import Transform

Array = jax.Array
HOPELESS = -1.0e9  # finite, so that such a beam is found even where nothing else is allowed


class Result(NamedTuple):
    """`sequences` (rows, L); `scores` (rows,) of beams; `is_sound` (), False when a step had no token to draw."""

    sequences: Array
    scores: Array | None = None
    is_sound: Array | None = None


@dataclass(frozen=True)
class Step:
    """The model's side of a loop: from tokens to the next token's scores, and the cache that holds them."""

    module: Any
    new_cache: Callable[[int, int], dict[str, Any]]
    capacity: int  # L

    def first(self, params: Any, ids: Array, mask: Array, copies: int) -> tuple[Array, dict[str, Any], Array, Array]:
        """Feed the prompt once, then have each row `copies` times.

        Returns: scores (rows, V), the cache, and mask and positions (rows, L).
        """
        more = self.capacity - ids.shape[1]
        mask = jnp.pad(mask, ((0, 0), (0, more)), constant_values=True)
        positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        cache = self.new_cache(len(ids), self.capacity)
        scores, cache = self(params, cache, ids, mask, positions[:, : ids.shape[1]])
        if copies > 1:
            scores, cache, mask, positions = jax.tree_util.tree_map(
                lambda leaf: jnp.repeat(leaf, copies, axis=0) if leaf.ndim else leaf, (scores, cache, mask, positions)
            )
        return scores, cache, mask, positions

    def next(
        self, params: Any, cache: dict[str, Any], token: Array, mask: Array, positions: Array, length: Any
    ) -> tuple[Array, dict[str, Any]]:
        """Feed the token (rows,) that is the last of `length`."""
        position = lax.dynamic_slice_in_dim(positions, length - 1, 1, axis=1)
        return self(params, cache, token[:, None], mask, position)

    def __call__(
        self, params: Any, cache: dict[str, Any], ids: Array, mask: Array, positions: Array
    ) -> tuple[Array, dict[str, Any]]:
        scores, changed = self.module.apply(
            {"params": params, "cache": cache},
            ids,
            mask,
            positions,
            method=self.module.next_token_logits,
            mutable=["cache"],
        )
        return scores.astype(jnp.float32), changed["cache"]


def _ends(tokens: Array, options: GenerationConfig) -> Array:
    """Which tokens (rows, …) end a text."""
    ends = np.asarray(as_ids(options.eos_token_id), np.int32)
    return (tokens[..., None] == ends).any(axis=-1)


def chosen(
    step: Step,
    params: Any,
    prompt: Array,
    mask: Array,
    key: Any,
    options: GenerationConfig,
    transform: Transform,
) -> Result:
    """Greedy decoding and sampling: transform the scores, choose a token for each row, until all rows end."""
    copies, longest, pad = options.num_return_sequences, options.max_length, options.pad_token_id or 0
    scores, cache, mask, positions = step.first(params, prompt, mask, copies)
    ids = jnp.full((len(scores), longest), pad, jnp.int32)
    ids = ids.at[:, : prompt.shape[1]].set(jnp.repeat(prompt, copies, axis=0))

    def choose(
        ids: Array, running: Array, key: Any, is_sound: Array, scores: Array, length: Any
    ) -> tuple[Array, Array, Any, Array]:
        scores = transform(ids, scores, length)
        if options.do_sample:
            key, own = jax.random.split(key)
            tokens = jax.random.categorical(own, scores).astype(jnp.int32)
            best = scores.max(axis=-1)
            is_sound &= (jnp.isfinite(best) | ~running).all()
        else:
            tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        tokens = jnp.where(running, tokens, pad)
        ids = lax.dynamic_update_slice_in_dim(ids, tokens[:, None], length, axis=1)
        return ids, running & ~_ends(tokens, options), key, is_sound

    def go_on(state: tuple[Any, ...]) -> Array:
        length, (_, running, _, _), _ = state
        goes_on: Array = (length < longest) & running.any()
        return goes_on

    def one_more(state: tuple[Any, ...]) -> tuple[Any, ...]:
        length, (ids, running, key, is_sound), cache = state
        last = lax.dynamic_index_in_dim(ids, length - 1, axis=1, keepdims=False)
        scores, cache = step.next(params, cache, last, mask, positions, length)
        return length + 1, choose(ids, running, key, is_sound, scores, length), cache

    start = prompt.shape[1]
    chosen = choose(ids, jnp.ones(len(ids), bool), key, jnp.asarray(True), scores, jnp.asarray(start))
    _, (ids, _, _, is_sound), _ = lax.while_loop(go_on, one_more, (jnp.asarray(start + 1), chosen, cache))
    return Result(ids, is_sound=is_sound)


class _Beams(NamedTuple):
    """Texts (B, K, L) that go on and their sums of log probabilities (B, K); texts that ended and their scores."""

    length: Array
    running: Array
    sums: Array
    ended: Array
    ended_scores: Array  # best first, -inf where there is no text
    is_open: Array  # (B,), whether better texts may still come
    cache: Any


def beams(
    step: Step, params: Any, prompt: Array, mask: Array, key: Any, options: GenerationConfig, transform: Transform
) -> Result:
    """Beam search: the K likeliest texts go on; of those that end, the K of the best score per length are kept.

    A text's score is the sum of its tokens' log probabilities, over the number of new tokens to the power of
    `length_penalty`. It is the search of `beams_torch`, and gives the same ids.
    """
    width, longest = prompt.shape[1], options.max_length
    scores, cache, mask, positions = step.first(params, prompt, mask, options.num_beams)

    def extend(state: _Beams, scores: Array) -> _Beams:
        texts = state.running.reshape(-1, longest)
        return _extended(state, transform(texts, jax.nn.log_softmax(scores, axis=-1), state.length), width, options)

    def go_on(state: _Beams) -> Array:
        return (state.length < longest) & state.is_open.any()

    def one_more(state: _Beams) -> _Beams:
        last = lax.dynamic_index_in_dim(state.running, state.length - 1, axis=2, keepdims=False)
        scores, cache = step.next(params, state.cache, last.reshape(-1), mask, positions, state.length)
        return extend(state._replace(cache=cache), scores)

    end = lax.while_loop(go_on, one_more, extend(_first_beams(prompt, options, cache), scores))
    return _best(end, width, options)


def _first_beams(prompt: Array, options: GenerationConfig, cache: Any) -> _Beams:
    """The prompt (B, N) as K texts that go on; all are alike, so that only one of each row counts."""
    (rows, width), count = prompt.shape, options.num_beams
    texts = jnp.full((rows, count, options.max_length), options.pad_token_id or 0, jnp.int32)
    texts = texts.at[:, :, :width].set(prompt[:, None])
    return _Beams(
        length=jnp.asarray(width),
        running=texts,
        sums=jnp.tile(jnp.where(jnp.arange(count) == 0, 0.0, HOPELESS), (rows, 1)),
        ended=texts,
        ended_scores=jnp.full((rows, count), -INF),
        is_open=jnp.ones(rows, bool),
        cache=cache,
    )


def _extended(state: _Beams, scores: Array, width: int, options: GenerationConfig) -> _Beams:
    """One more token for each text that goes on, by the scores (rows, V) of the next token."""
    count, length, vocabulary = options.num_beams, state.length, scores.shape[-1]
    ids = as_ids(options.eos_token_id)
    sums = (scores.reshape(*state.sums.shape, vocabulary) + state.sums[..., None]).reshape(len(state.sums), -1)
    # Each of the K may end in each of the ids: so many more are looked at, to have K that go on.
    sums, places = lax.top_k(sums, min(count * max(2, 1 + len(ids)), sums.shape[1]))  # (B, C)
    origin, tokens = places // vocabulary, (places % vocabulary).astype(jnp.int32)
    ends = _ends(tokens, options)
    tokens = jnp.where(ends, ids[0], tokens) if ids else tokens  # as in PyTorch, all texts end in the first of the ids
    texts = lax.dynamic_update_slice_in_dim(_picked(state.running, origin), tokens[..., None], length, axis=2)
    running_sums, best = lax.top_k(jnp.where(ends, -INF, sums), count)  # (B, K)
    # Only an end among the K best counts, and only in a row that is not done: other rows do not keep it going.
    counts = ends & (jnp.arange(sums.shape[1]) < count) & state.is_open[:, None]
    candidates = jnp.where(counts, _per_length(sums, length + 1 - width, options), -INF)
    ended_scores, best_ended = lax.top_k(jnp.concatenate([state.ended_scores, candidates], axis=1), count)
    hoped = jnp.where(running_sums[:, 0] > -INF, sums[:, 0], -INF)
    return _Beams(
        length + 1,
        _picked(texts, best),
        running_sums,
        _picked(jnp.concatenate([state.ended, texts], axis=1), best_ended),
        ended_scores,
        state.is_open
        & _can_improve(hoped, ended_scores[:, -1], length + 1 - width, options.max_length - width, options),
        _of_beams(state.cache, _picked(origin, best)),
    )


def _per_length(sums: Array, length: Any, options: GenerationConfig) -> Array:
    return sums / jnp.asarray(length, jnp.float32) ** options.length_penalty


def _can_improve(best: Array, worst: Array, length: Any, room: int, options: GenerationConfig) -> Array:
    """Whether a row (B,) lacks texts, or its best continuation of `length` new tokens may beat the worst that ended."""
    lacks = worst == -INF
    if options.early_stopping is True:
        return lacks
    furthest = room if options.early_stopping == "never" and options.length_penalty > 0 else length
    return lacks | (_per_length(best, furthest, options) > worst)


def _best(end: _Beams, width: int, options: GenerationConfig) -> Result:
    """The best texts of each row: of those that ended and, in a row that is not done, those still running."""
    running = jnp.where(end.is_open[:, None], _per_length(end.sums, end.length - width, options), -INF)
    # The running ones come first: where all is ruled out, a text of score -inf is better than none.
    scores, best = lax.top_k(jnp.concatenate([running, end.ended_scores], axis=1), options.num_return_sequences)
    texts = _picked(jnp.concatenate([end.running, end.ended], axis=1), best)
    return Result(texts.reshape(-1, options.max_length), scores.reshape(-1))


def _picked(values: Array, places: Array) -> Array:
    """For each row, the values (B, n, …) at the places (B, K)."""
    return jnp.take_along_axis(values, places.reshape(*places.shape, *[1] * (values.ndim - 2)), axis=1)


def _of_beams(cache: Any, origin: Array) -> Any:
    """The cache, whose rows are all beams one after the other, as the beams `origin` (B, K) left it."""
    rows, beams = origin.shape
    places = (jnp.arange(rows)[:, None] * beams + origin).reshape(-1)
    return jax.tree_util.tree_map(lambda leaf: leaf[places] if leaf.ndim else leaf, cache)
