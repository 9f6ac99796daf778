"""Greedy decoding and sampling in PyTorch.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary.
"""

import torch
from torch import Tensor

from triptych.generation.ended_rows_torch import RunningRows
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.run_torch import Later, Rows, Run, Trace
from triptych.runtime.preparing import NextToken


def decode(run: Run) -> Tensor | GenerateDecoderOnlyOutput:
    """Greedy decoding and sampling: transform the logits, choose a token for each row, until all rows end.

    At each step one `torch.multinomial` on the probabilities (B, V) draws all rows' tokens. A GPU is given the next
    step before it is asked whether there is one, so that it need not wait for the host.
    """
    options, rows, trace, feed = run.options, Rows(run), Trace(run.options), RunningRows(run)
    over: bool | Later = False
    step: NextToken | None = None
    while not over:
        step = step or feed.step(rows.ids, rows.running)
        scores = run.transforms(rows.ids, step.logits)
        trace.add(scores, step)
        tokens = drawn(scores) if options.do_sample else best(scores, rows.running)
        over = rows.add(tokens, trace.scores)
        step = None if over is True else feed.step_ahead(rows.ids)
    sequences = rows.ids.clone()
    return trace.output(sequences, run.feed.in_order()) if options.return_dict_in_generate else sequences


def best(scores: Tensor, running: Tensor) -> Tensor:
    """The token of the highest score (B, V) in each row.

    Raises: ValueError when a row that is `running` (B,) has none: a score is NaN, or everything is ruled out. On a GPU
        that is not looked for, as the host would have to wait.
    """
    tokens = scores.argmax(dim=-1)
    if scores.device.type == "cpu":
        found = scores.gather(1, tokens[:, None]).squeeze(1)
        if not bool(((found > float("-inf")) | ~running).all()):
            raise undecided("There is no best token: a score is NaN, or all tokens are ruled out.")
    return tokens


def drawn(scores: Tensor) -> Tensor:
    """One token per row, drawn with the probabilities that the scores (B, V) stand for; raises as `draw`."""
    return draw(scores.softmax(dim=-1)).squeeze(1)


def draw(probabilities: Tensor, many: int = 1) -> Tensor:
    """Different places (B, many), drawn by `probabilities` (B, n), which need not sum to 1.

    Raises: ValueError when they are none: a score is NaN or +inf, or everything in a row is ruled out.
    """
    try:
        return torch.multinomial(probabilities, num_samples=many)
    except RuntimeError as error:
        if bool(probabilities.isfinite().all()):
            raise
        raise undecided(
            "The scores give no distribution to draw from: one is NaN or infinite, or all tokens are ruled out."
        ) from error


def undecided(why: str) -> ValueError:
    """The error of scores that name no token, and what to do about it."""
    return ValueError(f"{why} Use bfloat16 or float32 weights, allow more tokens, or pass remove_invalid_values=True.")
