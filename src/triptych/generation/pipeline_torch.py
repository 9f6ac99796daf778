"""From options to logits transforms and stopping criteria: one table each, in the documented order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from triptych.generation import logits_torch as logits, warpers_torch as warpers
from triptych.generation.checks import as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.grammar_torch import GrammarLogitsProcessor
from triptych.generation.stopping_torch import (
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from triptych.generation.watermarking_torch import watermark


@dataclass(frozen=True)
class Call:
    """What the tables read: the options `o`, the prompt's ids (B, P), and the arguments that are no options."""

    o: Any  # GenerationConfig; a row reads only options that it found set
    prompt: Tensor
    prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None
    tokenizer: Any = None

    @property
    def length(self) -> int:
        """P, the prompt's length."""
        return self.prompt.shape[1]

    @property
    def begin(self) -> int:
        """The row's length where the first free token is chosen, behind what is forced."""
        shifted = self.length + int(self.length == 1 and self.o.forced_bos_token_id is not None)
        forced = self.o.forced_decoder_ids
        return shifted + (int(forced[-1][0] or 0) if forced else 0)

    @property
    def rows_at_once(self) -> int:
        """How many rows of scores each prompt has: its beams, or one group of them."""
        return int(self.o.num_beams // (self.o.num_beam_groups or 1))

    @property
    def kept(self) -> int:
        """How many tokens filters leave at least: with beams one that ends no text and each that does."""
        return 1 if self.o.num_beams == 1 else 1 + max(1, len(as_ids(self.o.eos_token_id)))


@dataclass(frozen=True)
class Row:
    """One transform or criterion: when it is wanted, and how it is made. An unwanted one costs nothing."""

    wanted: Callable[[GenerationConfig], Any]
    make: Callable[[Call], Any]


def _is_set(name: str, neutral: float) -> Callable[[GenerationConfig], bool]:
    return lambda o: getattr(o, name) not in (None, neutral)


PROCESSORS = (
    Row(lambda o: o.sequence_bias is not None, lambda c: logits.SequenceBiasLogitsProcessor(c.o.sequence_bias)),
    Row(
        _is_set("diversity_penalty", 0.0),
        lambda c: (
            c.o.num_beam_groups > 1
            and logits.HammingDiversityLogitsProcessor(c.o.diversity_penalty, c.o.num_beams, c.o.num_beam_groups)
        ),
    ),
    Row(
        _is_set("encoder_repetition_penalty", 1.0),
        lambda c: logits.EncoderRepetitionPenaltyLogitsProcessor(c.o.encoder_repetition_penalty, c.prompt),
    ),
    Row(
        _is_set("repetition_penalty", 1.0),
        lambda c: logits.RepetitionPenaltyLogitsProcessor(c.o.repetition_penalty),
    ),
    Row(
        _is_set("no_repeat_ngram_size", 0),
        lambda c: logits.NoRepeatNGramLogitsProcessor(c.o.no_repeat_ngram_size),
    ),
    Row(
        _is_set("encoder_no_repeat_ngram_size", 0),
        lambda c: logits.EncoderNoRepeatNGramLogitsProcessor(c.o.encoder_no_repeat_ngram_size, c.prompt),
    ),
    Row(
        lambda o: o.bad_words_ids is not None,
        lambda c: logits.NoBadWordsLogitsProcessor(c.o.bad_words_ids, c.o.eos_token_id),
    ),
    Row(
        lambda o: o.min_length and o.eos_token_id is not None,
        lambda c: logits.MinLengthLogitsProcessor(c.o.min_length, c.o.eos_token_id),
    ),
    Row(
        lambda o: o.min_new_tokens and o.eos_token_id is not None,
        lambda c: logits.MinNewTokensLengthLogitsProcessor(c.length, c.o.min_new_tokens, c.o.eos_token_id),
    ),
    Row(
        lambda o: True,
        lambda c: (
            c.prefix_allowed_tokens_fn
            and logits.PrefixConstrainedLogitsProcessor(c.prefix_allowed_tokens_fn, c.rows_at_once)
        ),
    ),
    Row(
        lambda o: o.json_schema is not None or o.regex is not None,
        lambda c: GrammarLogitsProcessor(c.tokenizer, c.o.json_schema, c.o.regex, c.length, c.o.eos_token_id),
    ),
    Row(
        lambda o: o.forced_bos_token_id is not None,
        lambda c: logits.ForcedBOSTokenLogitsProcessor(c.o.forced_bos_token_id),
    ),
    Row(
        lambda o: o.forced_eos_token_id is not None,
        lambda c: logits.ForcedEOSTokenLogitsProcessor(c.o.max_length, c.o.forced_eos_token_id),
    ),
    Row(lambda o: o.remove_invalid_values, lambda c: logits.InfNanRemoveLogitsProcessor()),
    Row(
        lambda o: o.exponential_decay_length_penalty is not None,
        lambda c: logits.ExponentialDecayLengthPenalty(
            c.o.exponential_decay_length_penalty, c.o.eos_token_id, c.length
        ),
    ),
    Row(lambda o: o.suppress_tokens, lambda c: logits.SuppressTokensLogitsProcessor(c.o.suppress_tokens)),
    Row(
        lambda o: o.begin_suppress_tokens,
        lambda c: logits.SuppressTokensAtBeginLogitsProcessor(c.o.begin_suppress_tokens, c.begin),
    ),
    Row(
        lambda o: o.forced_decoder_ids is not None,
        lambda c: logits.ForceTokensLogitsProcessor(c.o.forced_decoder_ids),
    ),
    Row(lambda o: o.watermarking_config is not None, lambda c: watermark(c.o.watermarking_config)),
)

WARPERS = (
    Row(_is_set("temperature", 1.0), lambda c: warpers.TemperatureLogitsWarper(c.o.temperature)),
    Row(_is_set("top_k", 0), lambda c: warpers.TopKLogitsWarper(c.o.top_k, min_tokens_to_keep=c.kept)),
    Row(_is_set("top_p", 1.0), lambda c: warpers.TopPLogitsWarper(c.o.top_p, min_tokens_to_keep=c.kept)),
    Row(_is_set("min_p", 0.0), lambda c: warpers.MinPLogitsWarper(c.o.min_p, min_tokens_to_keep=c.kept)),
    Row(_is_set("typical_p", 1.0), lambda c: warpers.TypicalLogitsWarper(c.o.typical_p, min_tokens_to_keep=c.kept)),
    Row(
        _is_set("epsilon_cutoff", 0.0),
        lambda c: warpers.EpsilonLogitsWarper(c.o.epsilon_cutoff, min_tokens_to_keep=c.kept),
    ),
    Row(_is_set("eta_cutoff", 0.0), lambda c: warpers.EtaLogitsWarper(c.o.eta_cutoff, min_tokens_to_keep=c.kept)),
)

CRITERIA = (
    Row(lambda o: o.max_length is not None, lambda c: MaxLengthCriteria(c.o.max_length)),
    Row(lambda o: o.max_time is not None, lambda c: MaxTimeCriteria(c.o.max_time)),
    Row(
        lambda o: o.stop_strings is not None,
        lambda c: StopStringCriteria(c.tokenizer, c.o.stop_strings, c.length),
    ),
)


def transforms(call: Call, custom: Sequence[Any] | None) -> logits.LogitsProcessorList:
    """The transforms of every step: `processors`, and `warping` when sampling.

    Raises: ValueError for an option out of its range, or when the user's own double one that an option makes.
    """
    made = processors(call, custom)
    return logits.LogitsProcessorList([*made, *warping(call)]) if call.o.do_sample else made


def processors(call: Call, custom: Sequence[Any] | None) -> logits.LogitsProcessorList:
    """The rules of the options, the user's own transforms, normalisation.

    Raises: ValueError for an option out of its range, or when the user's own double one that an option makes.
    """
    made = _joined(_made(PROCESSORS, call), custom, "logits_processor")
    return logits.LogitsProcessorList(made + _normalisation(call))


def warping(call: Call) -> logits.LogitsProcessorList:
    """What reshapes the distribution to draw from, and normalisation.

    Raises: ValueError for an option out of its range.
    """
    return logits.LogitsProcessorList(_made(WARPERS, call) + _normalisation(call))


def _normalisation(call: Call) -> list[Any]:
    return [logits.LogitNormalization()] if call.o.renormalize_logits else []


def criteria(call: Call, custom: Sequence[Any] | None) -> StoppingCriteriaList:
    """The stopping criteria of the options, then the user's own.

    Raises: ValueError when the user's own double one that an option makes, or `stop_strings` lack a tokenizer.
    """
    if call.o.stop_strings is not None and call.tokenizer is None:
        raise ValueError("stop_strings are found in decoded text, which needs the tokenizer. Pass tokenizer=... too.")
    return StoppingCriteriaList(_joined(_made(CRITERIA, call), custom, "stopping_criteria"))


def _made(table: Sequence[Row], call: Call) -> list[Any]:
    made = (row.make(call) for row in table if row.wanted(call.o))
    return [item for item in made if item]  # a row that finds it has nothing to do gives None or False


def _joined(made: list[Any], custom: Sequence[Any] | None, argument: str) -> list[Any]:
    if not isinstance(custom, Sequence | None):
        raise TypeError(f"{argument} must be a list; got {type(custom).__name__}. Pass [it].")
    for own in custom or ():
        twin = next((item for item in made if type(item) is type(own)), None)
        if twin is not None:
            raise ValueError(
                f"{argument} holds {own!r}, but the options of this call already make {twin!r}. "
                "Pass the option alone, or leave it at its default."
            )
    return [*made, *(custom or ())]
