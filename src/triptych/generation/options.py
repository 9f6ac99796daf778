"""The options of one call of `generate`: which ones hold, what is not supported, and which names are unknown."""

import copy
import difflib
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.errors import GenerationWarning, TokenIdError, UnknownOptionError
from triptych.generation.configuration import DEFAULTS, GenerationConfig

_PACKAGE = str(Path(__file__).parents[1])

# What `forward` takes but `generate` decides itself.
_NOT_FOR_USERS = frozenset({"self", "input_ids", "labels", "return_dict", "use_cache", "cache_position"})


@dataclass(frozen=True)
class Request:
    """`options`, with everything resolved; `model_inputs` for the model's forward pass; what the call itself named."""

    options: GenerationConfig
    model_inputs: dict[str, Any]
    named: frozenset[str]


@dataclass(frozen=True)
class Unsupported:
    """A way of generating that this version does not have, and the options that ask for it."""

    name: str
    asked: Callable[[GenerationConfig], bool]
    options: str


UNSUPPORTED = (
    Unsupported("contrastive search", lambda o: bool(o.penalty_alpha), "penalty_alpha"),
    Unsupported("prompt lookup", lambda o: o.prompt_lookup_num_tokens is not None, "prompt_lookup_num_tokens"),
    Unsupported("classifier-free guidance", lambda o: o.guidance_scale not in (None, 1), "guidance_scale"),
)
_UNSUPPORTED_ARGUMENTS = {
    "assistant_model": "assisted generation",
    "negative_prompt_ids": "classifier-free guidance",
    "negative_prompt_attention_mask": "classifier-free guidance",
    "synced_gpus": "generation in step over several processes",
}


def resolve(
    model: Any,
    given: GenerationConfig | None,
    kwargs: Mapping[str, Any],
    *,
    unsupported: Sequence[Unsupported] = UNSUPPORTED,
    inputs: frozenset[str] | None = None,
) -> Request:
    """Keyword arguments over the given options over the model's own.

    `inputs` are the model's inputs by name, when they are not simply those of its `forward`.

    Options left out of a given `generation_config` have the documented defaults, except that bos, eos and pad ids come
    from the model. Raises: UnknownOptionError for a keyword argument that is neither an option nor a model input;
    ValueError for options that contradict each other or ask for what is not supported.
    """
    own = _own_options(model)
    options = copy.deepcopy(own if given is None else given)
    kwargs = options.generation_kwargs | dict(kwargs)
    rest = options.update(**kwargs)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(options, name) is None and name not in kwargs:
            setattr(options, name, getattr(own, name))
    accepted = set(inspect.signature(model.forward).parameters) - _NOT_FOR_USERS if inputs is None else set(inputs)
    model_inputs = _model_inputs(accepted, rest)
    options.validate()
    for way in unsupported:
        if way.asked(options):
            raise ValueError(_unsupported(way.name, way.options))
    named = frozenset(name for name in kwargs if kwargs[name] is not None)
    if given is not None:
        named |= {name for name in ("max_length", "max_new_tokens") if getattr(given, name) != DEFAULTS[name]}
    return Request(options, model_inputs, named)


def refuse_unsupported_arguments(**arguments: Any) -> None:
    """Refuse the arguments of `generate` that this version does not support.

    Raises: ValueError naming the first of them.
    """
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise ValueError(_unsupported(_UNSUPPORTED_ARGUMENTS[name], name))


def _unsupported(way: str, options: str) -> str:
    return (
        f"generate() supports greedy decoding and sampling; {way} is not supported yet. "
        f"Leave out {options}, or sample with do_sample=True."
    )


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
            + "".join(_nearest(name, known) for name in unknown)
        )
    return {name: value for name, value in rest.items() if name in accepted and value is not None}


def _nearest(name: str, known: Collection[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f" Instead of {name!r}, did you mean {found[0]!r}?" if found else ""


def check_token_ids(options: GenerationConfig, vocab_size: int) -> None:
    """Refuse options that name tokens outside the vocabulary, before any work.

    Raises: TokenIdError naming the option and the id.
    """
    for name, ids in _named_ids(options):
        for token in ids:
            if not isinstance(token, int) or not 0 <= token < vocab_size:
                raise TokenIdError(
                    f"{name} must name token ids from 0 to {vocab_size - 1}, the vocabulary's size less one; "
                    f"got {token!r}. Use the tokenizer that belongs to the model."
                )


def _named_ids(options: GenerationConfig) -> Iterator[tuple[str, list[Any]]]:
    needs_end = options.min_length or options.min_new_tokens or options.exponential_decay_length_penalty
    names = ("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id")
    for name in (*names, "eos_token_id") if needs_end else names:
        yield name, flat(getattr(options, name))
    for name in ("bad_words_ids", "forced_decoder_ids", "sequence_bias"):
        value = getattr(options, name)
        if name == "sequence_bias" and value is not None:
            value = [pair[0] for pair in (value.items() if isinstance(value, Mapping) else value)]
        if name == "forced_decoder_ids" and value is not None:
            value = [pair[1] for pair in value if pair[1] is not None]
        yield name, flat(value)


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
