"""How long a text may get: from the options, the prompt and the model's positions, whatever the framework."""

from typing import Any, Protocol

from triptych.errors import SequenceTooLongError
from triptych.generation.checks import require_int
from triptych.generation.configuration import DEFAULTS
from triptych.generation.options import Request, notice


class Prompt(Protocol):
    """What a prompt tells: its `ids` (B, N), and its `width` in positions."""

    @property
    def ids(self) -> Any:
        """The ids, with their shape."""

    @property
    def width(self) -> int:
        """How many positions the prompt takes."""


def settle_length(request: Request, prompt: Prompt, max_positions: int | None, *, last_is_fed: bool = False) -> int:
    """How many tokens may be added; `request.options.max_length` becomes the full length.

    `last_is_fed` says that the last token needs a position too, which it does where it is tried before it is chosen.

    Raises: ValueError when the options leave no room for a token, or for the shortest text asked for;
        SequenceTooLongError when what was asked for exceeds the model's positions. A limit that nobody asked for is
        lowered, with a warning.
    """
    options, length = request.options, int(prompt.ids.shape[1])
    asked = not request.named.isdisjoint({"max_length", "max_new_tokens"})
    if options.max_new_tokens is not None:
        require_int("max_new_tokens", options.max_new_tokens, 1)
        if {"max_length", "max_new_tokens"} <= request.named:
            notice("max_new_tokens and max_length were both given; max_new_tokens holds. Pass one of them.")
        options.max_length = length + options.max_new_tokens
    elif not asked and options.max_length in (None, DEFAULTS["max_length"]) and length < DEFAULTS["max_length"]:
        notice("The text ends at max_length=20 tokens, the default, prompt included. Pass max_new_tokens=...")
    if options.max_length is None:
        options.max_length = DEFAULTS["max_length"]
    require_int("max_length", options.max_length, 1)
    if options.max_length <= length:
        _no_room(options.max_length, length, asked)
        options.max_length = length + 1
    if max_positions is not None:
        _fit_positions(request, prompt, max_positions, asked, 0 if last_is_fed else 1)
    _check_minimum(request, length)
    if "forced_bos_token_id" in request.named and length != 1:
        notice(
            f"forced_bos_token_id={options.forced_bos_token_id} is the second token of a text, but the prompt has "
            f"{length} tokens already. Leave it out."
        )
    return int(options.max_length - length)


def _check_minimum(request: Request, length: int) -> None:
    options = request.options
    for name in ("min_length", "min_new_tokens"):
        require_int(name, getattr(options, name) or 0, 0)
    least = {"min_length": options.min_length or 0, "min_new_tokens": options.min_new_tokens or 0}
    name = "min_length" if least["min_length"] >= length + least["min_new_tokens"] else "min_new_tokens"
    shortest = max(least["min_length"], length + least["min_new_tokens"])
    if shortest <= options.max_length:
        return
    longest = f"max_new_tokens={options.max_new_tokens}, " if options.max_new_tokens is not None else ""
    message = (
        f"With {name}={least[name]} the shortest text has {shortest} tokens, but the longest allowed "
        f"{options.max_length} ({longest}max_length={options.max_length}, prompt included). "
    )
    if name in request.named:
        raise ValueError(message + f"Lower {name}, or pass max_new_tokens={shortest - length} or more.")
    notice(message + "Generation stops there. Raise max_new_tokens.")


def _no_room(max_length: int, length: int, asked: bool) -> None:
    message = (
        f"max_length={max_length} counts the prompt, which has {length} tokens, so there is no room for a new one. "
        "Pass max_new_tokens, which does not count the prompt."
    )
    if asked:
        raise ValueError(message)
    notice(message + " One token is generated.")


def _fit_positions(request: Request, prompt: Prompt, positions: int, asked: bool, unfed: int) -> None:
    options, length, width = request.options, prompt.ids.shape[1], prompt.width
    new = options.max_length - length
    room = positions - width + unfed  # a last token that is never fed back
    if room < 1:
        raise SequenceTooLongError(
            f"The model has {positions} positions but the prompt alone needs {width}. Shorten the prompt, for "
            f"example with tokenizer(..., truncation=True, max_length={positions})."
        )
    if new <= room:
        return
    if asked:
        limit = f"max_new_tokens={room}" if options.max_new_tokens is not None else f"max_length={length + room}"
        raise SequenceTooLongError(
            f"The model has {positions} positions but the prompt of {width} tokens and {new} new ones need "
            f"{width + new - unfed}. Shorten the prompt or pass {limit}."
        )
    notice(f"The text stops after {room} new tokens, where the model's {positions} positions end.")
    options.max_length = length + room
