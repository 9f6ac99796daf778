"""Errors of the library in the words of the command line: `--top-p`, where Python says `top_p`."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

_PHRASES = (
    (r"\b([Pp])ass do_sample=False", r"\1ass --greedy"),
    (r"\bPass do_sample=True", "Leave out --greedy"),
    (r"\bpass do_sample=True", "leave out --greedy"),
    (r"\bdo_sample=False", "--greedy"),
    (r"\bdo_sample=True", "sampling"),
    (r"\btokenizer\(\.\.\., truncation=True, max_length=(\d+)\)", r"its first \1 tokens"),
)
_NAMES = {
    "num_return_sequences": "--samples",
    "stop_strings": "--stop",
    "torch_dtype": "--dtype",
    "max_length": "--max-new-tokens",  # counts the prompt, but the command line knows no other length
}
_SAME = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "max_time",
    "json_schema",
    "regex",
)


def in_flags(message: str) -> str:
    """A message with the options of Python as flags: `max_new_tokens=5` is `--max-new-tokens 5`."""
    for pattern, phrase in _PHRASES:
        message = re.sub(pattern, phrase, message)
    names = {name: f"--{name.replace('_', '-')}" for name in _SAME} | _NAMES
    return re.sub(
        rf"(?<![\w-])({'|'.join(names)})\b(=)?",
        lambda found: names[found[1]] + (" " if found[2] else ""),
        message,
    )


@contextmanager
def errors_in_flags() -> Iterator[None]:
    """Raise errors of the block as they are, but told in flags."""
    try:
        yield
    except (ValueError, TypeError) as error:
        told = in_flags(str(error))
        if told == str(error):
            raise
        raise ValueError(told) from error


def refuse_with(flag: str, reason: str, others: Mapping[str, Any]) -> None:
    """Refuse flags that mean nothing beside another; `others` maps each to its value, None where it was not given.

    Raises: typer.BadParameter naming both.
    """
    given = " and ".join(name for name, value in others.items() if value is not None)
    if given:
        raise typer.BadParameter(f"{flag} {reason}, so {given} would have no effect. Leave out {flag} or {given}.")
