"""The shapes of the models that are measured."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A model's family and the fields of its configuration that are not the defaults; `title` is how tables call it."""

    title: str
    family: str
    width: int
    layers: int
    heads: int
    vocabulary: int
    window: int | None = None  # of every second layer

    @property
    def fields(self) -> dict[str, Any]:
        """What the configuration's class is given."""
        shared = {"hidden_size": self.width, "vocab_size": self.vocabulary}
        if self.family == "gpt_neo":
            kinds = [[["global", "local"], self.layers // 2]]
            return shared | {"num_layers": self.layers, "num_heads": self.heads, "attention_types": kinds}
        shared |= {"num_hidden_layers": self.layers, "num_attention_heads": self.heads}
        shared |= {"intermediate_size": 4 * self.width}
        return shared | {"text_config": shared | {"model_type": "persimmon"}}

    @property
    def matrices(self) -> int:
        """Weights of the products within all layers."""
        return self.layers * 12 * self.width**2

    @property
    def head(self) -> int:
        """Weights of the product that gives the logits."""
        return self.vocabulary * self.width

    def prefill_operations(self, length: int) -> float:
        """Of a pass over a prompt that gives the last token's logits: products, scores and sums of values."""
        keys = length / 2 if self.window is None else length / 4 + min(self.window, length / 2) / 2  # that a query sees
        return 2 * (self.matrices * length + self.head + 2 * self.layers * length * keys * self.width)


NEO_125M = Shape("125 M", "gpt_neo", 768, 12, 12, 50257, window=256)
NEO_1B = Shape("1.3 B", "gpt_neo", 2048, 24, 16, 50257, window=256)
NEO_2B = Shape("2.7 B", "gpt_neo", 2560, 32, 20, 50257, window=256)
FUYU_8B = Shape("Fuyu-8B's shape", "fuyu", 4096, 36, 64, 262144)
FUYU_SMALL = Shape("Fuyu, 8 layers × 768", "fuyu", 768, 8, 12, 50257)
