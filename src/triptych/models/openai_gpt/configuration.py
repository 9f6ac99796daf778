"""The configuration of OpenAI GPT: `config.json` of openai-gpt."""

from collections.abc import Callable
from typing import Any, ClassVar

from triptych.configuration import PretrainedConfig


class OpenAIGPTConfig(PretrainedConfig):
    """Fields of an OpenAI GPT model (specification page OpenAIGPTConfig); the defaults are those of openai-gpt.

    `afn` is "gelu" (in its tanh approximation, as in all releases), "relu", "silu", another published name or a
    function. The `summary_…` fields say how OpenAIGPTDoubleHeadsModel turns a text into one vector: `summary_type`
    "cls_index" (at `mc_token_ids`), "last", "first" or "mean"; then a dropout, a projection to the labels or to
    `n_embd` values, and an activation such as "tanh". Fields of old files (`n_ctx`, `n_special`,
    `predict_special_tokens`) are kept and have no effect.
    """

    model_type: ClassVar[str] = "openai-gpt"
    attribute_map: ClassVar[dict[str, str]] = {
        "max_position_embeddings": "n_positions",
        "hidden_size": "n_embd",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 40478,
        n_positions: int = 512,
        n_embd: int = 768,
        n_layer: int = 12,
        n_head: int = 12,
        afn: str | Callable[..., Any] = "gelu",
        resid_pdrop: float = 0.1,
        embd_pdrop: float = 0.1,
        attn_pdrop: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        summary_type: str = "cls_index",
        summary_use_proj: bool = True,
        summary_activation: str | None = None,
        summary_proj_to_labels: bool = True,
        summary_first_dropout: float = 0.1,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.afn = afn
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.attn_pdrop = attn_pdrop
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.summary_type = summary_type
        self.summary_use_proj = summary_use_proj
        self.summary_activation = summary_activation
        self.summary_proj_to_labels = summary_proj_to_labels
        self.summary_first_dropout = summary_first_dropout
        super().__init__(**kwargs)
