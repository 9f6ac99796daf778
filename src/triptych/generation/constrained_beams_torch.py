"""Beam search for texts that hold given phrases (Post and Vilar, 2018, arXiv:1804.06609), in PyTorch.

Besides the K best continuations, each step considers the tokens that take a text further with its constraints, and
shares the beams out among the stages that the texts have reached. A text may end only when nothing is missing.

Shapes: B prompts, K beams of each, N = B * K rows, V vocabulary.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.generation.beams_torch import Candidates, Search, output
from triptych.generation.constraints import ConstraintListState, read_constraints
from triptych.generation.outputs import GenerateBeamDecoderOnlyOutput
from triptych.generation.run_torch import Run, Trace

_STAGE = 100.0  # what a stage counts in log-probability, so that the later ones come first


class _Open(NamedTuple):
    """What a beam holds: how far its text has come, and a number that only the same text of the prompt shares."""

    state: ConstraintListState
    text: int = 0


class _Wish(NamedTuple):
    """A text that might go on: `total` log-probability with the `token` behind the beam `parent` of the prompt."""

    total: float
    parent: int
    token: int


def decode(run: Run) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Beam search whose texts hold what `constraints` and `force_words_ids` ask for, where that can be reached."""
    search, trace = Search(run), Trace(run.options)
    constraints = read_constraints(run.options.constraints, run.options.force_words_ids)
    beams = [_Open(ConstraintListState(constraints))] * len(run.prompt)  # what the prompt holds does not count
    while True:
        step = run.feed.step(search.ids)
        scores = search.processed(run.feed.log_probabilities(step.logits))
        trace.add(scores, step)
        found, forced = search.candidates(scores), _forced(search, scores, beams)
        going = search.finish(found, allowed=_complete(search, beams).gather(1, found.parents))
        chosen, beams = _shared_out(search, going, forced, beams)
        run.feed.follow(search.extend(chosen))
        verdict = run.criteria(search.ids, trace.scores)
        if isinstance(verdict, Tensor):
            search.stop(verdict)
        if search.done or verdict is True:
            return output(search, trace, search.close(_complete(search, beams)))


def _complete(search: Search, beams: list[_Open]) -> Tensor:
    """Which texts lack nothing, (B, K)."""
    return torch.tensor([beam.state.completed for beam in beams]).view(search.prompts, search.beams)


def _forced(search: Search, scores: Tensor, beams: list[_Open]) -> list[list[_Wish]]:
    """For each prompt, the tokens that take one of its texts further; `scores` (N, V) are the next token's."""
    pairs = [
        (row, token)
        for row, beam in enumerate(beams)
        if not beam.state.completed
        for token in beam.state.advance() or ()
    ]
    wishes: list[list[_Wish]] = [[] for _ in range(search.prompts)]
    if pairs:
        rows, tokens = torch.tensor(pairs, device=scores.device).unbind(dim=1)
        sums = scores[rows, tokens] + search.totals.flatten().to(scores.device)[rows]
        for (row, token), total in zip(pairs, sums.tolist(), strict=True):
            wishes[row // search.beams].append(_Wish(total, row % search.beams, token))
    return wishes


def _shared_out(
    search: Search, going: Candidates, forced: list[list[_Wish]], beams: list[_Open]
) -> tuple[Candidates, list[_Open]]:
    """The K texts of each prompt that go on, (B, K), and how far they have come."""
    chosen: list[_Wish] = []
    opened: list[_Open] = []
    for prompt, more in enumerate(forced):
        old = beams[prompt * search.beams : (prompt + 1) * search.beams]
        plain = [_Wish(*values) for values in zip(*(part[prompt].tolist() for part in going), strict=True)]
        wishes = plain if search.finished[0].done[prompt] else _without_twins(plain, more, old)
        states = [old[wish.parent].state.copy(stateful=True) for wish in wishes]
        for state, wish in zip(states, wishes, strict=True):
            state.add(wish.token)
        order = _in_turn(wishes, states) if len(wishes) > len(plain) else range(len(plain))
        numbers: dict[tuple[int, int], int] = {}
        for place in itertools.islice(order, search.beams):
            wish = wishes[place]
            text = numbers.setdefault((old[wish.parent].text, wish.token), len(numbers))
            chosen.append(wish)
            opened.append(_Open(states[place], text))
    totals, parents, tokens = (torch.tensor(part).view(search.prompts, -1) for part in zip(*chosen, strict=True))
    return Candidates(totals, parents, tokens), opened


def _without_twins(plain: list[_Wish], more: list[_Wish], old: list[_Open]) -> list[_Wish]:
    """All of `plain`, and of `more` each text that is not there yet."""
    seen = {(old[wish.parent].text, wish.token) for wish in plain}
    wishes = list(plain)
    for wish in more:
        text = (old[wish.parent].text, wish.token)
        if text not in seen:
            seen.add(text)
            wishes.append(wish)
    return wishes


def _in_turn(wishes: list[_Wish], states: list[ConstraintListState]) -> list[int]:
    """The order in which the wishes are met: the best of each stage, later stages first, then the second best, …"""
    stages = torch.tensor([state.get_bank() for state in states])
    ranked = (stages * _STAGE + torch.tensor([wish.total for wish in wishes])).argsort(descending=True, stable=True)
    turns: list[tuple[int, int]] = []
    for _, run in itertools.groupby(ranked.tolist(), key=lambda place: int(stages[place])):
        turns += enumerate(run)
    return [place for _, place in sorted(turns, key=lambda turn: turn[0])]
