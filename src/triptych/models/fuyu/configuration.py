"""The configuration of Fuyu: `config.json` of adept/fuyu-8b."""

import inspect
from typing import Any, ClassVar

from triptych.configuration import PretrainedConfig, require_positive_ints
from triptych.models.persimmon.configuration import PersimmonConfig, check_rope_scaling

# What Fuyu's own level has in common with the decoder's, and hands down where no text_config is given.
TEXT_FIELDS = tuple(name for name in inspect.signature(PersimmonConfig).parameters if name != "kwargs")


class FuyuConfig(PretrainedConfig):
    """Fields of a Fuyu model (specification page FuyuConfig); the defaults are those of fuyu-8b.

    An image is cut into patches of `patch_size` by `patch_size` pixels of `num_channels` values each; `image_size`
    is kept from the release and plays no part. `text_config`, a PersimmonConfig or its fields, is the decoder's
    configuration and the one it is built from; None makes it of the fields given here.

    Raises: ValueError for a size that is no positive int, `rope_scaling` of another form than
        {"type": "linear" or "dynamic", "factor": a float above 1}, or a text_config of another family.
    """

    model_type: ClassVar[str] = "fuyu"
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
        image_size: int = 300,
        patch_size: int = 30,
        num_channels: int = 3,
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
        text_config: PersimmonConfig | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        require_positive_ints(patch_size=patch_size, num_channels=num_channels)
        check_rope_scaling(rope_scaling)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.image_size = image_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.use_cache = use_cache
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.qk_layernorm = qk_layernorm
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.partial_rotary_factor = partial_rotary_factor
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
        if text_config is None:
            text_config = PersimmonConfig(**{name: vars(self)[name] for name in TEXT_FIELDS})
        self.text_config = _persimmon(text_config)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As for every configuration; a field of the decoder's that is replaced is replaced in `text_config` too."""
        given = config_dict.get("text_config")
        if isinstance(given, dict) and "text_config" not in kwargs:
            replaced = {name: kwargs[name] for name in TEXT_FIELDS if name in kwargs}
            config_dict = config_dict | {"text_config": given | replaced}
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Every field, those of the decoder under `text_config`."""
        return super().to_dict() | {"text_config": _fields_of(self.text_config)}

    def to_diff_dict(self) -> dict[str, Any]:
        """The fields that tell this configuration from the defaults, and those of its decoder that do."""
        defaults = _fields_of(PersimmonConfig())
        told = {
            name: value
            for name, value in _fields_of(self.text_config).items()
            if name == "model_type" or name not in defaults or value != defaults[name]
        }
        return super().to_diff_dict() | {"text_config": told}


def _persimmon(text_config: Any) -> PersimmonConfig:
    if isinstance(text_config, PersimmonConfig):
        return text_config
    if not isinstance(text_config, dict):
        raise ValueError(f"text_config must be a PersimmonConfig or a dict of its fields; got {text_config!r}.")
    family = text_config.get("model_type", PersimmonConfig.model_type)
    if family != PersimmonConfig.model_type:
        raise ValueError(f"The text_config of Fuyu must be of the family 'persimmon'; got {family!r}.")
    config: PersimmonConfig = PersimmonConfig.from_dict(text_config)
    return config


def _fields_of(config: PersimmonConfig) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name != "transformers_version"}
