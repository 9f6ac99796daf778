"""The objective that GPT is fine-tuned with, in PyTorch."""

from torch import Tensor

from triptych.losses_torch import IGNORED, next_token_loss


def fine_tuning_loss(
    task_loss: Tensor, lm_logits: Tensor, input_ids: Tensor, attention_mask: Tensor, lm_weight: float = 0.5
) -> Tensor:
    """The task's loss plus `lm_weight` times that of predicting each token of the inputs; a scalar.

    lm_logits: (..., T, V); input_ids and attention_mask: (..., T), padding does not count. Radford et al., 2018,
    section 3.2, equation 5: L3 = L2 + λ · L1 with λ = 0.5.
    """
    return task_loss + lm_weight * next_token_loss(lm_logits, input_ids.masked_fill(attention_mask == 0, IGNORED))
