"""What constraints must fulfil, whatever the framework."""

from triptych.generation.configuration import GenerationConfig
from triptych.generation.constraints import fewest_tokens, read_constraints


def check_constraints(options: GenerationConfig, room: int) -> None:
    """Refuse constraints that do not fit into the text; `room` is the number of tokens that may be added.

    Raises: ValueError.
    """
    if options.constraints is None and options.force_words_ids is None:
        return
    shortest = sum(map(fewest_tokens, read_constraints(options.constraints, options.force_words_ids)))
    if shortest > room:
        raise ValueError(
            f"constraints and force_words_ids take {shortest} tokens or more, but only {room} may be added. "
            f"Pass max_new_tokens={shortest} or more."
        )
