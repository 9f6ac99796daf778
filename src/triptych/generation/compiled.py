"""What the compiled loops of JAX and TensorFlow share: their prompt, what they have no place for, and padding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triptych.generation.checks import as_ids
from triptych.generation.configuration import GenerationConfig
from triptych.generation.options import Request, notice

# Options that a compiled loop has no place for.
NOT_COMPILED: tuple[tuple[str, Callable[[GenerationConfig], Any]], ...] = (
    ("stop_strings", lambda o: o.stop_strings is not None),
    ("json_schema, regex", lambda o: o.json_schema is not None or o.regex is not None),
    ("watermarking_config", lambda o: o.watermarking_config is not None),
    ("guidance_scale", lambda o: o.guidance_scale not in (None, 1)),
    ("min_p", lambda o: bool(o.min_p)),
    ("max_time", lambda o: o.max_time is not None),
    ("num_beam_groups", lambda o: o.num_beam_groups != 1),
    ("output_attentions", lambda o: o.output_attentions),
    ("output_hidden_states", lambda o: o.output_hidden_states),
    ("use_cache=False", lambda o: not o.use_cache),
)
# The options that ask for a strategy which is not compiled.
_STRATEGIES_NOT_COMPILED = {
    "constrained beam": "constraints or force_words_ids",
    "contrastive": "penalty_alpha",
    "assisted": "prompt_lookup_num_tokens",
}


@dataclass(frozen=True)
class Prompt:
    """`ids` (B, N); `mask` (B, N), True at tokens."""

    ids: Any
    mask: Any

    @property
    def width(self) -> int:
        """N, how many positions the prompt takes."""
        return int(self.ids.shape[1])


def refuse_unsupported(request: Request, framework: str, *more: tuple[str, Callable[[GenerationConfig], Any]]) -> None:
    """Refuse options that ask for what a compiled loop does not do, and `more` that this framework does not.

    Raises: ValueError naming the first of them.
    """
    options, strategies = request.options, _STRATEGIES_NOT_COMPILED
    asked = [strategies[request.strategy]] if request.strategy in strategies else []
    asked += [name for name, is_asked in (*NOT_COMPILED, *more) if is_asked(options)]
    if asked:
        raise ValueError(
            f"generate() in {framework} supports greedy decoding, sampling and beam search in one compiled loop; "
            f"{asked[0]} is not supported. Leave it out."
        )


def check_rows(attended: Any) -> None:
    """Look at a mask (B, N), a boolean NumPy array: each row needs a token, and padding belongs on the left.

    Raises: ValueError naming a row that is all padding.
    """
    if not attended.any(axis=1).all():
        row = int((~attended.any(axis=1)).argmax())
        raise ValueError(f"Each row needs a token to continue, but row {row} is all padding. Take it out of the batch.")
    if not attended[:, -1].all():
        notice(
            "The batch is padded on the right, so texts are continued after their padding. "
            "Pad on the left: tokenizer.padding_side = 'left'."
        )


def settle_padding(options: GenerationConfig, vocab_size: int) -> None:
    """Choose what fills rows after their end.

    Raises: ValueError for a pad token outside the vocabulary.
    """
    if options.eos_token_id is None:
        return
    if options.pad_token_id is None:
        options.pad_token_id = as_ids(options.eos_token_id)[0]
        notice(
            f"pad_token_id is not set, so rows that end early are filled with eos_token_id={options.pad_token_id}. "
            "Pass pad_token_id to choose."
        )
    if not 0 <= options.pad_token_id < vocab_size:
        raise ValueError(
            f"pad_token_id must be from 0 to {vocab_size - 1}, the vocabulary's size less one; "
            f"got {options.pad_token_id}."
        )


def is_pad_mask(options: GenerationConfig) -> bool:
    """Whether pad tokens of a prompt without a mask are padding: unless they also end texts."""
    return options.pad_token_id is not None and options.pad_token_id not in as_ids(options.eos_token_id)
