"""What the options of beam search must fulfil, whatever the framework."""

from collections.abc import Callable
from typing import Any

from triptych.generation.checks import require_int, require_number
from triptych.generation.configuration import GenerationConfig
from triptych.generation.constraints import fewest_tokens, read_constraints

# An option that asks for more than plain beams, what must hold with it, and the remedy.
_RULES: tuple[tuple[Callable[[GenerationConfig], bool], Callable[[GenerationConfig], bool], str], ...] = (
    (
        lambda o: o.num_beam_groups > 1,
        lambda o: o.num_beams % o.num_beam_groups == 0,
        "num_beam_groups ({o.num_beam_groups}) must divide num_beams ({o.num_beams}).",
    ),
    (
        lambda o: o.num_beam_groups > 1,
        lambda o: not o.do_sample,
        "Groups of beams search and do not sample: leave out do_sample=True or num_beam_groups={o.num_beam_groups}.",
    ),
    (
        lambda o: o.num_beam_groups > 1,
        lambda o: o.diversity_penalty > 0,
        "Groups of beams need a diversity_penalty above 0, without which they are all alike; "
        "got {o.diversity_penalty!r}.",
    ),
    (
        lambda o: bool(o.constraints or o.force_words_ids),
        lambda o: o.num_beams > 1,
        "constraints and force_words_ids are met by beam search: pass num_beams above 1.",
    ),
    (
        lambda o: bool(o.constraints or o.force_words_ids),
        lambda o: not o.do_sample,
        "constraints and force_words_ids are met by search, not by sampling: leave out do_sample=True.",
    ),
    (
        lambda o: bool(o.constraints or o.force_words_ids),
        lambda o: o.num_beam_groups == 1,
        "constraints and force_words_ids are met by one group of beams: leave out num_beam_groups.",
    ),
)


def check_beams(options: GenerationConfig, room: int, streamer: Any = None) -> None:
    """Refuse what beams cannot do, before any work; `room` is the number of tokens that may be added.

    Raises: ValueError naming the option.
    """
    require_int("num_beams", options.num_beams, 1)
    require_int("num_beam_groups", options.num_beam_groups, 1)
    require_number("length_penalty", options.length_penalty, least=-float("inf"))
    for asked, holds, rule in _RULES:
        if asked(options) and not holds(options):
            raise ValueError(rule.format(o=options))
    if options.num_beams > 1 and streamer is not None:
        raise ValueError("A streamer gets tokens that stay, and beams may still be dropped. Pass num_beams=1.")
    if options.constraints is None and options.force_words_ids is None:
        return
    shortest = sum(map(fewest_tokens, read_constraints(options.constraints, options.force_words_ids)))
    if shortest > room:
        raise ValueError(
            f"constraints and force_words_ids take {shortest} tokens or more, but only {room} may be added. "
            f"Pass max_new_tokens={shortest} or more."
        )
