"""Texts that beam search has finished: which are kept, when a prompt has enough of them, and how they are read back.

All of it is small and lives on the host. Scores are float64, so that a text's score is what its float32 log-probability
gives when divided once.

Shapes: B prompts, K beams of a prompt (of a group, where there are groups), R texts returned for a prompt.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.generation.configuration import GenerationConfig

NEVER = -math.inf  # the score of a place that holds no text


class Texts(NamedTuple):
    """Finished texts, each said by where it ended: all (B, K) or (B, R).

    `scores`; `lengths` in new tokens, without an end; `beams`, the row of the prompt's beams that held the last of
    them; `closed`, whether a token of the end followed.
    """

    scores: Tensor
    lengths: Tensor
    beams: Tensor
    closed: Tensor

    def pick(self, order: Tensor) -> "Texts":
        """The texts named by `order` (B, R), in that order."""
        return Texts(*(value.gather(1, order) for value in self))

    @classmethod
    def joined(cls, parts: "list[Texts]") -> "Texts":
        """Those of all parts, one after the other."""
        return cls(*(torch.cat(values, dim=1) for values in zip(*parts, strict=True)))

    def best(self, many: int) -> "Texts":
        """The `many` best, best first; of equals the younger first."""
        return self.pick(self.scores.argsort(dim=1, stable=True).flip(1)[:, :many])


class Finished:
    """The K best finished texts of each prompt, oldest first, and which prompts are `done` (B,)."""

    def __init__(self, prompts: int, beams: int, options: GenerationConfig, room: int) -> None:
        self.options, self.room = options, room  # in new tokens
        scores = torch.full((prompts, beams), NEVER, dtype=torch.float64)
        none = torch.zeros((prompts, beams), dtype=torch.long)
        self.texts = Texts(scores, none, none, none.bool())
        self.done = torch.zeros(prompts, dtype=torch.bool)

    def add(self, totals: Tensor, beams: Tensor, length: int, closed: bool) -> None:
        """Keep the best of the old texts and the new ones, of log-probability `totals` (B, K); -inf stands for none.

        The new ones have `length` tokens and, when `closed`, an end that counts as one more. A prompt that is done
        keeps what it has. A newcomer must be better than the worst, of equals the oldest, which it replaces.
        """
        totals = totals.masked_fill(self.done[:, None], NEVER)
        if not bool((totals > NEVER).any()):
            return
        old = self.texts
        scores, order = (totals.double() / (length + closed) ** self.options.length_penalty).sort(
            dim=1, descending=True, stable=True
        )
        worst = old.scores.sort(dim=1, stable=True)
        better = scores > worst.values  # true up to some place: one side falls, the other rises
        stays = torch.ones_like(better).scatter(1, worst.indices, ~better)
        new = Texts(scores, torch.full_like(order, length), beams.gather(1, order), torch.full_like(better, closed))
        kept = (~torch.cat((stays, better), dim=1)).byte().argsort(dim=1, stable=True)[:, : scores.shape[1]]
        self.texts = Texts.joined([old, new]).pick(kept)

    def settle(self, best: Tensor, length: int) -> None:
        """Mark the prompts that have K texts and, as `early_stopping` says, nothing better to wait for.

        `best` (B,) is the log-probability of the best continuation of `length` new tokens.
        """
        worst, penalty = self.texts.scores.amin(dim=1), self.options.length_penalty
        if self.options.early_stopping is not True:
            longest = self.room if self.options.early_stopping == "never" and penalty > 0 else length
            worst = worst.where(worst >= best.double() / longest**penalty, NEVER)
        self.done |= worst > NEVER


class History:
    """Which token each beam took at each step, and behind which beam of its prompt: (B, K) per step."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.parents: list[Tensor] = []

    def add(self, parents: Tensor, tokens: Tensor) -> None:
        """One step."""
        self.parents.append(parents)
        self.tokens.append(tokens)

    def read(self, texts: Texts, end: int | None, pad: int, room: int) -> tuple[Tensor, Tensor]:
        """New tokens (B, R, S) of the texts, with `end` behind each that leaves room for it and then `pad`.

        Returns also the beam that each token continued, -1 where there is none.
        """
        longest = int(texts.lengths.max())
        width = longest if end is None else min(longest + 1, room)
        tokens = torch.full((*texts.lengths.shape, width), pad)
        parents = torch.full_like(tokens, -1)
        if end is not None:
            places = torch.arange(width) == texts.lengths[..., None]
            tokens[places] = end
            parents = parents.where(~(places & texts.closed[..., None]), texts.beams[..., None])
        beams = texts.beams
        for step in reversed(range(longest)):
            inside = step < texts.lengths
            parent = self.parents[step].gather(1, beams)
            tokens[..., step] = self.tokens[step].gather(1, beams).where(inside, tokens[..., step])
            parents[..., step] = parent.where(inside, parents[..., step])
            beams = parent.where(inside, beams)
        return tokens, parents
