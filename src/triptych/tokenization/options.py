"""What a call of a tokenizer asks for, settled once, before any text is read."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

# A model_max_length above this means "none known": 1e30 is what files store for it.
LARGE_INTEGER = int(1e20)
VERY_LARGE_INTEGER = int(1e30)


class PaddingStrategy(StrEnum):
    """To which length rows are padded."""

    LONGEST = "longest"
    MAX_LENGTH = "max_length"
    DO_NOT_PAD = "do_not_pad"


class TruncationStrategy(StrEnum):
    """Which sequence of a pair gives way."""

    ONLY_FIRST = "only_first"
    ONLY_SECOND = "only_second"
    LONGEST_FIRST = "longest_first"
    DO_NOT_TRUNCATE = "do_not_truncate"


class TensorType(StrEnum):
    """The frameworks whose tensors can be returned."""

    PYTORCH = "pt"
    TENSORFLOW = "tf"
    NUMPY = "np"
    JAX = "jax"


Choice = TypeVar("Choice", bound=StrEnum)


def choose(kind: type[Choice], value: Any, option: str) -> Choice:
    """The member of `kind` that `value` names.

    Raises: ValueError naming the option and its choices.
    """
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{option} must be one of {[str(member) for member in kind]}, not {value!r}.") from None


@dataclass(frozen=True, slots=True)
class Lengths:
    """How rows are brought to length: truncated to `max_length` tokens (special ones counted), then padded."""

    padding: PaddingStrategy = PaddingStrategy.DO_NOT_PAD
    truncation: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE
    max_length: int | None = None
    stride: int = 0
    pad_to_multiple_of: int | None = None

    @property
    def pads(self) -> bool:
        """Whether rows are padded."""
        return self.padding is not PaddingStrategy.DO_NOT_PAD

    @property
    def limit(self) -> int | None:
        """The number of tokens that truncation leaves at most; None if it leaves all."""
        return None if self.truncation is TruncationStrategy.DO_NOT_TRUNCATE else self.max_length


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns a result has beside `input_ids`, and as which framework's tensors."""

    token_type_ids: bool = False
    attention_mask: bool = True
    overflowing_tokens: bool = False
    special_tokens_mask: bool = False
    offset_mapping: bool = False
    length: bool = False
    tensors: TensorType | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """Everything that a call asks for beside the texts."""

    lengths: Lengths = Lengths()
    columns: Columns = Columns()
    add_special_tokens: bool = True
    is_split_into_words: bool = False
    verbose: bool = True


def settle_lengths(
    padding: Any,
    truncation: Any,
    max_length: int | None,
    stride: int,
    pad_to_multiple_of: int | None,
    model_max_length: int,
    tell: Callable[[str], None],
    old_options: dict[str, Any],
) -> Lengths:
    """Turn the documented options into one plan.

    `max_length` alone asks for longest_first truncation; "max_length" without a number means the model's own
    maximum, or nothing where none is known. `old_options` may hold `truncation_strategy` and
    `pad_to_max_length`, the names of these options before version 3; they are taken out. `tell` gets what a user
    should know about the choice.

    Raises: ValueError naming the option if a value is not one of its choices, or lengths contradict each other.
    """
    padding, truncation = _old_names(padding, truncation, max_length, old_options)
    if max_length is not None and truncation is None and padding is False:
        tell(
            "max_length was given without truncation, so truncation='longest_first' is used. "
            "Pass truncation=True (or a strategy) to say so."
        )
        truncation = True
    if padding is True and max_length is not None and truncation in (None, False, "do_not_truncate"):
        tell("max_length has no effect with padding=True. Use padding='max_length' to pad up to it.")
    pad = {True: PaddingStrategy.LONGEST, False: PaddingStrategy.DO_NOT_PAD, None: PaddingStrategy.DO_NOT_PAD}.get(
        padding
    ) or choose(PaddingStrategy, padding, "padding")
    cut = {
        True: TruncationStrategy.LONGEST_FIRST,
        False: TruncationStrategy.DO_NOT_TRUNCATE,
        None: TruncationStrategy.DO_NOT_TRUNCATE,
    }.get(truncation) or choose(TruncationStrategy, truncation, "truncation")
    if max_length is None and (pad is PaddingStrategy.MAX_LENGTH or cut is not TruncationStrategy.DO_NOT_TRUNCATE):
        if model_max_length <= LARGE_INTEGER:
            max_length = model_max_length
        else:
            tell(
                "No maximum length is known for this model, so nothing is truncated or padded to it. "
                "Pass max_length, or set tokenizer.model_max_length."
            )
            pad = PaddingStrategy.DO_NOT_PAD if pad is PaddingStrategy.MAX_LENGTH else pad
            cut = TruncationStrategy.DO_NOT_TRUNCATE
    lengths = Lengths(pad, cut, max_length, stride, pad_to_multiple_of)
    _check(lengths)
    return lengths


def _check(lengths: Lengths) -> None:
    for name in ("max_length", "stride", "pad_to_multiple_of"):
        value, least = getattr(lengths, name), 1 if name == "pad_to_multiple_of" else 0
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}.")
    multiple = lengths.pad_to_multiple_of
    if lengths.pads and lengths.limit is not None and multiple is not None and lengths.limit % multiple:
        raise ValueError(
            f"With both truncation and padding, max_length must be a multiple of pad_to_multiple_of={multiple}, "
            f"not {lengths.limit}. Pass max_length={lengths.limit // multiple * multiple or multiple}."
        )


def _old_names(padding: Any, truncation: Any, max_length: int | None, options: dict[str, Any]) -> tuple[Any, Any]:
    if "truncation_strategy" in options:
        strategy = options.pop("truncation_strategy")
        warnings.warn("truncation_strategy is now called truncation.", FutureWarning, stacklevel=5)
        truncation = strategy if truncation is None else truncation
    if options.pop("pad_to_max_length", False):
        warnings.warn(
            "pad_to_max_length=True is now written padding='max_length' or padding=True.", FutureWarning, stacklevel=5
        )
        if padding is False:
            padding = "max_length" if max_length is not None else True
            # The old option padded and truncated together.
            truncation = True if truncation is None and max_length is not None else truncation
    return padding, truncation
