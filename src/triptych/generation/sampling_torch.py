"""Greedy decoding and sampling in PyTorch.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary.
"""

import torch
from torch import Tensor

from triptych.generation.ended_rows_torch import RunningRows
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.run_torch import Rows, Run, Trace


def decode(run: Run) -> Tensor | GenerateDecoderOnlyOutput:
    """Greedy decoding and sampling: transform the logits, choose a token for each row, until all rows end.

    At each step one `torch.multinomial` on the probabilities (B, V) draws all rows' tokens.
    """
    options, rows, trace, feed = run.options, Rows(run), Trace(run.options), RunningRows(run)
    over = False
    while not over:
        step = feed.step(rows.ids, rows.running)
        scores = run.transforms(rows.ids, step.logits)
        trace.add(scores, step)
        over = rows.add(drawn(scores) if options.do_sample else scores.argmax(dim=-1), trace.scores)
    sequences = rows.ids.clone()
    return trace.output(sequences, run.feed.in_order()) if options.return_dict_in_generate else sequences


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
        raise ValueError(
            "The scores give no distribution to draw from: one is NaN or infinite, or all tokens are ruled out. "
            "Use bfloat16 or float32 weights, allow more tokens, or pass remove_invalid_values=True."
        ) from error
