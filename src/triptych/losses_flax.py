"""Losses in JAX. Labels of -100 do not count; losses are float32 whatever the logits are.

Shapes: B batch, T tokens, V vocabulary.
"""

import jax
import jax.numpy as jnp

IGNORED = -100  # the label that does not count


def next_token_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of each token given those before it; logits (B, T, V), labels (B, T), not shifted.

    NaN when no label counts, as in the other frameworks.

    Raises: ValueError for labels of another shape.
    """
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"labels must have the logits' shape {logits.shape[:-1]}; got {labels.shape}.")
    following = labels[:, 1:]
    counts = following != IGNORED
    log_p = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32), axis=-1)  # (B, T - 1, V)
    chosen = jnp.take_along_axis(log_p, jnp.where(counts, following, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * counts) / jnp.sum(counts)
