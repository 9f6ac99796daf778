"""Which options of `generate` ask for which transforms of the scores, and in which order: the documented one.

JAX and TensorFlow share this table: a transform that is made here works in a compiled loop. The functions that make
transforms are those of `logits_flax` or `logits_tf`. A transform maps the ids so far (B, L), of which the first
`length` are there, and scores (B, V) to scores (B, V).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.generation.checks import INF, as_ids, bias_pairs, require_ids
from triptych.generation.configuration import GenerationConfig

Library = Any  # the module logits_flax or logits_tf
Transform = Callable[[Any, Any, Any], Any]  # ids (B, L), scores (B, V), length -> scores (B, V)


@dataclass(frozen=True)
class Call:
    """What the table reads: the options `o`, and the prompt's `length` N."""

    o: Any  # GenerationConfig; a row reads only options that it found set
    length: int

    @property
    def begin(self) -> int:
        """The row's length where the first free token is chosen, behind what is forced."""
        shifted = self.length + int(self.length == 1 and self.o.forced_bos_token_id is not None)
        forced = self.o.forced_decoder_ids
        return shifted + (int(forced[-1][0] or 0) if forced else 0)


@dataclass(frozen=True)
class Row:
    """One transform: when it is wanted, and how it is made."""

    wanted: Callable[[GenerationConfig], Any]
    make: Callable[[Library, Call], Transform]


def transforms(library: Library, call: Call, custom: Sequence[Transform] | None) -> Transform:
    """All transforms of a step as one: rules, the user's own, warpers when sampling, normalisation.

    Raises: ValueError for an option out of its range.
    """
    normal: list[Transform] = [library.log_probabilities] if call.o.renormalize_logits else []
    made: list[Transform] = [row.make(library, call) for row in RULES if row.wanted(call.o)]
    made += [*(custom or ()), *normal]
    if call.o.do_sample:
        made += [*(row.make(library, call) for row in WARPERS if row.wanted(call.o)), *normal]

    def transform(ids: Any, scores: Any, length: Any) -> Any:
        for step in made:
            scores = step(ids, scores, length)
        return scores

    return transform


def _no_bad_words(library: Library, bad_words_ids: Any, eos_token_id: Any) -> Transform:
    """Forbid the token that would complete one of the words; a word that is only the end is let be."""
    if not isinstance(bad_words_ids, Sequence) or not bad_words_ids:
        raise ValueError(f"bad_words_ids must be a non-empty list of lists of ids; got {bad_words_ids!r}.")
    for word in bad_words_ids:
        if isinstance(word, int):
            raise ValueError(f"bad_words_ids must be a list of lists of ids; got {bad_words_ids!r}.")
        require_ids("each word of bad_words_ids", word)
    ends = [[eos] for eos in as_ids(eos_token_id)]
    forbid: Transform = library.biased([(tuple(word), -INF) for word in bad_words_ids if list(word) not in ends])
    return forbid


def _forced_at_places(library: Library, pairs: Any) -> Transform:
    """Force tokens at places: [place in the row, token id] pairs; an id of None forces none."""
    if not isinstance(pairs, Sequence) or any(not isinstance(p, Sequence) or len(p) != 2 for p in pairs):
        raise ValueError(f"forced_decoder_ids must be a list of [place, token id] pairs; got {pairs!r}.")
    made = [library.forced("forced_decoder_ids", token, place) for place, token in pairs if token is not None]

    def transform(ids: Any, scores: Any, length: Any) -> Any:
        for step in made:
            scores = step(ids, scores, length)
        return scores

    return transform


def _is_set(name: str, neutral: float) -> Callable[[GenerationConfig], bool]:
    return lambda o: getattr(o, name) not in (None, neutral)


RULES = (
    Row(lambda o: o.sequence_bias is not None, lambda t, c: t.biased(bias_pairs(c.o.sequence_bias))),
    Row(
        _is_set("encoder_repetition_penalty", 1.0),
        lambda t, c: t.prompt_repetition(c.o.encoder_repetition_penalty, c.length),
    ),
    Row(_is_set("repetition_penalty", 1.0), lambda t, c: t.repetition(c.o.repetition_penalty)),
    Row(
        _is_set("no_repeat_ngram_size", 0),
        lambda t, c: t.no_repeats("no_repeat_ngram_size", c.o.no_repeat_ngram_size),
    ),
    Row(
        _is_set("encoder_no_repeat_ngram_size", 0),
        lambda t, c: t.no_repeats("encoder_no_repeat_ngram_size", c.o.encoder_no_repeat_ngram_size, c.length),
    ),
    Row(lambda o: o.bad_words_ids is not None, lambda t, c: _no_bad_words(t, c.o.bad_words_ids, c.o.eos_token_id)),
    Row(
        lambda o: o.min_length and o.eos_token_id is not None,
        lambda t, c: t.shortest("min_length", c.o.min_length, 0, c.o.eos_token_id),
    ),
    Row(
        lambda o: o.min_new_tokens and o.eos_token_id is not None,
        lambda t, c: t.shortest("min_new_tokens", c.o.min_new_tokens, c.length, c.o.eos_token_id),
    ),
    Row(
        lambda o: o.forced_bos_token_id is not None,
        lambda t, c: t.forced("forced_bos_token_id", c.o.forced_bos_token_id, 1),
    ),
    Row(
        lambda o: o.forced_eos_token_id is not None,
        lambda t, c: t.forced("forced_eos_token_id", c.o.forced_eos_token_id, c.o.max_length - 1),
    ),
    Row(lambda o: o.remove_invalid_values, lambda t, c: t.finite),
    Row(
        lambda o: o.exponential_decay_length_penalty is not None,
        lambda t, c: t.rising_end(c.o.exponential_decay_length_penalty, c.o.eos_token_id, c.length),
    ),
    Row(lambda o: o.suppress_tokens, lambda t, c: t.suppressed("suppress_tokens", c.o.suppress_tokens)),
    Row(
        lambda o: o.begin_suppress_tokens,
        lambda t, c: t.suppressed("begin_suppress_tokens", c.o.begin_suppress_tokens, c.begin),
    ),
    Row(lambda o: o.forced_decoder_ids is not None, lambda t, c: _forced_at_places(t, c.o.forced_decoder_ids)),
)

WARPERS = (
    Row(_is_set("temperature", 1.0), lambda t, c: t.temperature(c.o.temperature)),
    Row(_is_set("top_k", 0), lambda t, c: t.top_k(c.o.top_k)),
    Row(_is_set("top_p", 1.0), lambda t, c: t.top_p(c.o.top_p)),
    Row(_is_set("typical_p", 1.0), lambda t, c: t.typical(c.o.typical_p)),
    Row(_is_set("epsilon_cutoff", 0.0), lambda t, c: t.epsilon(c.o.epsilon_cutoff)),
    Row(_is_set("eta_cutoff", 0.0), lambda t, c: t.eta(c.o.eta_cutoff)),
)
