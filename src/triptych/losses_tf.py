"""Losses and pooling in TensorFlow. Labels of -100 do not count; losses are float32 whatever the logits are.

A language model's loss has shape (1,) and that of sequences (B,), as documented, so that `predict` can join them; their
means are the losses of the other frameworks. Without a label that counts they are NaN, as there.

Shapes: B batch, T tokens, V vocabulary, N num_labels.
"""

from typing import Any

import tensorflow as tf

from triptych.configuration import PROBLEM_TYPES, PretrainedConfig
from triptych.errors import LabelError

Tensor = Any  # TensorFlow publishes no types
IGNORED = -100  # the label that does not count


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it; logits (..., T, V), labels (..., T), not shifted.

    Raises: ValueError for labels of another shape; LabelError for a label outside the vocabulary.
    """
    labels = _checked_classes(labels, logits)
    return tf.reduce_mean(_cross_entropies(logits[..., :-1, :], labels[..., 1:]))[None]


def sequence_loss(logits: Tensor, labels: Tensor, config: PretrainedConfig) -> Tensor:
    """The loss (B,) of each row by `config.problem_type`; logits (B, N).

    regression: mean squared error, labels (B,) or (B, N); single_label_classification: cross-entropy, labels (B,);
    multi_label_classification: binary cross-entropy, labels (B, N) of 0.0 and 1.0. A problem_type of None is found out
    from num_labels and the labels' dtype, and written into the configuration, as documented.

    Raises: ValueError for labels of another shape; LabelError for a label that is no class.
    """
    labels = tf.convert_to_tensor(labels)
    problem = config.problem_type or _problem_of(labels, config.num_labels)
    if problem not in PROBLEM_TYPES:
        raise ValueError(f"problem_type must be one of {', '.join(PROBLEM_TYPES)}; got {problem!r}.")
    logits = tf.cast(logits, tf.float32)
    if problem == "single_label_classification":
        flat = tf.reshape(labels, [-1])
        loss = _cross_entropies(logits, _checked_classes(flat, logits))
    else:
        if config.num_labels == 1:
            logits, labels = tf.reshape(logits, [-1]), tf.reshape(labels, [-1])
        _check_shape(labels, logits.shape)
        labels = tf.cast(labels, tf.float32)
        each = (
            tf.square(logits - labels)
            if problem == "regression"
            else tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        )
        loss = each if config.num_labels == 1 else tf.reduce_mean(each, axis=-1)
    config.problem_type = problem
    return loss


def _cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each label, scaled so that their mean is that of the labels that count; 0 at the others."""
    counts = labels != IGNORED
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=tf.where(counts, labels, 0), logits=tf.cast(logits, tf.float32)
    )
    weights = tf.cast(counts, tf.float32)
    return each * (weights / tf.reduce_mean(weights))


def _problem_of(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.dtype.is_floating else "single_label_classification"


def _check_shape(labels: Tensor, expected: Any, name: str = "labels") -> None:
    if not labels.shape.is_compatible_with(expected):
        raise ValueError(f"{name} must have shape {tuple(expected)}, that of the outputs; got {tuple(labels.shape)}.")


def _checked_classes(labels: Any, logits: Tensor, name: str = "labels") -> Tensor:
    """The labels as int32 ids, one for each row of logits (..., N): 0 to N - 1, or IGNORED."""
    labels = tf.convert_to_tensor(labels)
    _check_shape(labels, logits.shape[:-1], name)
    labels, classes = tf.cast(labels, tf.int32), logits.shape[-1]
    if tf.executing_eagerly():
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= classes))
        if bool(tf.reduce_any(wrong)):
            place = tf.where(wrong)[0].numpy().tolist()
            raise LabelError(
                f"{name} must be from 0 to {classes - 1}, or {IGNORED} where none counts; got "
                f"{int(labels.numpy()[tuple(place)])} at {place}. Correct the label, or make a model with more of them."
            )
    return labels


def last_token(
    input_ids: Tensor | None, attention_mask: Tensor | None, pad_token_id: int | None, like: Tensor
) -> Tensor:
    """Where each row's last token is that is not padding: (B,) int32, for rows like `like` (B, T, ...).

    Told by `attention_mask` (B, T), bool, else by `pad_token_id`, else the last position. A row of padding alone gives
    its last position.
    """
    batch, length = tf.shape(like)[0], tf.shape(like)[1]
    if attention_mask is not None:
        is_token = tf.reshape(attention_mask, [batch, -1])[:, -length:]
    elif pad_token_id is not None and input_ids is not None:
        is_token = tf.reshape(input_ids, [batch, -1]) != pad_token_id
    else:
        return tf.fill([batch], length - 1)
    from_the_end = tf.argmax(tf.cast(tf.reverse(is_token, axis=[1]), tf.int32), axis=1, output_type=tf.int32)
    return length - 1 - from_the_end
