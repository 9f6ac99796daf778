"""The configuration of GPT Neo: `config.json` of EleutherAI/gpt-neo-* and TinyStories."""

from collections.abc import Sequence
from typing import Any, ClassVar

from triptych.configuration import MAX_LAYERS, PretrainedConfig, require_positive_ints

ATTENTION_KINDS = ("global", "local")


class GPTNeoConfig(PretrainedConfig):
    """Fields of a GPT Neo model (specification page GPTNeoConfig); the defaults are those of gpt-neo-1.3B.

    `attention_types` is a list of [kinds, repeats] pairs; `attention_layers` is its expansion, one of "global"
    and "local" per layer. A local layer sees the last `window_size` tokens, itself counted.
    `intermediate_size` None means 4 * hidden_size.

    Raises: ValueError when `attention_types` does not describe `num_layers` layers of known kinds, or `window_size`
        is below 1.
    """

    model_type: ClassVar[str] = "gpt_neo"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"}

    def __init__(
        self,
        vocab_size: int = 50257,
        max_position_embeddings: int = 2048,
        hidden_size: int = 2048,
        num_layers: int = 24,
        attention_types: Sequence[Any] = [[["global", "local"], 12]],  # the documented default; never changed
        num_heads: int = 16,
        intermediate_size: int | None = None,
        window_size: int = 256,
        activation_function: str = "gelu_new",
        resid_dropout: float = 0.0,
        embed_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        classifier_dropout: float = 0.1,
        layer_norm_epsilon: float = 1e-5,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        bos_token_id: int | None = 50256,
        eos_token_id: int | None = 50256,
        **kwargs: Any,
    ) -> None:
        require_positive_ints(
            vocab_size=vocab_size,
            max_position_embeddings=max_position_embeddings,
            hidden_size=hidden_size,
            num_layers=num_layers,
            num_heads=num_heads,
            intermediate_size=1 if intermediate_size is None else intermediate_size,
            window_size=window_size,  # a token sees itself
        )
        if num_layers > MAX_LAYERS:
            raise ValueError(f"num_layers must be at most {MAX_LAYERS:,}; got {num_layers:,}.")
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.intermediate_size = intermediate_size
        self.window_size = window_size
        self.activation_function = activation_function
        self.resid_dropout = resid_dropout
        self.embed_dropout = embed_dropout
        self.attention_dropout = attention_dropout
        self.classifier_dropout = classifier_dropout
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.attention_layers = self.expand_attention_types_params(attention_types, num_layers)
        self.attention_types = [[list(kinds), repeats] for kinds, repeats in attention_types]
        self._check_attention(kwargs.pop("attention_layers", None))
        super().__init__(bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As for every configuration; new `attention_types` replace the file's `attention_layers` too."""
        if "attention_types" in kwargs:
            config_dict = {name: value for name, value in config_dict.items() if name != "attention_layers"}
        return super().from_dict(config_dict, **kwargs)

    @staticmethod
    def expand_attention_types_params(attention_types: Sequence[Any], num_layers: int | None = None) -> list[str]:
        """One kind per layer: [[["global", "local"], 2]] gives ["global", "local", "global", "local"].

        Raises: ValueError when it is no list of [kinds, repeats] pairs, or does not describe `num_layers` layers.
        """
        if not _are_kinds_and_repeats(attention_types):
            raise ValueError(
                'attention_types must be a list of [kinds, repeats] pairs, for example [[["global", "local"], 12]]; '
                f"got {attention_types!r}."
            )
        described = sum(len(kinds) * max(repeats, 0) for kinds, repeats in attention_types)
        if num_layers is not None and described != num_layers:
            raise ValueError(
                f"attention_types must describe num_layers={num_layers} layers; it describes {described}. "
                f'Pass, for example, attention_types=[[["global"], {num_layers}]].'
            )
        return [kind for kinds, repeats in attention_types for _ in range(repeats) for kind in kinds]

    def _check_attention(self, stored_layers: list[str] | None) -> None:
        layers = self.attention_layers
        unknown = sorted(set(layers) - set(ATTENTION_KINDS))
        if unknown:
            raise ValueError(f"attention_types may name 'global' and 'local'; got {', '.join(map(repr, unknown))}.")
        if stored_layers is not None and list(stored_layers) != layers:
            raise ValueError(
                f"attention_layers {stored_layers} is not what attention_types {self.attention_types} expands to. "
                "Change attention_types; attention_layers follows."
            )


def _are_kinds_and_repeats(attention_types: Any) -> bool:
    return isinstance(attention_types, list | tuple) and all(
        isinstance(entry, list | tuple)
        and len(entry) == 2
        and isinstance(entry[0], list | tuple)
        and all(isinstance(kind, str) for kind in entry[0])
        and isinstance(entry[1], int)
        for entry in attention_types
    )
