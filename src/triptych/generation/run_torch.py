"""What every decoding strategy is given, a `Run`, and what its steps leave behind: `Rows` and a `Trace`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.generation.checks import as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.feed_torch import Feed
from triptych.generation.outputs import GenerateDecoderOnlyOutput

if TYPE_CHECKING:
    from triptych.generation.drafting_torch import Drafter
    from triptych.runtime.preparing import NextToken


@dataclass(frozen=True)
class Run:
    """One call of `generate`, checked and prepared.

    `feed` turns ids into the next token's logits; `prompt` (B, N) are the rows that the strategy continues;
    `transforms` map ids so far (B, T) and logits (B, V) to scores (B, V); `criteria` tell the rows that end.
    `drafter` proposes tokens to assisted decoding.
    """

    feed: Feed
    prompt: Tensor
    options: GenerationConfig
    transforms: Callable[..., Tensor]
    criteria: Callable[[Tensor, Any], bool | Tensor]
    streamer: Any = None
    drafter: "Drafter | None" = None


class Rows:
    """The ids of all rows in a buffer of their final length, and which rows still run."""

    def __init__(self, run: Run) -> None:
        options = run.options
        count, self.length = run.prompt.shape
        self.buffer = run.prompt.new_zeros((count, options.max_length))
        self.buffer[:, : self.length] = run.prompt
        self.running = torch.ones(count, dtype=torch.bool, device=self.buffer.device)
        self._ends = torch.tensor(as_ids(options.eos_token_id), dtype=torch.long, device=self.buffer.device)
        self._pad = options.pad_token_id if count > 1 else None
        self._streamer, self._criteria = run.streamer, run.criteria
        if self._streamer is not None:
            self._streamer.put(run.prompt.cpu())

    @property
    def ids(self) -> Tensor:
        """The ids so far, (B, T)."""
        return self.buffer[:, : self.length]

    def add(self, tokens: Tensor, scores: Any) -> "bool | Later":
        """Add a token (B,) to each row, or padding behind its end; true once all rows are over.

        `scores` are those of all steps, for the criteria that look at them.
        """
        if self._pad is not None:
            tokens = tokens.where(self.running, self._pad)
        self.buffer[:, self.length] = tokens
        self.length += 1
        if self._streamer is not None:
            self._streamer.put(tokens.cpu())
        if len(self._ends):
            self.running &= (tokens[:, None] != self._ends).all(dim=1)
        verdict = self._criteria(self.ids, scores)
        if isinstance(verdict, Tensor):
            self.running &= ~verdict
        elif verdict:
            return True
        return (len(self._ends) > 0 or isinstance(verdict, Tensor)) and Later(~self.running.any())


class Later:
    """A yes or no that is still being computed: the host waits for it where it looks at it, not before."""

    def __init__(self, value: Tensor) -> None:
        self._value, self._there = value, None
        if value.device.type == "cuda":
            self._value = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record(torch.cuda.current_stream(value.device))

    def __bool__(self) -> bool:
        if self._there is not None:
            self._there.synchronize()
        return bool(self._value)


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
