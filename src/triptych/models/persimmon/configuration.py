"""The configuration of Persimmon, the decoder of Fuyu: `config.json` of adept/persimmon-8b-*."""

from typing import Any, ClassVar

from triptych.configuration import MAX_LAYERS, PretrainedConfig, require_positive_ints

ROPE_SCALINGS = ("linear", "dynamic")


class PersimmonConfig(PretrainedConfig):
    """Fields of a Persimmon model (specification page FuyuConfig, which holds them too); the defaults are of the 8B.

    The first `partial_rotary_factor` of each head's features are rotated by the token's position. `rope_scaling`
    stretches positions past the trained length: {"type": "linear" or "dynamic", "factor": a float above 1}.

    Raises: ValueError when a size is no positive int, or `rope_scaling` is of another form.
    """

    model_type: ClassVar[str] = "persimmon"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 262144,
        hidden_size: int = 4096,
        intermediate_size: int = 16384,
        num_hidden_layers: int = 36,
        num_attention_heads: int = 64,
        hidden_act: str = "relu2",
        max_position_embeddings: int = 16384,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-5,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        rope_theta: float = 25000.0,
        rope_scaling: dict[str, Any] | None = None,
        qk_layernorm: bool = True,
        hidden_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        partial_rotary_factor: float = 0.5,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        **kwargs: Any,
    ) -> None:
        require_positive_ints(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            max_position_embeddings=max_position_embeddings,
        )
        if num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"num_hidden_layers must be at most {MAX_LAYERS:,}; got {num_hidden_layers:,}.")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.qk_layernorm = qk_layernorm
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.partial_rotary_factor = partial_rotary_factor
        check_rope_scaling(rope_scaling)
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )


def check_rope_scaling(rope_scaling: Any) -> None:
    """Raises: ValueError unless it is None or {"type": one of ROPE_SCALINGS, "factor": a float above 1}."""
    if rope_scaling is None:
        return
    if not isinstance(rope_scaling, dict) or set(rope_scaling) != {"type", "factor"}:
        raise ValueError(
            'rope_scaling must be a dict of a type and a factor, such as {"type": "dynamic", "factor": 2.0}; '
            f"got {rope_scaling!r}."
        )
    if rope_scaling["type"] not in ROPE_SCALINGS:
        raise ValueError(
            f"The type of rope_scaling must be one of {', '.join(ROPE_SCALINGS)}; got {rope_scaling['type']!r}."
        )
    factor = rope_scaling["factor"]
    if not isinstance(factor, float) or not 1.0 < factor < float("inf"):
        raise ValueError(f"The factor of rope_scaling must be a float above 1, such as 2.0; got {factor!r}.")
