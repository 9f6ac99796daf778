"""What models return: named fields that also read as a dict and as a tuple.

Field names, their order and their meaning are those of the specification's output pages. Shapes: B batch,
T tokens, S cached + new tokens, H heads, D head_dim, C hidden_size, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any


class ModelOutput(OrderedDict[str, Any]):
    """Base of the outputs: `out.logits`, `out["logits"]`, `out[0]` and `out.to_tuple()` all work.

    Subclasses are dataclasses whose fields default to None. A field that is None is left out of the dict and
    of the tuple, so positions shift as documented. Assigning to a key, or to a field that is not None, keeps the
    views alike. One mapping, or one series of (name, value) pairs, is also accepted in place of the fields: tools
    that rebuild what they were given (accelerate, Lightning, data parallelism) pass that.
    """

    def __post_init__(self) -> None:
        """Fill the dict from the dataclass fields that are not None."""
        given = self._fields()
        pairs = _named_pairs(given[0][1]) if all(value is None for _, value in given[1:]) else None
        if pairs is not None:
            super().__setattr__(given[0][0], None)
            for name, value in pairs:
                self[name] = value
            return
        for name, value in given:
            if value is not None:
                super().__setitem__(name, value)

    def _fields(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self[name] for name in self)

    def __getitem__(self, key: Any) -> Any:
        """A field by name, or by its place among the fields that are not None (an int or a slice)."""
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        """Set a field by name, as an attribute too."""
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field as an attribute, in the dict too."""
        if name in self and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        """Fields cannot be taken out or merged in; they are None when absent."""
        raise TypeError(f"The fields of a {type(self).__name__} stay. Make a new one with the fields that you want.")

    __delitem__ = pop = popitem = clear = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the class and its fields."""
        return (type(self), tuple(value for _, value in self._fields()))


def _named_pairs(given: Any) -> list[tuple[str, Any]] | None:
    """The (name, value) pairs that a mapping or a series of pairs holds; None for anything else."""
    if isinstance(given, Mapping):
        return list(given.items())
    if not isinstance(given, Iterator | list | tuple):
        return None
    pairs = list(given)
    if pairs and all(isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return pairs
    return None


@dataclass
class BaseModelOutput(ModelOutput):
    """`last_hidden_state` (B, T, C); `hidden_states`, one (B, T, C) more than layers; `attentions`, a (B, H, T, S)
    per layer.
    """

    last_hidden_state: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class BaseModelOutputWithPast(ModelOutput):
    """`last_hidden_state` (B, T, C); `past_key_values`, a (key, value) pair of (B, H, S, D) per layer."""

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class BaseModelOutputWithPastAndCrossAttentions(ModelOutput):
    """`last_hidden_state` (B, T, C); `past_key_values`; `hidden_states`, one (B, T, C) more than layers;
    `attentions`, a (B, H, T, S) per layer; `cross_attentions` is always None for these families.
    """

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None


@dataclass
class CausalLMOutput(ModelOutput):
    """`loss` (); `logits` (B, T, V); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class CausalLMOutputWithPast(ModelOutput):
    """`loss` (); `logits` (B, T, V); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class CausalLMOutputWithCrossAttentions(ModelOutput):
    """`loss` (); `logits` (B, T, V); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    cross_attentions: Any = None


@dataclass
class SequenceClassifierOutput(ModelOutput):
    """`loss` (); `logits` (B, num_labels); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """`loss` (); `logits` (B, num_labels); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class TokenClassifierOutput(ModelOutput):
    """`loss` (); `logits` (B, T, num_labels); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """`loss` (); `start_logits` and `end_logits` (B, T); the rest as in the base model's output."""

    loss: Any = None
    start_logits: Any = None
    end_logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class FlaxBaseModelOutput(ModelOutput):
    """`last_hidden_state` (B, T, C); `past_key_values`, the cache as `init_cache` makes it, where one was given;
    `hidden_states`, one (B, T, C) more than layers; `attentions`, a (B, H, T, S) per layer.
    """

    last_hidden_state: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class FlaxMaskedLMOutput(ModelOutput):
    """`logits` (B, T, V), of each position's next token; the rest as in the base model's output."""

    logits: Any = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class TFBaseModelOutput(ModelOutput):
    """`last_hidden_state` (B, T, C); `hidden_states`, one (B, T, C) more than layers; `attentions`, a (B, H, T, T)
    per layer.
    """

    last_hidden_state: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class TFCausalLMOutput(ModelOutput):
    """`loss` (1,) when labels were given; `logits` (B, T, V); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None


@dataclass
class TFSequenceClassifierOutput(ModelOutput):
    """`loss` (1,) when labels were given; `logits` (B, num_labels); the rest as in the base model's output."""

    loss: Any = None
    logits: Any = None
    hidden_states: Any = None
    attentions: Any = None
