"""Where assisted decoding takes its drafts from: a smaller model, or the text itself.

Shapes: B rows, N ids of the prompt, T ids so far, K tokens of a draft, V vocabulary.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from triptych.generation.checks import as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.feed_torch import Feed
from triptych.generation.options import Request
from triptych.generation.prompt_torch import Prompt
from triptych.generation.sampling_torch import drawn

if TYPE_CHECKING:
    from triptych.modeling_torch import PreTrainedModel


class Drafter(Protocol):
    """Proposes how the text may go on, and is told how much of it was right."""

    def propose(self, ids: Tensor, room: int) -> tuple[Tensor, Tensor | None]:
        """A draft (B, K), K at most `room`, behind `ids` (B, T); and the scores (B, K, V) that it was drawn from."""

    def learn(self, accepted: int, ids: Tensor) -> None:
        """Take note that the first `accepted` tokens of the draft were right, and that the text is now `ids`."""


@dataclass
class AssistantModel:
    """A smaller model of the same vocabulary writes the draft, by the same rules as the text (Leviathan et al., 2023).

    A draft has `tokens` tokens, fewer where a row ends or the assistant's positions do. By the schedule "heuristic" it
    grows by two when all of it was right and shrinks by one when not; "constant" leaves it as it is.
    """

    feed: Feed
    options: GenerationConfig
    transforms: Callable[[Tensor, Tensor], Tensor]
    tokens: float
    schedule: str

    def propose(self, ids: Tensor, room: int) -> tuple[Tensor, Tensor | None]:
        """The draft; its scores when it was sampled."""
        positions = self.feed.model.max_positions
        left = room if positions is None else min(room, positions - self.feed.offset - ids.shape[1] + 1)
        many = min(int(self.tokens), left)
        if many < 1:
            return ids[:, :0], None
        text = torch.nn.functional.pad(ids, (0, many))
        ends = torch.tensor(as_ids(self.options.eos_token_id), dtype=torch.long, device=ids.device)
        going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        scores: list[Tensor] = []
        for length in range(ids.shape[1], ids.shape[1] + many):
            logits = self.feed.step(text[:, :length]).logits
            scores.append(self.transforms(text[:, :length], logits.to(ids.device)))
            text[:, length] = drawn(scores[-1]) if self.options.do_sample else scores[-1].argmax(dim=-1)
            if len(ends):
                going &= (text[:, length, None] != ends).all(dim=1)
                if not bool(going.any()):
                    break
        draft = text[:, ids.shape[1] : length + 1]
        return draft, torch.stack(scores, dim=1) if self.options.do_sample else None

    def learn(self, accepted: int, ids: Tensor) -> None:
        """Set the next draft's length, and take back what the assistant saw of tokens that were wrong."""
        self.feed.rewind(ids.shape[1] - 1)
        if self.schedule == "heuristic":
            self.tokens = self.tokens + 2 if accepted >= int(self.tokens) else max(1, self.tokens - 1)


@dataclass(frozen=True)
class PromptLookup:
    """The draft is what followed where the text's last few tokens first stood in it (Saxena, 2023).

    Runs of `longest` tokens are looked for before shorter ones. `always` drafts a token, 0, even when nothing is found:
    sampling then draws as often as the reference, so that a seed gives its ids.
    """

    tokens: int
    longest: int = 2
    always: bool = False

    def propose(self, ids: Tensor, room: int) -> tuple[Tensor, Tensor | None]:
        """Up to `tokens` tokens; rows that find fewer than others guess 0, which costs nothing."""
        found = [self._followers(row) for row in ids.tolist()]
        many = min(max(self.always, *map(len, found)), room)
        draft = [row[:many] + [0] * (many - len(row)) for row in found]
        return torch.tensor(draft, dtype=ids.dtype, device=ids.device).view(len(ids), many), None

    def learn(self, accepted: int, ids: Tensor) -> None:
        """Nothing: the text is all there is."""

    def _followers(self, row: list[int]) -> list[int]:
        for size in range(min(self.longest, len(row) - 1), 0, -1):
            run = row[-size:]
            for start in range(len(row) - size):
                if row[start : start + size] == run:
                    return row[start + size : start + size + self.tokens]
        return []


def drafter(
    request: Request,
    prompt: Prompt,
    room: int,
    transforms: Callable[[Tensor, Tensor], Tensor],
    assistant: "PreTrainedModel | None",
) -> Drafter:
    """What writes the drafts of a call that asked for them.

    How many tokens a draft of a model has is what the call says, else what the assistant's own options do.
    """
    options = request.options
    if assistant is None:
        return PromptLookup(
            options.prompt_lookup_num_tokens or 0, options.max_matching_ngram_size or 2, options.do_sample
        )
    own = assistant.generation_config or options
    tokens, schedule = (
        getattr(options if name in request.named else own, name)
        for name in ("num_assistant_tokens", "num_assistant_tokens_schedule")
    )
    plain = copy.copy(options)
    plain.return_dict_in_generate = False
    text = Prompt(prompt.ids.to(assistant.device), mask=prompt.mask if prompt.embeds is None else None)
    feed = Feed(assistant, text, room, plain, whole=True)
    return AssistantModel(feed, options, transforms, float(tokens), schedule)
