"""Contrastive search in PyTorch (Su et al., 2022, "A Contrastive Framework for Neural Text Generation").

Of the K likeliest next tokens, the one is taken whose probability, less its likeness to the text so far, is best.

Shapes: B rows, T ids so far, V vocabulary, C hidden_size, K candidates, W the prompt's width in positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.run_torch import Rows, Run, Trace


def decode(run: Run) -> Tensor | GenerateDecoderOnlyOutput:
    """Contrastive search: try `top_k` tokens in each row, keep the one that is likely and new, until all rows end.

    The candidates of a step go through the model side by side, behind one past; `low_memory` takes them in turn.
    """
    options, feed = run.options, run.feed
    top_k, alpha = int(options.top_k or 1), float(options.penalty_alpha or 0.0)
    feed.always["last_hidden"] = True
    rows, trace = Rows(run), Trace(options)
    step = feed.step(rows.ids)
    context = _Context(step.hidden_states[-1], feed.prompt.mask, options.max_length - rows.length)  # type: ignore[index]
    over = False
    while not over:
        scores = run.transforms(rows.ids, step.logits)
        trace.add(scores, step)
        probabilities, candidates = scores.softmax(dim=-1).topk(min(top_k, scores.shape[-1]))  # (B, K)
        tried = feed.branch(candidates, one_by_one=bool(options.low_memory))
        likeness = context.likeness(tried.hidden_states[-1])  # type: ignore[index]
        chosen = ((1.0 - alpha) * probabilities - alpha * likeness).argmax(dim=-1)  # (B,)
        step = feed.keep(chosen, tried)
        context.add(step.hidden_states[-1])  # type: ignore[index]
        over = bool(rows.add(candidates.gather(1, chosen[:, None]).squeeze(1), trace.scores))
    feed.rewind(rows.length - 1)  # as after every strategy, the last token is not in the cache
    sequences = rows.ids.clone()
    return trace.output(sequences, feed.in_order()) if options.return_dict_in_generate else sequences


class _Context:
    """The directions of the text's last hidden states, (B, W + room, C), of which the first `width` are there."""

    def __init__(self, hidden: Tensor, mask: Tensor | None, room: int) -> None:
        self.width = hidden.shape[1]
        self.directions = F.pad(F.normalize(hidden, dim=-1), (0, 0, 0, room))
        self.padding = None if mask is None else F.pad(mask == 0, (0, room))

    def likeness(self, hidden: Tensor) -> Tensor:
        """The largest cosine between each candidate, (B, K, C), and a token so far that is no padding: (B, K)."""
        text = self.directions[:, : self.width]
        cosines = torch.matmul(text, F.normalize(hidden, dim=-1).transpose(1, 2))  # (B, W, K)
        if self.padding is not None:
            cosines = cosines.masked_fill(self.padding[:, : self.width, None], -torch.inf)
        return cosines.amax(dim=1).float()

    def add(self, hidden: Tensor) -> None:
        """Take in the chosen candidate, (B, 1, C)."""
        self.directions[:, self.width : self.width + 1] = F.normalize(hidden, dim=-1)
        self.width += 1
