"""Losses and pooling that the heads of several families share, in PyTorch.

Labels of -100 do not count. Losses are float32 whatever the logits are.

A language model's logits are its largest tensor by far, so its head and loss are one step: beside the logits
themselves nothing of their size is made, neither forward nor backward.

Shapes: B batch, T tokens, C hidden_size, V vocabulary, N num_labels.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.configuration import PROBLEM_TYPES, PretrainedConfig
from triptych.errors import LabelError

IGNORED = -100  # the label that does not count
_CHUNK = 2**24  # log-probabilities that exist at a time, in float32


def logits_and_loss(head: nn.Module, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """What `head` makes of hidden states x (..., T, C): logits (..., T, V); and `next_token_loss` of them and `labels`.

    Without labels the loss is None. With them, and a head that is no more than a matrix, the gradients of the matrix
    and of x are made together with the loss, some rows at a time.

    Raises: as `next_token_loss`.
    """
    if labels is None:
        return head(x), None
    if not _is_matrix(head, x):
        logits = head(x)
        return logits, next_token_loss(logits, labels)
    weight: Tensor = head.weight  # type: ignore[assignment]
    following = _following(_checked_classes(labels, x, len(weight)))
    logits, loss = _HeadAndLoss.apply(  # type: ignore[no-untyped-call]
        x.flatten(0, -2), weight, following, torch.is_grad_enabled()
    )
    return logits.view(*x.shape[:-1], len(weight)), loss


def _is_matrix(head: nn.Module, x: Tensor) -> bool:
    """Whether a call of `head` multiplies by its weight and nothing else, and no one rewrites or watches the call."""
    watched = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks or head._backward_pre_hooks
    return (
        type(head) is nn.Linear
        and head.bias is None
        and not watched
        and "forward" not in vars(head)
        and {type(head.weight), type(x)} <= {nn.Parameter, Tensor}
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active())
        and torch.autograd.forward_ad._current_level < 0  # derivatives forward come from the plain way
    )


class _HeadAndLoss(torch.autograd.Function):
    """x (N, C), weight (V, C), labels (N,) -> logits (N, V), mean cross-entropy ()."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, labels: Tensor, differentiable: bool) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logits = F.linear(x, weight)  # in autocast's dtype, where that is on
        of_x, of_weight = (differentiable and needed for needed in ctx.needs_input_grad[:2])
        grad_x = torch.empty_like(x, dtype=torch.float32) if of_x else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        inputs, matrix = x.to(logits.dtype), weight.to(logits.dtype)
        count = (labels != IGNORED).sum()
        total = torch.zeros((), device=x.device)
        rows = max(1, min(len(x), _CHUNK // len(weight)))
        room = torch.empty((rows, len(weight)), device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, len(x), rows):
                here = slice(start, start + rows)
                targets = labels[here]
                scores = room[: len(targets)]
                torch.log_softmax(logits[here], dim=-1, dtype=torch.float32, out=scores)
                total += F.nll_loss(scores, targets, ignore_index=IGNORED, reduction="sum")
                if grad_x is None and grad_weight is None:
                    continue
                error = _error(scores, targets).to(logits.dtype)
                if grad_x is not None:
                    grad_x[here] = error @ matrix
                if grad_weight is not None:
                    _add_product(grad_weight, error.t(), inputs[here])
        ctx.save_for_backward(x, weight, labels, count.clamp(min=1), grad_x, grad_weight)
        return logits, total / count

    @staticmethod
    def backward(ctx: Any, of_logits: Tensor | None, of_loss: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, labels, count, *made = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_gradients(ctx.needs_input_grad, x, weight, labels, of_logits, of_loss)
        gradients = [None if grad is None or of_loss is None else grad * (of_loss / count) for grad in made]
        if of_logits is not None:
            factors = (of_logits, weight.to(of_logits.dtype)), (of_logits.t(), x.to(of_logits.dtype))
            for index, (left, right) in enumerate(factors):
                if ctx.needs_input_grad[index]:
                    product, so_far = left @ right, gradients[index]
                    gradients[index] = product if so_far is None else so_far + product
        grad_x, grad_weight = gradients
        return (
            None if grad_x is None else grad_x.to(x.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None,
            None,
        )


def _error(scores: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities (N, V) become, in place, what is too much of each: probability less one at the target."""
    error = scores.exp_()
    ignored = targets == IGNORED
    error.scatter_add_(1, targets.masked_fill(ignored, 0)[:, None], error.new_full((len(targets), 1), -1.0))
    return error.masked_fill_(ignored[:, None], 0.0)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right, without a copy where all are of one dtype."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _differentiable_gradients(
    needed: Sequence[bool], x: Tensor, weight: Tensor, labels: Tensor, of_logits: Tensor | None, of_loss: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients again, the plain way, for those who differentiate them (create_graph=True)."""
    x, weight = x.view_as(x), weight.view_as(weight)  # x may depend on the weight, and that way is not to count here
    logits = F.linear(x, weight)
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED)
    pairs = [(out, grad) for out, grad in ((logits, of_logits), (loss, of_loss)) if grad is not None]
    wanted = [value for value, need in zip((x, weight), needed, strict=False) if need]
    outs, grads = zip(*((out, grad.to(out.dtype)) for out, grad in pairs), strict=True)
    made = iter(torch.autograd.grad(outs, wanted, grads, create_graph=True))
    return (*(next(made) if need else None for need in needed[:2]), None, None)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it; logits (..., T, V), labels (..., T), not shifted.

    Raises: ValueError for labels of another shape; LabelError for a label outside the vocabulary.
    """
    labels = _checked_classes(labels, logits, logits.shape[-1])
    return F.cross_entropy(logits.flatten(0, -2).float(), _following(labels))


def _following(labels: Tensor) -> Tensor:
    """Each token's next one, (..., T) -> (N,). The labels move, not the logits, which would have to be copied."""
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED).flatten()


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token's own label; logits (B, T, N), labels (B, T).

    Raises: ValueError for labels of another shape; LabelError for a label that is no class.
    """
    return F.cross_entropy(logits.flatten(0, -2).float(), _checked_classes(labels, logits, logits.shape[-1]).flatten())


def choice_loss(logits: Tensor, mc_labels: Tensor) -> Tensor:
    """Mean cross-entropy of each row's right choice; logits (B, choices), mc_labels (B,).

    Raises: ValueError for labels of another shape; LabelError for a label that is no choice.
    """
    return F.cross_entropy(logits.float(), _checked_classes(mc_labels.flatten(), logits, logits.shape[-1], "mc_labels"))


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
        loss = F.cross_entropy(logits.float(), _checked_classes(labels.flatten(), logits, logits.shape[-1]))
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


def _checked_classes(labels: Tensor, rows: Tensor, classes: int, name: str = "labels") -> Tensor:
    """The labels as ids on the device of `rows` (..., any), one for each: 0 to `classes` - 1, or IGNORED."""
    _check_shape(labels, rows.shape[:-1], name)
    labels = labels.to(rows.device, torch.long)
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
