"""Losses and pooling that the heads of several families share, in PyTorch.

Labels of -100 do not count. Shapes: B batch, T tokens, C hidden_size, V vocabulary, N num_labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.configuration import PretrainedConfig


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it; logits (B, T, V), labels (B, T), not shifted."""
    labels = labels.to(logits.device)
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must have the shape of the tokens, {tuple(logits.shape[:-1])}; got {tuple(labels.shape)}.")
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()).to(logits.dtype)


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token's own label; logits (B, T, N), labels (B, T)."""
    return F.cross_entropy(logits.flatten(0, -2), labels.to(logits.device).flatten())


def sequence_loss(logits: Tensor, labels: Tensor, config: PretrainedConfig) -> Tensor:
    """The loss of `config.problem_type`; logits (B, N).

    regression: mean squared error, labels (B,) or (B, N); single_label_classification: cross-entropy, labels (B,);
    multi_label_classification: binary cross-entropy, labels (B, N) of 0.0 and 1.0. A problem_type of None is
    found out from num_labels and the labels' dtype, and written into the configuration, as documented.
    """
    labels = labels.to(logits.device)
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.is_floating_point():
            config.problem_type = "multi_label_classification"
        else:
            config.problem_type = "single_label_classification"
    if config.problem_type == "regression":
        if config.num_labels == 1:
            logits, labels = logits.flatten(), labels.flatten()
        return F.mse_loss(logits, labels.to(logits.dtype))
    if config.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return F.cross_entropy(logits, labels.flatten())


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of the cross-entropies of a span's two ends; logits (B, T), positions (B,); outside 0 … T-1 is ignored."""
    length = start_logits.shape[1]
    losses = [
        F.cross_entropy(logits, position.to(logits.device).reshape(-1).clamp(0, length), ignore_index=length)
        for logits, position in ((start_logits, start), (end_logits, end))
    ]
    return (losses[0] + losses[1]) / 2


def last_token(
    input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None, batch: int, length: int
) -> Tensor:
    """Where each row's last token is that is not padding: (B,).

    Told by `attention_mask` (its last `length` columns), else by `pad_token_id`, else the last position.
    A row of padding alone gives its last position.
    """
    if attention_mask is not None:
        is_token = attention_mask[:, -length:] != 0
    elif pad_token_id is not None and input_ids is not None:
        is_token = input_ids != pad_token_id
    else:
        device = input_ids.device if input_ids is not None else None
        return torch.full((batch,), length - 1, device=device)
    from_the_end = is_token.flip(1).int().argmax(dim=1)  # 0 also where there is no token
    return length - 1 - from_the_end
