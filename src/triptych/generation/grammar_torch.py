"""Text that follows a grammar, in PyTorch: `grammar.py`'s verdict on each row as a logits transform.

Shapes as in `logits_torch.py`: B rows, T tokens so far, V vocabulary; (B, T), (B, V) -> (B, V).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from triptych.generation.checks import INF, TokenIds, as_ids, require_int
from triptych.generation.grammar import Grammar
from triptych.generation.logits_torch import LogitsProcessor


@dataclass(frozen=True, slots=True)
class GrammarLogitsProcessor(LogitsProcessor):
    """Allow only tokens that go on with a text of the grammar, and the end only where that text is complete.

    `json_schema` is a JSON schema as text, dict or pydantic model class; `regex` a regular expression for the whole
    text (Rust's syntax: no look-around, no back-references). One of them is given. The text begins behind the first
    `prompt_length` tokens. What may follow depends on a row's ids alone, so rows may be beams, change places or go
    back. A text that `max_new_tokens` cuts off is the beginning of one that follows the grammar.

    Raises: ValueError or TypeError for a grammar that cannot be read, or without tokenizer or end; ImportError when
        llguidance is missing.
    """

    tokenizer: Any
    json_schema: Any = None
    regex: str | None = None
    prompt_length: int = 0
    eos_token_id: TokenIds | None = None
    _grammar: Grammar = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the arguments and read the grammar."""
        require_int("prompt_length", self.prompt_length, 0)
        if self.tokenizer is None:
            raise ValueError("A grammar is followed in text, which needs the tokenizer. Pass tokenizer=... too.")
        ends = as_ids(self.eos_token_id)
        if not ends:
            ends = as_ids(getattr(self.tokenizer, "eos_token_id", None))
        if not ends:
            raise ValueError("A grammar forces the end of a complete text, which needs eos_token_id. Pass it.")
        grammar = Grammar(self.tokenizer, ends, json_schema=self.json_schema, regex=self.regex)
        object.__setattr__(self, "_grammar", grammar)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """-inf at all other tokens.

        Raises: ValueError when other options rule out every token that the grammar allows.
        """
        texts = [tuple(ids) for ids in input_ids[:, self.prompt_length :].tolist()]
        words = torch.from_numpy(self._grammar.allowed(texts)).to(scores.device)  # (B, W), 32 tokens in each
        bits = torch.arange(32, dtype=torch.int32, device=scores.device)
        allowed = ((words[:, :, None] >> bits) & 1).bool().flatten(1)[:, : self._grammar.width]
        spare = scores.shape[1] - self._grammar.width
        # a model may have rows for more tokens than its tokenizer, or for fewer
        allowed = torch.nn.functional.pad(allowed, (0, spare)) if spare > 0 else allowed[:, : scores.shape[1]]
        left = scores.masked_fill(~allowed, -INF)
        stuck = (left == -INF).all(dim=1)
        if bool(stuck.any()):
            row = int(stuck.nonzero()[0])
            raise ValueError(
                f"Row {row}: of the tokens that the grammar allows after {len(texts[row])} new ones, other options "
                "leave none. Leave out min_new_tokens, bad_words_ids and others that ban what the grammar needs."
            )
        return left
