"""`generate` in TensorFlow: one program of XLA that feeds the prompt once and then each new token, behind a cache.

`read_prompt` checks the call, `logits_tf` makes the transforms, `loops_tf` decodes. A program is compiled once for each
set of options and each shape of the prompt, and kept by the model.

Shapes: B rows, N ids of the prompt, L ids of the longest text, K beams, V vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from triptych.generation import logits_tf, loops_tf
from triptych.generation.checks import require_int
from triptych.generation.compiled import Prompt, check_rows, is_pad_mask, refuse_unsupported, settle_padding
from triptych.generation.configuration import GenerationConfig
from triptych.generation.lengths import settle_length
from triptych.generation.logits_rules import Call
from triptych.generation.options import check_token_ids, resolve
from triptych.generation.outputs import (
    TFBeamSampleDecoderOnlyOutput,
    TFBeamSearchDecoderOnlyOutput,
    TFGreedySearchDecoderOnlyOutput,
    TFSampleDecoderOnlyOutput,
)
from triptych.inputs_tf import checked_ids, is_known

Tensor = Any  # tf.Tensor; TensorFlow publishes no types


def generate(
    model: Any,
    inputs: Any = None,
    generation_config: GenerationConfig | None = None,
    logits_processor: Sequence[Any] | None = None,
    seed: Any = None,
    **kwargs: Any,
) -> Any:
    """Continue each row of the prompt `inputs` (B, N): greedily, by sampling (do_sample=True) or with num_beams.

    Keyword arguments are options (see `GenerationConfig`), `input_ids`, another name of the prompt, or `attention_mask`
    (B, N). They win over `generation_config`, which wins over the model's own options. Without a prompt, the text
    starts with bos_token_id. `seed`, two ints, decides what sampling draws; without one, `tf.random.set_seed` does.
    `logits_processor` holds functions of ids (rows, L), scores (rows, V) and how many ids are there, made of TensorFlow
    operations that XLA can compile.

    The prompt may be left-padded: positions follow `attention_mask`, so that each row gives what it gives alone.
    Without a mask, pad tokens count as padding unless they also end texts.

    Returns: ids (B * num_return_sequences, at most L), prompt included, filled with pad_token_id after the end; inside
        `tf.function` always L of them. With return_dict_in_generate, one of the TF…DecoderOnlyOutput classes.
    Raises: ValueError for options that are out of range, contradict each other or are not supported;
        UnknownOptionError; TokenIdError; SequenceTooLongError.
    """
    request = resolve(model, generation_config, kwargs, inputs=frozenset({"attention_mask", "input_ids"}))
    options, given = request.options, request.model_inputs
    refuse_unsupported(request, "TensorFlow")
    check_token_ids(options, model.config.vocab_size)
    for name in ("num_return_sequences", "num_beams"):
        require_int(name, getattr(options, name), 1)
    if inputs is not None and "input_ids" in given:
        raise ValueError("The prompt was given twice, as inputs and as input_ids. Pass one of the two.")
    prompt = read_prompt(model, given.get("input_ids", inputs), given.get("attention_mask"), options)
    settle_length(request, prompt, model.max_positions)
    settle_padding(options, model.config.vocab_size)
    program = _program(model, options, prompt.width, tuple(logits_processor or ()))
    result = program(prompt.ids, prompt.mask, _seed(seed))
    if options.do_sample and is_known(result.is_sound) and not bool(result.is_sound):
        raise ValueError(
            "The scores give no distribution to draw from: one is NaN or infinite, or all tokens are ruled out. "
            "Use bfloat16 or float32 weights, allow more tokens, or pass remove_invalid_values=True."
        )
    return _output(result, options, prompt.width)


def read_prompt(model: Any, input_ids: Any, mask: Any, options: GenerationConfig) -> Prompt:
    """The prompt in the arguments, or the one token that starts a text.

    Raises: ValueError or TypeError for wrong shapes and empty rows, TokenIdError for ids outside the vocabulary.
    """
    if input_ids is None:
        if options.bos_token_id is None:
            raise ValueError("There is nothing to continue: neither a prompt nor bos_token_id. Pass input_ids.")
        input_ids = [[options.bos_token_id]]
    if not tf.is_tensor(input_ids) and np.size(input_ids) == 0:  # which NumPy takes for floats
        input_ids = np.zeros(np.shape(input_ids), np.int32)
    ids = checked_ids("input_ids", input_ids, model.config.vocab_size)
    if ids.shape.rank != 2 or not ids.shape.is_fully_defined():
        raise ValueError(
            f"The prompt must have a known shape (batch, length); got {ids.shape}. Inside tf.function, "
            "pad to one length and give that in its input_signature."
        )
    if 0 in ids.shape:
        raise ValueError(
            f"The prompt must hold at least one token; got shape {tuple(ids.shape)}. To start, pass the bos id."
        )
    if mask is None:
        mask = ids != options.pad_token_id if is_pad_mask(options) else tf.ones(ids.shape, tf.bool)
    else:
        mask = tf.convert_to_tensor(mask) != 0
        if tuple(mask.shape) != tuple(ids.shape):
            raise ValueError(
                f"attention_mask must have the prompt's shape {tuple(ids.shape)}; got {tuple(mask.shape)}."
            )
    if is_known(mask):
        check_rows(mask.numpy())
    return Prompt(ids, mask)


def compute_transition_scores(
    sequences: Any, scores: Sequence[Any], beam_indices: Any = None, normalize_logits: bool = False
) -> Tensor:
    """The score of each new token (rows, steps) of `sequences` (rows, L), from `scores`: one (·, V) for each step.

    `beam_indices` (rows, steps) tell of beam search which row of the scores each token came from, and -1 after a text's
    end, where the result is 0. `normalize_logits` makes log probabilities of the scores.

    Raises: ValueError for shapes that do not belong together.
    """
    stacked = tf.stack([tf.cast(each, tf.float32) for each in scores])  # (steps, rows, V)
    if normalize_logits:
        stacked = tf.nn.log_softmax(stacked, axis=-1)
    ids = tf.convert_to_tensor(sequences)
    steps, rows = len(scores), ids.shape[0]
    if beam_indices is None:
        if stacked.shape[1] != rows:
            raise ValueError(
                f"Each of the scores must have {rows} rows, one for each sequence; got {stacked.shape[1]}. "
                "For beam search pass beam_indices."
            )
        beam_indices = tf.zeros((rows, steps), tf.int32) + tf.range(rows)[:, None]
    origin = tf.cast(tf.convert_to_tensor(beam_indices), tf.int32)[:, :steps]
    taken = tf.zeros_like(origin) + tf.range(origin.shape[1])
    new = tf.cast(ids[:, ids.shape[1] - origin.shape[1] :], tf.int32)
    found = tf.gather_nd(stacked, tf.stack([taken, tf.maximum(origin, 0), new], axis=-1))
    return tf.where(origin < 0, 0.0, found)


def _seed(seed: Any) -> Tensor:
    """Two ints: those given, or drawn from TensorFlow's own generator.

    Raises: ValueError for anything else.
    """
    if seed is None:
        return tf.random.uniform([2], maxval=np.iinfo(np.int32).max, dtype=tf.int32)
    found = tf.convert_to_tensor(seed)
    if not found.dtype.is_integer or tuple(found.shape) != (2,):
        raise ValueError(f"seed must be two ints, as tf.random.stateless_uniform takes them; got {seed!r}.")
    return tf.cast(found, tf.int32)


class _Programs(dict[Any, Any]):
    """A model's compiled loops. Copies and pickles of the model compile their own."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Programs, ())


def _program(
    model: Any, options: GenerationConfig, width: int, custom: tuple[Any, ...]
) -> Callable[..., loops_tf.Result]:
    """The compiled loop for these options; the same one when they are asked for again."""
    options = copy.deepcopy(options)
    weights = list(model.weights)  # those of a resized model are others, and are loops of their own
    known = (options.to_json_string(use_diff=False), width, tuple(map(id, custom)), tuple(map(id, weights)))
    programs: _Programs = vars(model).setdefault("_programs", _Programs())
    if known not in programs:
        transform = logits_tf.transforms(Call(options, width), custom)
        loop = loops_tf.beams if options.num_beams > 1 else loops_tf.chosen
        step = loops_tf.Step(model.next_token_logits, model.new_cache, options.max_length)

        def program(ids: Tensor, mask: Tensor, seed: Tensor) -> loops_tf.Result:
            return loop(step, ids, mask, seed, options, transform)

        # what the key tells by identity is held, so that no other object can have the same
        programs[known] = (tf.function(program, jit_compile=True, autograph=False), weights, custom)
    return programs[known][0]  # type: ignore[no-any-return]


def _output(result: loops_tf.Result, options: GenerationConfig, width: int) -> Any:
    """What the call asked for; where the length is known, without the places that no row got to."""
    steps = int(result.length) - width if is_known(result.length) else options.max_length - width
    sequences = result.sequences[:, : width + steps]
    if not options.return_dict_in_generate:
        return sequences
    scores = tuple(tf.unstack(result.kept[0]))[:steps] if result.kept else None
    if options.num_beams == 1:
        kind = TFSampleDecoderOnlyOutput if options.do_sample else TFGreedySearchDecoderOnlyOutput
        return kind(sequences=sequences, scores=scores)
    beam_kind = TFBeamSampleDecoderOnlyOutput if options.do_sample else TFBeamSearchDecoderOnlyOutput
    return beam_kind(
        sequences=sequences,
        sequences_scores=result.sums,
        scores=scores,
        beam_indices=result.origin[:, :steps],
    )
