"""Assisted decoding in PyTorch: a cheap draft of the next tokens, which the model checks in one step.

The text is the one that the model alone would write: greedily the same ids, sampled the same distribution
(Leviathan et al., 2023; Chen et al., 2023, "Accelerating Large Language Model Decoding with Speculative Sampling").

Shapes: B rows, T ids so far, K tokens of the draft, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.run_torch import Rows, Run, Trace
from triptych.generation.sampling_torch import draw, drawn

if TYPE_CHECKING:
    from triptych.runtime.preparing import NextToken


def decode(run: Run) -> Tensor | GenerateDecoderOnlyOutput:
    """Assisted decoding: draft, check, keep what is right and one token more, until all rows end.

    All rows go on by the same number of tokens, the fewest that a running row accepts.
    """
    options, feed, drafter = run.options, run.feed, run.drafter
    assert drafter is not None
    rows, trace = Rows(run), Trace(options)
    over = False
    while not over:
        length = rows.length
        draft, drawn_from = drafter.propose(rows.ids, options.max_length - length - 1)  # (B, K)
        many = draft.shape[1]
        text = torch.cat((rows.ids, draft), dim=1)  # not in the buffer: a transform may keep what it is given
        step = feed.step(text, last=many + 1)
        scores = [run.transforms(text[:, : length + i], step.logits[:, i]) for i in range(many + 1)]  # K + 1 of (B, V)
        tokens, accepted = _checked(torch.stack(scores, dim=1), draft, drawn_from, rows.running, options.do_sample)
        for i in range(accepted + 1):
            trace.add(scores[i], _place(step, i, many))
            over = bool(rows.add(tokens[:, i], trace.scores))
            if over:
                break
        feed.rewind(rows.length - 1)
        drafter.learn(accepted, rows.ids)
    sequences = rows.ids.clone()
    return trace.output(sequences, feed.in_order()) if options.return_dict_in_generate else sequences


def _checked(
    scores: Tensor, draft: Tensor, drawn_from: Tensor | None, running: Tensor, sample: bool
) -> tuple[Tensor, int]:
    """The tokens (B, K + 1) that the scores (B, K + 1, V) call for, and how many of the draft's all rows accept.

    Those after the first that is not the draft's are worth nothing. `drawn_from` are the draft's own scores.
    """
    many = draft.shape[1]
    if not sample:
        tokens = scores.argmax(dim=-1)
    elif drawn_from is None:
        tokens = drawn(scores.flatten(0, 1)).view(len(draft), many + 1)
    else:
        return _speculative(scores.softmax(dim=-1), draft, drawn_from.softmax(dim=-1), running)
    return tokens, _accepted(tokens[:, :many] == draft, running)


def _speculative(p: Tensor, draft: Tensor, q: Tensor, running: Tensor) -> tuple[Tensor, int]:
    """Speculative sampling: a drafted token stands with probability p / q, else one is drawn from what p has over q.

    `p` (B, K + 1, V) are the model's probabilities, `q` (B, K, V) those that the draft (B, K) was drawn from.
    """
    many = draft.shape[1]
    ratio = (p[:, :many].gather(2, draft[..., None]) / q.gather(2, draft[..., None])).squeeze(2)  # (B, K)
    stands = torch.rand_like(ratio) <= ratio
    accepted = _accepted(stands, running)
    rest = p[:, accepted]
    if accepted == many:
        return torch.cat((draft, draw(rest)), dim=1), accepted
    over = (rest - q[:, accepted]).clamp(min=0.0)
    over = over.where(over.sum(dim=-1, keepdim=True) > 0, rest)  # p and q alike but for rounding
    tokens = draft.clone()
    tokens[:, accepted] = draft[:, accepted].where(stands[:, accepted], draw(over).squeeze(1))
    return tokens, accepted


def _accepted(right: Tensor, running: Tensor) -> int:
    """How many tokens from the start on are `right` (B, K) in all running rows."""
    return int(right.cumprod(dim=1).sum(dim=1)[running].min()) if right.shape[1] else 0


def _place(step: "NextToken", index: int, many: int) -> "NextToken":
    """What the step would have given out for one token: the prompt and its token are one place, then each draft's."""

    def cut(x: Tensor, *, keys: bool) -> Tensor:  # (B, T, C), or (B, H, T, S)
        stop = x.shape[-2] - many + index
        part = x[..., 0 if index == 0 else stop - 1 : stop, :]
        return part[..., : x.shape[-1] - many + index] if keys else part

    hidden, weights = step.hidden_states, step.attentions
    return step._replace(
        hidden_states=None if hidden is None else tuple(cut(x, keys=False) for x in hidden),
        attentions=None if weights is None else tuple(cut(x, keys=True) for x in weights),
    )
