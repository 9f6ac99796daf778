"""What `generate` returns with `return_dict_in_generate=True`."""

from dataclasses import dataclass
from typing import Any

from triptych.outputs import ModelOutput


@dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """`sequences` (B, T), prompt included; `past_key_values`, the last step's cache.

    With their options: `scores`, one (B, V) per new token, as they were after all transforms; `attentions` and
    `hidden_states`, one tuple over layers per new token, (B, H, T, S) and (B, T, C), where T is the prompt's length
    at the first token and 1 afterwards.
    """

    sequences: Any = None
    scores: Any = None
    attentions: Any = None
    hidden_states: Any = None
    past_key_values: Any = None


@dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """`sequences` (B * R, T), the R best texts of each prompt, best first; `past_key_values`, of the last open beams.

    With output_scores: `sequences_scores` (B * R,), the sum of a text's log-probabilities over its number of new
    tokens to the power of length_penalty; `scores`, one (B * K, V) per step, log-probabilities of the K beams of each
    prompt after all transforms; `beam_indices` (B * R, T), the row of `scores` from which each new token was taken,
    in order, filled with -1. `attentions` and `hidden_states` as without beams, with B * K rows.
    """

    sequences: Any = None
    sequences_scores: Any = None
    scores: Any = None
    beam_indices: Any = None
    attentions: Any = None
    hidden_states: Any = None
    past_key_values: Any = None


@dataclass
class FlaxGreedySearchOutput(ModelOutput):
    """`sequences` (B, L), prompt included, filled with pad_token_id after the end."""

    sequences: Any = None


@dataclass
class FlaxSampleOutput(ModelOutput):
    """`sequences` (B, L), prompt included, filled with pad_token_id after the end."""

    sequences: Any = None


@dataclass
class FlaxBeamSearchOutput(ModelOutput):
    """`sequences` (B, L), prompt included, filled with pad_token_id after the end; `scores` (B,) of the texts."""

    sequences: Any = None
    scores: Any = None


@dataclass
class TFGreedySearchDecoderOnlyOutput(ModelOutput):
    """`sequences` (B, L), prompt included, filled with pad_token_id after the end; `scores`, one (B, V) a new token."""

    sequences: Any = None
    scores: Any = None
    attentions: Any = None
    hidden_states: Any = None


@dataclass
class TFSampleDecoderOnlyOutput(TFGreedySearchDecoderOnlyOutput):
    """As of greedy decoding, (B * num_return_sequences, …)."""


@dataclass
class TFBeamSearchDecoderOnlyOutput(ModelOutput):
    """`sequences` (rows, L), prompt included, filled with pad_token_id after the end, rows = B * num_return_sequences.

    `sequences_scores` (rows,): the sum of log probabilities over the number of new tokens to the power of
    length_penalty. `scores`, if asked for: one (B * num_beams, V) for each new token. `beam_indices` (rows, new
    tokens): which row of the scores each token came from; -1 after the end.
    """

    sequences: Any = None
    sequences_scores: Any = None
    scores: Any = None
    beam_indices: Any = None
    attentions: Any = None
    hidden_states: Any = None


@dataclass
class TFBeamSampleDecoderOnlyOutput(TFBeamSearchDecoderOnlyOutput):
    """As of beam search."""


# The documented names of older releases.
GreedySearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
SampleDecoderOnlyOutput = GenerateDecoderOnlyOutput
BeamSearchDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
BeamSampleDecoderOnlyOutput = GenerateBeamDecoderOnlyOutput
