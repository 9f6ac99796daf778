"""`generate` in JAX: one compiled program that feeds the prompt once and then each new token, behind a cache.

`read_prompt` checks the call, `logits_flax` makes the transforms, `_chosen` is greedy decoding and sampling, `_beams`
is beam search. A program is compiled once for each set of options and each shape of the prompt, and kept by the model.

Shapes: B rows, N ids of the prompt, L ids of the longest text, K beams, V vocabulary.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from triptych import inputs_flax
from triptych.generation import logits_flax
from triptych.generation.checks import as_ids, require_int
from triptych.generation.compiled import Prompt, check_rows, is_pad_mask, refuse_unsupported, settle_padding
from triptych.generation.configuration import GenerationConfig
from triptych.generation.lengths import settle_length
from triptych.generation.logits_rules import Call
from triptych.generation.options import check_token_ids, resolve
from triptych.generation.outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput

if TYPE_CHECKING:
    from triptych.modeling_flax import FlaxPreTrainedModel

Array = jax.Array
OUT = -1.0e7  # the score of a beam that is none

# Options that the loop in JAX has no place for, beside those that no compiled loop has.
_NOT_IN_FLAX = (
    ("do_sample together with num_beams", lambda o: o.do_sample and o.num_beams != 1),
    ("output_scores", lambda o: o.output_scores),
)


def generate(
    model: "FlaxPreTrainedModel",
    input_ids: Any,
    generation_config: GenerationConfig | None = None,
    prng_key: Any = None,
    trace: bool = True,
    params: Mapping[str, Any] | None = None,
    logits_processor: Sequence[Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Continue each row of the prompt `input_ids` (B, N): greedily, by sampling (do_sample=True) or with num_beams.

    Keyword arguments are options (see `GenerationConfig`) or `attention_mask` (B, N). They win over
    `generation_config`, which wins over the model's own options. `prng_key` is what sampling draws with; without one
    it is `jax.random.PRNGKey(0)`, so that the same call draws the same. `logits_processor` holds functions of ids
    (B, L), scores (B, V) and how many ids are there, which JAX can trace. `trace=False` runs step by step, to debug.

    The prompt may be left-padded: positions follow `attention_mask`, so that each row gives what it gives alone.
    Without a mask, pad tokens count as padding unless they also end texts.

    Returns: an output object with `sequences` (B * num_return_sequences, L), prompt included, filled with pad_token_id
        after the end; of beam search also `scores`, each text's sum of log probabilities over its length to the power
        of length_penalty.
    Raises: ValueError for options that are out of range, contradict each other or are not supported;
        UnknownOptionError; TokenIdError; SequenceTooLongError.
    """
    request = resolve(model, generation_config, kwargs, inputs=frozenset({"attention_mask"}))
    options = request.options
    refuse_unsupported(request, "Flax", *_NOT_IN_FLAX)
    check_token_ids(options, model.config.vocab_size)
    for name in ("num_return_sequences", "num_beams"):
        require_int(name, getattr(options, name), 1)
    prompt = read_prompt(model, input_ids, request.model_inputs.get("attention_mask"), options)
    settle_length(request, prompt, model.max_positions)
    settle_padding(options, model.config.vocab_size)
    program = _program(model, options, prompt.width, tuple(logits_processor or ()))
    variables = model.params if params is None else model.checked_params(params)
    key = jax.random.PRNGKey(0) if prng_key is None else prng_key
    with nullcontext() if trace else jax.disable_jit():
        result = program(variables, prompt.ids, prompt.mask, key)
    if options.num_beams > 1:
        return FlaxBeamSearchOutput(sequences=result.sequences, scores=result.scores)
    if not options.do_sample:
        return FlaxGreedySearchOutput(sequences=result.sequences)
    if inputs_flax.is_near(result.is_sound) and not bool(result.is_sound):
        raise ValueError(
            "The scores give no distribution to draw from: one is NaN or infinite, or all tokens are ruled out. "
            "Use bfloat16 or float32 weights, allow more tokens, or pass remove_invalid_values=True."
        )
    return FlaxSampleOutput(sequences=result.sequences)


def read_prompt(model: "FlaxPreTrainedModel", input_ids: Any, mask: Any, options: GenerationConfig) -> Prompt:
    """The prompt in the arguments.

    Raises: ValueError or TypeError for wrong shapes and empty rows, TokenIdError for ids outside the vocabulary.
    """
    ids = inputs_flax.checked_ids(input_ids, model.config.vocab_size)
    if ids.size == 0:
        raise ValueError(f"The prompt must hold at least one token; got shape {ids.shape}. To start, pass the bos id.")
    if mask is None:
        mask = ids != options.pad_token_id if is_pad_mask(options) else jnp.ones(ids.shape, bool)
        return Prompt(ids, _checked(mask))
    rows, length = ids.shape
    mask = inputs_flax.checked_mask(mask, rows, length, None)
    return Prompt(ids, _checked(mask))


def _checked(mask: Any) -> Any:
    if inputs_flax.is_known(mask):
        check_rows(np.asarray(mask))
    return mask


def _program(
    model: "FlaxPreTrainedModel", options: GenerationConfig, width: int, custom: tuple[Any, ...]
) -> Callable[..., "_Result"]:
    """The compiled loop for these options; the same one when they are asked for again."""
    options = copy.deepcopy(options)
    known = (options.to_json_string(use_diff=False), width, custom)
    programs: dict[Any, Any] = vars(model).setdefault("_programs", {})
    if known not in programs:
        transform = logits_flax.transforms(Call(options, width), custom)
        loop = _beams if options.num_beams > 1 else _chosen
        step = _Step(model.module, model.init_cache, options.max_length)

        def program(params: Any, ids: Array, mask: Array, key: Any) -> _Result:
            return loop(step, params, ids, mask, key, options, transform)

        programs[known] = jax.jit(program)
    return programs[known]  # type: ignore[no-any-return]


class _Result(NamedTuple):
    """`sequences` (rows, L); `scores` (rows,) of beams; `is_sound` (), False when a step had no token to draw."""

    sequences: Array
    scores: Array | None = None
    is_sound: Array | None = None


@dataclass(frozen=True)
class _Step:
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


def _chosen(
    step: _Step,
    params: Any,
    prompt: Array,
    mask: Array,
    key: Any,
    options: GenerationConfig,
    transform: logits_flax.Transform,
) -> _Result:
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
    return _Result(ids, is_sound=is_sound)


class _Beams(NamedTuple):
    """Texts (B, K, L) and their scores (B, K) that go on, and those that have ended."""

    length: Array
    running: Array
    running_scores: Array
    ended: Array
    ended_scores: Array
    has_ended: Array  # (B, K), whether an ended text is one
    cache: Any


def _beams(
    step: _Step,
    params: Any,
    prompt: Array,
    mask: Array,
    key: Any,
    options: GenerationConfig,
    transform: logits_flax.Transform,
) -> _Result:
    """Beam search: the K likeliest texts go on; of those that end, the K of the best score per length are kept.

    A text's score is the sum of its tokens' log probabilities, over the number of new tokens to the power of
    `length_penalty` once it has ended.
    """
    beams, longest, pad = options.num_beams, options.max_length, options.pad_token_id or 0
    rows, width = prompt.shape
    scores, cache, mask, positions = step.first(params, prompt, mask, beams)
    texts = jnp.full((rows, beams, longest), pad, jnp.int32).at[:, :, :width].set(prompt[:, None])
    # All beams are alike at first, so that only one of each row counts.
    alone = jnp.tile(jnp.where(jnp.arange(beams) == 0, 0.0, OUT), (rows, 1))
    nothing = jnp.full((rows, beams), OUT)

    def per_length(sums: Array, length: Any) -> Array:
        return sums / jnp.asarray(length - width, jnp.float32) ** options.length_penalty

    def extend(state: _Beams, scores: Array) -> _Beams:
        """One more token for each text, and which beams they came from."""
        length = state.length
        scores = transform(state.running.reshape(-1, longest), jax.nn.log_softmax(scores, axis=-1), length)
        sums = scores.reshape(rows, beams, -1) + state.running_scores[..., None]  # (B, K, V)
        vocabulary = sums.shape[-1]
        sums, places = lax.top_k(sums.reshape(rows, -1), 2 * beams)  # (B, 2K)
        origin, tokens = places // vocabulary, (places % vocabulary).astype(jnp.int32)
        texts = jnp.take_along_axis(state.running, origin[..., None], axis=1)
        texts = lax.dynamic_update_slice_in_dim(texts, tokens[..., None], length, axis=2)
        ends = _ends(tokens, options)
        running_scores, best = lax.top_k(sums + ends * OUT, beams)  # (B, K)
        running, origin = _picked(texts, best), _picked(origin, best)
        # A row that has its texts takes no more when it stops early.
        is_full = state.has_ended.all(axis=-1, keepdims=True) & (options.early_stopping is True)
        candidates = per_length(sums, length + 1) + (~ends | is_full) * OUT
        ended_scores, best = lax.top_k(jnp.concatenate([state.ended_scores, candidates], axis=1), beams)
        return _Beams(
            length + 1,
            running,
            running_scores,
            _picked(jnp.concatenate([state.ended, texts], axis=1), best),
            ended_scores,
            _picked(jnp.concatenate([state.has_ended, ends & ~is_full], axis=1), best),
            _of_beams(state.cache, origin),
        )

    def go_on(state: _Beams) -> Array:
        length = longest if options.early_stopping == "never" and options.length_penalty > 0 else state.length
        hoped = per_length(state.running_scores[:, :1], length)
        worst = jnp.where(state.has_ended, state.ended_scores.min(axis=1, keepdims=True), OUT)
        can_improve = (hoped > worst).any()
        is_open = ~(state.has_ended.all() & (options.early_stopping is True))
        goes_on: Array = (state.length < longest) & can_improve & is_open
        return goes_on

    def one_more(state: _Beams) -> _Beams:
        last = lax.dynamic_index_in_dim(state.running, state.length - 1, axis=2, keepdims=False)
        scores, cache = step.next(params, state.cache, last.reshape(-1), mask, positions, state.length)
        return extend(state._replace(cache=cache), scores)

    start = _Beams(jnp.asarray(width), texts, alone, texts, nothing, jnp.zeros((rows, beams), bool), cache)
    end = lax.while_loop(go_on, one_more, extend(start, scores))
    # Places that no ended text took go to those that were still running, the likeliest first.
    place = jnp.maximum(jnp.arange(beams) - end.has_ended.sum(axis=1, keepdims=True), 0)
    texts = jnp.where(end.has_ended[..., None], end.ended, _picked(end.running, place))
    sums = jnp.where(end.has_ended, end.ended_scores, _picked(end.running_scores, place))
    count = options.num_return_sequences
    return _Result(texts[:, :count].reshape(-1, longest), sums[:, :count].reshape(-1))


def _picked(values: Array, places: Array) -> Array:
    """For each row, the values (B, n, …) at the places (B, K)."""
    return jnp.take_along_axis(values, places.reshape(*places.shape, *[1] * (values.ndim - 2)), axis=1)


def _of_beams(cache: Any, origin: Array) -> Any:
    """The cache, whose rows are all beams one after the other, as the beams `origin` (B, K) left it."""
    rows, beams = origin.shape
    places = (jnp.arange(rows)[:, None] * beams + origin).reshape(-1)
    return jax.tree_util.tree_map(lambda leaf: leaf[places] if leaf.ndim else leaf, cache)
