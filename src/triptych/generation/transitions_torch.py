"""What each generated token scored, read back from the output of `generate`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def transition_scores(
    sequences: Tensor, scores: Sequence[Tensor], beam_indices: Tensor | None = None, normalize_logits: bool = False
) -> Tensor:
    """The score of each generated token: (B, N) of `sequences` (B, T) and N `scores` of (B * K, V), one per new token.

    With K beams, `beam_indices` (B, T') name the row of `scores` that each token of a text was chosen from, -1 behind
    its end, where the score is 0. `normalize_logits` makes them log-probabilities.

    Raises: ValueError when the three do not belong together.
    """
    if not scores:
        raise ValueError("scores are empty. Pass those of generate(..., output_scores=True).")
    steps = torch.stack(tuple(scores))  # (N, B * K, V)
    if normalize_logits:
        steps = steps.log_softmax(dim=-1)
    if beam_indices is None:
        rows = torch.arange(steps.shape[1], device=steps.device)[:, None].expand(-1, len(steps))
    else:
        rows = beam_indices[:, : int((beam_indices >= 0).sum(dim=1).max())]
    count = rows.shape[1]
    if rows.shape[0] != sequences.shape[0] or count > min(len(steps), sequences.shape[1]):
        raise ValueError(
            f"sequences, scores and beam_indices must be of one call of generate; got {tuple(sequences.shape)}, "
            f"{len(steps)} of {tuple(steps.shape[1:])}, and {None if beam_indices is None else tuple(rows.shape)}. "
            "With several sequences or beams for a prompt, pass beam_indices too."
        )
    # the longest text ends where the sequences do
    tokens = sequences[:, sequences.shape[1] - count :]
    places = torch.arange(count, device=steps.device)
    return steps[places, rows.clamp(min=0), tokens].masked_fill(rows < 0, 0.0)
