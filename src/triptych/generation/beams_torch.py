"""Beam search and beam sampling in PyTorch, with diverse groups (Vijayakumar et al., 2016, arXiv:1610.02424).

What a step chooses comes to the host once; the bookkeeping there is a handful of operations on tensors (B, K). Texts
are kept as pointers into the `History` of choices and read back at the end. The cache stays where it is: `Feed.follow`
tells it which row continues which.

Shapes: B prompts, K beams of each (G of a group), N = B * K rows, T ids so far, V vocabulary, C candidates of a prompt.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.generation.checks import as_ids
from triptych.generation.finished_torch import NEVER, Finished, History, Texts
from triptych.generation.outputs import GenerateBeamDecoderOnlyOutput
from triptych.generation.run_torch import Run, Trace
from triptych.generation.sampling_torch import draw, undecided

_HOPELESS = -1e9  # finite, so that such a beam is found even where nothing else is allowed
_RULED_OUT = -1e300  # of a text that is worse than any but better than none; becomes -inf in float32


class Candidates(NamedTuple):
    """Continuations of a prompt's beams, best first: log-probabilities, beams and tokens, (B, C) each, on the host."""

    totals: Tensor
    parents: Tensor
    tokens: Tensor

    def pick(self, order: Tensor) -> "Candidates":
        """Those named by `order` (B, …), in that order."""
        return Candidates(*(value.gather(1, order) for value in self))

    @classmethod
    def joined(cls, groups: "list[Candidates]") -> "Candidates":
        """Those of all groups, one after the other."""
        return cls(*(torch.cat(values, dim=1) for values in zip(*groups, strict=True)))


class Search:
    """The open texts of a beam search: K for each prompt, in groups of G beams that search apart."""

    def __init__(self, run: Run) -> None:
        options = run.options
        self.run, self.beams, self.groups = run, options.num_beams, options.num_beam_groups
        self.size = self.beams // self.groups  # G
        self.prompts = len(run.prompt) // self.beams  # B
        self.ids = run.prompt
        self.ends = torch.tensor(as_ids(options.eos_token_id), dtype=torch.long)
        self.pad = (*as_ids(options.pad_token_id), *as_ids(options.eos_token_id), 0)[0]
        self.totals = torch.zeros((self.prompts, self.beams))
        if not options.do_sample:  # all beams hold the same text, so one of each group goes on at first
            self.totals.view(self.prompts, self.groups, self.size)[..., 1:] = _HOPELESS
        self.room = options.max_length - run.prompt.shape[1]  # in new tokens
        self.finished = [Finished(self.prompts, self.size, options, self.room) for _ in range(self.groups)]
        self.history = History()

    @property
    def length(self) -> int:
        """How many new tokens the open texts have."""
        return len(self.history.tokens)

    @property
    def done(self) -> bool:
        """Whether no prompt has anything to wait for."""
        return all(bool(group.done.all()) for group in self.finished)

    def members(self, group: int) -> slice:
        """The group's places among a prompt's beams."""
        return slice(group * self.size, (group + 1) * self.size)

    def processed(self, scores: Tensor, group: int = 0, chosen: Sequence[Candidates] = ()) -> Tensor:
        """The group's log-probabilities (B * G, V) after all transforms, which may see what earlier groups chose."""
        if self.groups == 1:
            return self.run.transforms(self.ids, scores)
        ids = self.ids.view(self.prompts, self.beams, -1)[:, self.members(group)].flatten(0, 1)
        current = torch.zeros((self.prompts, self.beams), dtype=torch.long)
        for earlier, candidates in enumerate(chosen):
            current[:, self.members(earlier)] = candidates.tokens
        return self.run.transforms(ids, scores, current_tokens=current.flatten().to(ids.device), beam_group_idx=group)

    def candidates(self, scores: Tensor, group: int = 0) -> Candidates:
        """The best continuations of the group's beams, or drawn ones, by the scores (B * G, V) of the next token."""
        sampled = self.run.options.do_sample
        vocabulary = scores.shape[-1]
        totals = self.totals[:, self.members(group)].reshape(-1, 1).to(scores.device)
        sums = (scores + totals).view(self.prompts, -1)  # (B, G * V)
        many = min(self.size * (2 if sampled else max(2, 1 + len(self.ends))), sums.shape[1])
        if sampled:
            places = draw(sums.softmax(dim=-1), many)
            chosen, order = sums.gather(1, places).sort(dim=1, descending=True)
            places = places.gather(1, order)
        else:
            chosen, places = sums.topk(many, dim=1)
        places, chosen = places.cpu(), chosen.cpu()  # the one time in a step that the host waits
        if bool(chosen.isnan().any()):
            raise undecided("There are no best texts: a score is NaN.")
        return Candidates(chosen, places // vocabulary + group * self.size, places % vocabulary)

    def finish(self, found: Candidates, group: int = 0, allowed: Tensor | None = None) -> Candidates:
        """Texts that end among the G best, where `allowed` (B, C), are finished; returns the G best that go on."""
        finished, ended = self.finished[group], torch.isin(found.tokens, self.ends)
        was_done = finished.done.clone()
        first, goes_on = slice(self.size), ended.byte().argsort(dim=1, stable=True)[:, : self.size]
        closing = ended if allowed is None else ended & allowed
        texts = found.totals[:, first].masked_fill(~closing[:, first], NEVER)
        finished.add(texts, found.parents[:, first], self.length, closed=True)
        # A text that ended is nobody's parent. A prompt that was done goes on with padding, to keep its rows busy.
        kept = found._replace(totals=found.totals.masked_fill(ended, NEVER)).pick(goes_on)
        best = found.totals.amax(dim=1).where((kept.totals > NEVER).any(dim=1), NEVER)
        finished.settle(best, self.length + 1)
        return kept._replace(
            totals=kept.totals.masked_fill(finished.done[:, None], 0.0),
            tokens=kept.tokens.masked_fill(was_done[:, None], self.pad),
        )

    def extend(self, chosen: Candidates) -> list[int]:
        """Each beam takes its token; `chosen` are (B, K). Returns the row that each of the N rows continues."""
        self.totals = chosen.totals
        self.history.add(chosen.parents, chosen.tokens)
        rows = (chosen.parents + torch.arange(self.prompts)[:, None] * self.beams).flatten()
        device = self.ids.device
        tokens = chosen.tokens.view(-1, 1).to(device)
        self.ids = torch.cat((self.ids.index_select(0, rows.to(device)), tokens), dim=1)
        parents: list[int] = rows.tolist()
        return parents

    def stop(self, verdict: Tensor) -> None:
        """Finish the texts of the rows that a criterion ends, `verdict` (N,), as they are."""
        stopped = verdict.cpu().view(self.prompts, self.beams)
        places = torch.arange(self.beams).expand_as(stopped)
        for group, finished in enumerate(self.finished):
            part = self.members(group)
            texts = self.totals[:, part].masked_fill(~stopped[:, part], NEVER)
            finished.add(texts, places[:, part], self.length, closed=False)
            self.totals[:, part] = self.totals[:, part].masked_fill(stopped[:, part], NEVER)
            finished.settle(self.totals[:, part].amax(dim=1), self.length)
            self.totals[:, part] = self.totals[:, part].masked_fill(finished.done[:, None], 0.0)

    def close(self, wanted: Tensor | None = None) -> Texts:
        """The texts to return, (B, R): the best of those finished and of the open ones of prompts that are not done.

        Open texts that are not `wanted` (B, K) are taken only where there are too few others.
        """
        many = self.run.options.num_return_sequences
        places = torch.arange(self.beams).expand(self.prompts, -1)
        wanted = torch.ones_like(places, dtype=torch.bool) if wanted is None else wanted
        for group, finished in enumerate(self.finished):
            part = self.members(group)
            totals = self.totals[:, part].double().clamp(min=_RULED_OUT)
            finished.add(totals.masked_fill(~wanted[:, part], NEVER), places[:, part], self.length, closed=False)
            enough = (finished.texts.scores > NEVER).sum(dim=1, keepdim=True) >= many
            rest = totals.masked_fill(wanted[:, part] | enough, NEVER)
            finished.add(rest, places[:, part], self.length, closed=False)
        return Texts.joined([group.texts for group in self.finished]).best(many)


def decode(run: Run) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """Beam search, and with do_sample=True beam sampling: at each step every prompt goes on with its K best beams."""
    search, trace = Search(run), Trace(run.options)
    while True:
        step = run.feed.step(search.ids)
        raw = run.feed.log_probabilities(step.logits).view(search.prompts, search.groups, search.size, -1)
        scores: list[Tensor] = []  # (B, G, V) of each group
        chosen: list[Candidates] = []
        for group in range(search.groups):
            processed = search.processed(raw[:, group].flatten(0, 1), group, chosen)
            scores.append(processed.view(search.prompts, search.size, -1))
            chosen.append(search.finish(search.candidates(processed, group), group))
        trace.add(scores[0].flatten(0, 1) if search.groups == 1 else torch.cat(scores, dim=1).flatten(0, 1), step)
        run.feed.follow(search.extend(Candidates.joined(chosen)))
        verdict = run.criteria(search.ids, trace.scores)
        if isinstance(verdict, Tensor):
            search.stop(verdict)
        if search.done or verdict is True:
            return output(search, trace, search.close())


def output(search: Search, trace: Trace, texts: Texts) -> Tensor | GenerateBeamDecoderOnlyOutput:
    """The ids (B * R, S) of the texts (B, R), or the documented object.

    Each text shorter than the longest ends in the first of the eos ids, also where a criterion cut it.
    """
    options = search.run.options
    length = search.run.prompt.shape[1]
    end = int(search.ends[0]) if len(search.ends) else None
    tokens, parents = search.history.read(texts, end, search.pad, search.room)
    prompt = search.run.prompt.view(search.prompts, search.beams, length)[:, : texts.scores.shape[1]]
    sequences = torch.cat((prompt, tokens.to(prompt)), dim=-1).flatten(0, 1)
    if not options.return_dict_in_generate:
        return sequences
    indices = parents + search.beams * torch.arange(search.prompts)[:, None, None]
    indices = torch.nn.functional.pad(indices.where(parents >= 0, -1), (0, length), value=-1).flatten(0, 1)
    told = options.output_scores
    return GenerateBeamDecoderOnlyOutput(
        **vars(trace.output(sequences, search.run.feed.in_order())),
        sequences_scores=texts.scores.flatten().float().to(sequences.device) if told else None,
        beam_indices=indices.to(sequences.device) if told else None,
    )
