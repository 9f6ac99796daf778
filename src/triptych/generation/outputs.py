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


# The documented names of older releases.
GreedySearchDecoderOnlyOutput = GenerateDecoderOnlyOutput
SampleDecoderOnlyOutput = GenerateDecoderOnlyOutput
