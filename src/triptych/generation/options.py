"""The options of one call of `generate`: which ones hold, which have no effect, and which names are unknown."""

import copy
import difflib
import inspect
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from triptych.errors import GenerationWarning, TokenIdError, UnknownOptionError
from triptych.generation import strategies
from triptych.generation.configuration import DEFAULTS, GenerationConfig

_PACKAGE = str(Path(__file__).parents[1])

# What `forward` takes but `generate` decides itself.
NOT_FOR_USERS = frozenset({"self", "input_ids", "labels", "return_dict", "use_cache", "cache_position"})


@dataclass(frozen=True)
class Request:
    """`options`, with everything resolved; `model_inputs` for the model's forward pass; what the call itself named.

    `strategy` is that of `strategies.strategy_of`.
    """

    options: GenerationConfig
    model_inputs: dict[str, Any]
    named: frozenset[str]
    strategy: str


def resolve(
    model: Any,
    given: GenerationConfig | None,
    kwargs: Mapping[str, Any],
    *,
    arguments: Mapping[str, Any] | None = None,
    inputs: frozenset[str] | None = None,
) -> Request:
    """Keyword arguments over the given options over the model's own; `arguments` are those of the call beside them.

    `inputs` are the model's inputs by name, when they are not simply those of its `forward`.

    Options left out of a given `generation_config` have the documented defaults, except that bos, eos and pad ids come
    from the model. One warning names the options that the call gives and that have no effect in it; those of a file
    are let be. Raises: UnknownOptionError for a keyword argument that is neither an option nor a model input;
    ValueError for options that are out of range or exclude each other.
    """
    own = _own_options(model)
    if not isinstance(given, GenerationConfig | None):
        raise TypeError(
            f"generation_config must be a GenerationConfig; got {type(given).__name__}. Pass options by their names."
        )
    options = copy.deepcopy(own if given is None else given)
    kwargs = options.generation_kwargs | {
        name: value.item() if isinstance(value, np.generic) else value for name, value in kwargs.items()
    }
    arguments = {name: value for name, value in (arguments or {}).items() if value is not None}
    rest = options.update(**kwargs)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(options, name) is None and name not in kwargs:
            setattr(options, name, getattr(own, name))
    accepted = set(inspect.signature(model.forward).parameters) - NOT_FOR_USERS if inputs is None else set(inputs)
    model_inputs = _model_inputs(accepted, rest)
    options.check()
    named = {name for name in kwargs if kwargs[name] is not None}
    if given is not None:
        named |= {name for name, default in DEFAULTS.items() if getattr(given, name) not in (None, default)}
    strategies.refuse_impossible(options, arguments, named)
    chosen = {name: getattr(options, name) for name in DEFAULTS if name in named} | arguments
    useless = strategies.without_effect(
        options, arguments, {name: value for name, value in chosen.items() if _is_chosen(name, value)}
    )
    if told := " ".join(useless):
        notice(told)
    return Request(options, model_inputs, frozenset(named), strategies.strategy_of(options, arguments))


def _is_chosen(name: str, value: Any) -> bool:
    """Whether a value is another than the default, which asks for nothing. Of values a tensor may be one."""
    return name not in DEFAULTS or type(value) is not type(DEFAULTS[name]) or value != DEFAULTS[name]


def _own_options(model: Any) -> GenerationConfig:
    """The model's own options; while they are as its configuration gave them, they follow later changes of that."""
    own = model.generation_config
    if own is None:
        raise TypeError(f"{type(model).__name__} cannot generate. Load the weights with AutoModelForCausalLM.")
    if own.is_as_made_from_model_config():
        current = GenerationConfig.from_model_config(model.config)
        if current != own:
            notice("Options of generation were changed in model.config; change model.generation_config instead.")
            model.generation_config = own = current
    return own  # type: ignore[no-any-return]


def _model_inputs(accepted: set[str], rest: dict[str, Any]) -> dict[str, Any]:
    # A training batch may be passed as it is: its labels play no part.
    unknown = [name for name in rest if name not in accepted and name != "labels"]
    if unknown:
        known = sorted(accepted | set(DEFAULTS) | {"tokenizer", "streamer"})
        raise UnknownOptionError(
            "generate() takes the options of GenerationConfig and the inputs of the model; got "
            + ", ".join(map(repr, unknown))
            + "."
            + "".join(nearest(name, known) for name in unknown)
        )
    return {name: value for name, value in rest.items() if name in accepted and value is not None}


def nearest(name: str, known: Collection[str]) -> str:
    """A sentence that asks for the known name that is most like `name`; nothing where none is."""
    found = difflib.get_close_matches(name, known, n=1)
    return f" Instead of {name!r}, did you mean {found[0]!r}?" if found else ""


def check_token_ids(options: GenerationConfig, vocab_size: int) -> None:
    """Refuse options that name tokens outside the vocabulary, before any work.

    Raises: TokenIdError naming the option and the id.
    """
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # of these some serve without being a token
        if any(isinstance(token, str | float | bool) for token in flat(getattr(options, name))):
            raise TokenIdError(f"{name} must be a token id, an int; got {getattr(options, name)!r}.")
    for name, ids in _named_ids(options):
        for token in ids:
            if not isinstance(token, int) or not 0 <= token < vocab_size:
                raise TokenIdError(
                    f"{name} must name token ids from 0 to {vocab_size - 1}, the vocabulary's size less one; "
                    f"got {token!r}. Use the tokenizer that belongs to the model."
                )


def _named_ids(options: GenerationConfig) -> Iterator[tuple[str, list[Any]]]:
    grammar = options.json_schema is not None or options.regex is not None
    needs_end = grammar or options.min_length or options.min_new_tokens or options.exponential_decay_length_penalty
    names = ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
    for name in (*names, "eos_token_id") if needs_end else names:
        yield name, flat(getattr(options, name))
    for name in ("bad_words_ids", "forced_decoder_ids", "sequence_bias"):
        value = getattr(options, name)
        if name == "sequence_bias" and value is not None:
            value = [pair[0] for pair in (value.items() if isinstance(value, Mapping) else value)]
        if name == "forced_decoder_ids" and value is not None:
            value = [pair[1] for pair in value if isinstance(pair, Sequence) and pair[1:] and pair[1] is not None]
        yield name, flat(value)
    yield "force_words_ids", flat(options.force_words_ids)
    if isinstance(options.constraints, Sequence):
        yield "constraints", flat([getattr(one, "token_ids", None) for one in options.constraints])


def flat(value: Any) -> list[Any]:
    """The leaves of nested sequences; none for None."""
    if value is None:
        return []
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def notice(message: str) -> None:
    """Warn at the line of the user's code, so that Python says it once for each such line."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, GenerationWarning, stacklevel=level)
