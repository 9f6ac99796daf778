"""`generate` in JAX: one compiled program that feeds the prompt once and then each new token, behind a cache.

`read_prompt` checks the call, `logits_flax` makes the transforms and `loops_flax` holds the loops. A program is
compiled once for each set of options and each shape of the prompt, and kept by the model.

Shapes: B rows, N ids of the prompt, L ids of the longest text, V vocabulary.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from triptych import inputs_flax
from triptych.generation import logits_flax, loops_flax
from triptych.generation.checks import require_int
from triptych.generation.compiled import Prompt, check_rows, is_pad_mask, refuse_unsupported, settle_padding
from triptych.generation.configuration import GenerationConfig
from triptych.generation.lengths import settle_length
from triptych.generation.logits_rules import Call
from triptych.generation.options import check_token_ids, resolve
from triptych.generation.outputs import FlaxBeamSearchOutput, FlaxGreedySearchOutput, FlaxSampleOutput

if TYPE_CHECKING:
    from triptych.modeling_flax import FlaxPreTrainedModel

Array = jax.Array

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
) -> Callable[..., loops_flax.Result]:
    """The compiled loop for these options; the same one when they are asked for again."""
    options = copy.deepcopy(options)
    known = (options.to_json_string(use_diff=False), width, custom)
    programs: dict[Any, Any] = vars(model).setdefault("_programs", {})
    if known not in programs:
        transform = logits_flax.transforms(Call(options, width), custom)
        loop = loops_flax.beams if options.num_beams > 1 else loops_flax.chosen
        step = loops_flax.Step(model.module, model.init_cache, options.max_length)

        def program(params: Any, ids: Array, mask: Array, key: Any) -> loops_flax.Result:
            return loop(step, params, ids, mask, key, options, transform)

        programs[known] = jax.jit(program)
    return programs[known]  # type: ignore[no-any-return]
