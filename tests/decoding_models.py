"""One small model of each family that decodes, for the tests of prepared and quantised decoding."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fuyu_models
import gpt_neo_models
import openai_gpt_models

FAMILIES: dict[str, Callable[..., Any]] = {
    "gpt_neo": gpt_neo_models.make,
    "openai_gpt": openai_gpt_models.make,
    "fuyu": fuyu_models.make,
}


def decoder(model: Any) -> Any:
    """The module that is prepared: Fuyu's is its language model."""
    return getattr(model, "language_model", model)


def is_prepared(model: Any) -> bool:
    """Whether a step was made, and still belongs to the model."""
    prepared = decoder(model)._prepared
    return prepared is not None and prepared.step is not None and prepared.seal.holds()


def written(model: Any, ids: Tensor, new: int = 8, **options: Any) -> tuple[Tensor, Tensor]:
    """The ids (B, T) and scores (new, B, V) of greedy decoding that does not end."""
    out = model.generate(
        ids,
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return out.sequences, torch.stack(out.scores)


def by_forward(model: Any, ids: Tensor, new: int = 8, **options: Any) -> tuple[Tensor, Tensor]:
    """The same through `forward` alone."""
    decoder(model).prepares_decoding = False
    try:
        return written(model, ids, new, **options)
    finally:
        decoder(model).prepares_decoding = None
