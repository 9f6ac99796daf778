"""GPT's tokenizer in Python: byte-pair encoding of lower-case words.

A word's last piece is marked with `</w>`, so "the</w>" is a word and "the" the start of one. Radford et al., 2018,
"Improving language understanding by generative pre-training"; Sennrich et al., 2016, arXiv:1508.07909.
"""

import os
from collections.abc import Sequence
from typing import Any, ClassVar

import regex
from tokenizers import AddedToken

from triptych.models.openai_gpt.pretokenization import PRE_TOKENIZERS, choose
from triptych.tokenization.bpe import CACHED_WORD_LENGTH, CACHED_WORDS, merge
from triptych.tokenization.options import logger
from triptych.tokenization.slow import PreTrainedTokenizer
from triptych.tokenization.special_tokens import Token, from_json, str_of, to_json
from triptych.tokenization.vocabulary import Merges, read_merges, read_vocabulary, write_files

END_OF_WORD = "</w>"


class OpenAIGPTTokenizer(PreTrainedTokenizer):
    """Text ↔ ids with vocab.json and merges.txt.

    `pre_tokenizer` is "spacy", as the model was trained (needs ftfy and spaCy), or "basic", as for BERT. When neither
    the call nor the files say which, it is "spacy" where the libraries are installed. It is saved with the tokenizer,
    so a folder gives the same ids everywhere, or an error. White space and case are not kept.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (may be set)

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        merges_file: str | os.PathLike[str],
        unk_token: str | AddedToken | None = "<unk>",
        **kwargs: Any,
    ) -> None:
        """Read the vocabulary.

        Raises: CheckpointError naming the file that is missing, damaged or of another vocabulary; ImportError if
            `pre_tokenizer` is "spacy" and its libraries are missing.
        """
        wanted = kwargs.pop("pre_tokenizer", None)
        self._pre_tokenizer = choose(wanted)
        if wanted is None and self._pre_tokenizer == "basic":
            logger.warning(
                "ftfy and spaCy are not both installed, so text is split as BERT does, not as GPT was trained. "
                'Install "triptych[openai-gpt]", or pass pre_tokenizer="basic" if it is meant.'
            )
        self.encoder = read_vocabulary(vocab_file)
        self.decoder = {token_id: token for token, token_id in self.encoder.items()}
        self.merges = read_merges(merges_file, self.encoder)
        self._bpe = WordBPE(self.merges)
        super().__init__(
            unk_token=unk_token,
            pre_tokenizer=self._pre_tokenizer,
            **kwargs,
        )

    @property
    def pre_tokenizer(self) -> str:
        """How text is split into words: "spacy" or "basic"."""
        return self._pre_tokenizer

    @property
    def do_lower_case(self) -> bool:
        """True: the vocabulary has no capital letters."""
        return True

    @property
    def vocab_size(self) -> int:
        """The number of tokens before any were added."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, added tokens included."""
        return self.encoder | self._added_tokens.ids

    def _add_tokens(self, new_tokens: Sequence[Token], special_tokens: bool = False) -> int:
        """Put tokens into the vocabulary, those that are neither special nor exact in lower case, as texts are."""
        if not special_tokens:
            new_tokens = [_lowered(token) for token in new_tokens]
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Lower-case a text, but not the special tokens in it nor the added ones that were loaded with capitals."""
        kept = set(self.all_special_tokens)
        kept |= {t.content for t in self._added_tokens.by_id.values() if t.normalized and not t.special}
        kept = {token for token in kept if token != _lower(token)}
        if not kept:
            return _lower(text), kwargs
        parts = regex.split("(" + "|".join(map(regex.escape, sorted(kept, key=len, reverse=True))) + ")", text)
        return "".join(part if part in kept else _lower(part) for part in parts), kwargs

    def bpe(self, token: str) -> str:
        """The pieces of a word, with spaces between them."""
        return " ".join(self._bpe.pieces(token))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        pieces = self._bpe.pieces
        return [piece for word in PRE_TOKENIZERS[self._pre_tokenizer]()(text) for piece in pieces(word)]

    def _convert_token_to_id(self, token: str) -> int | None:
        token_id = self.encoder.get(token)
        if token_id is not None:
            return token_id
        unknown = self._special_tokens.get("unk_token")
        return (
            None if unknown is None else self.encoder.get(str_of(unknown), self._added_tokens.ids.get(str_of(unknown)))
        )

    def _convert_id_to_token(self, index: int) -> str | None:
        return self.decoder.get(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into words, and these with spaces."""
        return "".join(tokens).replace(END_OF_WORD, " ").strip()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; returns their paths."""
        return write_files(save_directory, self.vocab_files_names, filename_prefix, self.encoder, self.merges)


class WordBPE:
    """A list of merges, applied to words. Words that came before are remembered."""

    def __init__(self, merges: Merges) -> None:
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._known: dict[str, tuple[str, ...]] = {}

    def pieces(self, word: str) -> tuple[str, ...]:
        """The word as tokens of the vocabulary; the last one ends in `</w>`."""
        return self._known.get(word) or self._learn(word)

    def _learn(self, word: str) -> tuple[str, ...]:
        merged = merge([*word[:-1], word[-1:] + END_OF_WORD], self.ranks)
        if len(word) <= CACHED_WORD_LENGTH:
            if len(self._known) >= CACHED_WORDS:
                self._known.clear()
            self._known[word] = merged
        return merged

    def __getstate__(self) -> dict[str, object]:
        """Pickle the merges, not the words seen."""
        return {"ranks": self.ranks, "_known": {}}


def _lower(text: str) -> str:
    # Letter by letter: only a sigma depends on its neighbours.
    return text.replace("Σ", "σ").lower()


def _lowered(token: Token) -> Token:
    if isinstance(token, str):
        return _lower(token)
    if token.special or not token.normalized:
        return token
    return from_json(to_json(token), content=_lower(token.content))
