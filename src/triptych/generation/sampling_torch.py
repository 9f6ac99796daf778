"""Greedy decoding and sampling in PyTorch.

Shapes: B rows, N ids of the prompt, T ids so far, V vocabulary.
"""

import torch
from torch import Tensor

from triptych.generation.checks import as_ids
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.run_torch import Run, Trace


def decode(run: Run) -> Tensor | GenerateDecoderOnlyOutput:
    """Greedy decoding and sampling: transform the logits, choose a token for each row, until all rows end.

    At each step one `torch.multinomial` on the probabilities (B, V) draws all rows' tokens.
    """
    options, streamer = run.options, run.streamer
    rows, length = run.prompt.shape
    ids = run.prompt.new_zeros((rows, options.max_length))
    ids[:, :length] = run.prompt
    ends = torch.tensor(as_ids(options.eos_token_id), dtype=torch.long, device=ids.device)
    running = torch.ones(rows, dtype=torch.bool, device=ids.device)
    trace = Trace(options)
    if streamer is not None:
        streamer.put(run.prompt.cpu())
    while True:
        step = run.feed.step(ids[:, :length])
        scores = run.transforms(ids[:, :length], step.logits)
        trace.add(scores, step)
        tokens = drawn(scores) if options.do_sample else scores.argmax(dim=-1)  # (B,)
        if rows > 1 and options.pad_token_id is not None:
            tokens = tokens.where(running, options.pad_token_id)
        ids[:, length] = tokens
        length += 1
        if streamer is not None:
            streamer.put(tokens.cpu())
        if len(ends):
            running &= (tokens[:, None] != ends).all(dim=1)
        verdict = run.criteria(ids[:, :length], trace.scores)
        if isinstance(verdict, Tensor):
            running &= ~verdict
        elif verdict:
            break
        if (len(ends) or isinstance(verdict, Tensor)) and not bool(running.any()):
            break
    sequences = ids[:, :length].clone()
    return trace.output(sequences, run.feed.in_order()) if options.return_dict_in_generate else sequences


def drawn(scores: Tensor) -> Tensor:
    """One token per row, drawn with the probabilities that the scores (B, V) stand for.

    Raises: ValueError when they stand for none: a score is NaN or +inf, or every token of a row is ruled out.
    """
    probabilities = scores.softmax(dim=-1)
    try:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    except RuntimeError as error:
        if bool(probabilities.isfinite().all()):
            raise
        raise ValueError(
            "The scores give no distribution to draw from: one is NaN or infinite, or all tokens are ruled out. "
            "Use bfloat16 or float32 weights, allow more tokens, or pass remove_invalid_values=True."
        ) from error
