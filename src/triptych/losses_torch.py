"""Losses and pooling that the heads of several families share, in PyTorch.

Labels of -100 do not count. Losses are float32 whatever the logits are.

Shapes: B batch, T tokens, C hidden_size, V vocabulary, N num_labels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.configuration import PROBLEM_TYPES, PretrainedConfig
from triptych.errors import LabelError

IGNORED = -100  # the label that does not count


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it; logits (..., T, V), labels (..., T), not shifted.

    Raises: ValueError for labels of another shape; LabelError for a label outside the vocabulary.
    """
    labels = _checked_classes(labels, logits)
    # The labels move, not the logits: a slice of those would have to be copied.
    following = F.pad(labels[..., 1:], (0, 1), value=IGNORED)
    return F.cross_entropy(logits.flatten(0, -2).float(), following.flatten())


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token's own label; logits (B, T, N), labels (B, T).

    Raises: ValueError for labels of another shape; LabelError for a label that is no class.
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), _checked_classes(labels, logits).flatten())


def choice_loss(logits: Tensor, mc_labels: Tensor) -> Tensor:
    """Mean cross-entropy of each row's right choice; logits (B, choices), mc_labels (B,).

    Raises: ValueError for labels of another shape; LabelError for a label that is no choice.
    """
    return F.cross_entropy(logits.float(), _checked_classes(mc_labels.flatten(), logits, "mc_labels"))


def sequence_loss(logits: Tensor, labels: Tensor, config: PretrainedConfig) -> Tensor:
    """The loss of `config.problem_type`; logits (B, N).

    regression: mean squared error, labels (B,) or (B, N); single_label_classification: cross-entropy, labels (B,);
    multi_label_classification: binary cross-entropy, labels (B, N) of 0.0 and 1.0. A problem_type of None is
    found out from num_labels and the labels' dtype, and written into the configuration, as documented.

    Raises: ValueError for labels of another shape; LabelError for a label that is no class.
    """
    problem = config.problem_type or _problem_of(labels, config.num_labels)
    if problem not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {problem!r}.")
    if problem == "single_label_classification":
        loss = F.cross_entropy(logits.float(), _checked_classes(labels.flatten(), logits))
    else:
        per_value = F.mse_loss if problem == "regression" else F.binary_cross_entropy_with_logits
        if config.num_labels == 1:
            logits, labels = logits.flatten(), labels.flatten()
        _check_shape(labels, logits.shape)
        loss = per_value(logits.float(), labels.to(logits.device, torch.float32))
    config.problem_type = problem
    return loss


def span_loss(start_logits: Tensor, end_logits: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mean of the cross-entropies of a span's two ends; logits (B, T), positions (B,); outside 0 … T-1 is ignored.

    Raises: ValueError unless there is one position for each row.
    """
    batch, length = start_logits.shape
    losses = []
    for logits, given in ((start_logits, start), (end_logits, end)):
        if given.numel() != batch:
            raise ValueError(f"start_positions and end_positions must have shape ({batch},); got {tuple(given.shape)}.")
        position = given.to(logits.device).flatten()
        outside = (position < 0) | (position >= length)
        losses.append(F.cross_entropy(logits.float(), position.masked_fill(outside, IGNORED)))
    return (losses[0] + losses[1]) / 2


def _problem_of(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def _check_shape(labels: Tensor, expected: Sequence[int], name: str = "labels") -> None:
    if tuple(labels.shape) != tuple(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, that of the outputs; got {tuple(labels.shape)}.")


def _checked_classes(labels: Tensor, logits: Tensor, name: str = "labels") -> Tensor:
    """The labels as ids on the logits' device, one for each row of logits (..., N): 0 to N - 1, or IGNORED."""
    _check_shape(labels, logits.shape[:-1], name)
    labels, classes = labels.to(logits.device, torch.long), logits.shape[-1]
    if not torch.compiler.is_compiling():
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
        if bool(wrong.any()):
            place = wrong.nonzero()[0].tolist()
            raise LabelError(
                f"{name} must be from 0 to {classes - 1}, or {IGNORED} where none counts; got "
                f"{labels[tuple(place)].item()} at {place}. Correct the label, or make a model with more of them."
            )
    return labels


def last_token(
    input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None, batch: int, length: int
) -> Tensor:
    """Where each row's last token is that is not padding: (B,).

    Told by `attention_mask` (its last `length` columns), else by `pad_token_id`, else the last position.
    A row of padding alone gives its last position.
    """
    if attention_mask is not None:
        is_token = attention_mask.flatten(0, -2)[:, -length:] != 0
    elif pad_token_id is not None and input_ids is not None:
        is_token = input_ids.flatten(0, -2) != pad_token_id
    else:
        device = input_ids.device if input_ids is not None else None
        return torch.full((batch,), length - 1, device=device)
    from_the_end = is_token.flip(1).int().argmax(dim=1)  # 0 also where there is no token
    return length - 1 - from_the_end
