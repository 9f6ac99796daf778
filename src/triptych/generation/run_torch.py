"""What every decoding strategy is given, a `Run`, and what its steps leave behind, a `Trace`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from triptych.generation.configuration import GenerationConfig
from triptych.generation.feed_torch import Feed
from triptych.generation.outputs import GenerateDecoderOnlyOutput

if TYPE_CHECKING:
    from triptych.modeling_torch import NextToken


@dataclass(frozen=True)
class Run:
    """One call of `generate`, checked and prepared.

    `feed` turns ids into the next token's logits; `prompt` (B, N) are the rows that the strategy continues;
    `transforms` map ids so far (B, T) and logits (B, V) to scores (B, V); `criteria` tell the rows that end.
    """

    feed: Feed
    prompt: Tensor
    options: GenerationConfig
    transforms: Callable[[Tensor, Tensor], Tensor]
    criteria: Callable[[Tensor, Any], bool | Tensor]
    streamer: Any = None


class Trace:
    """What the steps leave behind for the output, where it was asked for."""

    def __init__(self, options: GenerationConfig) -> None:
        asked = options.return_dict_in_generate
        self.scores: tuple[Tensor, ...] | None = () if asked and options.output_scores else None
        self.attentions: list[Any] | None = [] if asked and options.output_attentions else None
        self.hidden_states: list[Any] | None = [] if asked and options.output_hidden_states else None

    def add(self, scores: Tensor, step: "NextToken") -> None:
        """Keep one step's transformed scores (B, V) and what the model gave out."""
        if self.scores is not None:
            self.scores += (scores,)
        if self.attentions is not None:
            self.attentions.append(step.attentions)
        if self.hidden_states is not None:
            self.hidden_states.append(step.hidden_states)

    def output(self, sequences: Tensor, cache: Any) -> GenerateDecoderOnlyOutput:
        """The documented output object."""
        return GenerateDecoderOnlyOutput(
            sequences=sequences,
            scores=self.scores,
            attentions=None if self.attentions is None else tuple(self.attentions),
            hidden_states=None if self.hidden_states is None else tuple(self.hidden_states),
            past_key_values=cache,
        )
