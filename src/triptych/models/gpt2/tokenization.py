"""GPT-2's tokenizer in Python: byte-level byte-pair encoding.

Every text is in its reach, as any byte is a token. A space belongs to the word after it: "word" and " word" are
different tokens. Radford et al., 2019, "Language models are unsupervised multitask learners".
"""

import os
from typing import Any, ClassVar

from tokenizers import AddedToken

from triptych.tokenization.bpe import ByteLevelBPE, alphabet_bytes, merge
from triptych.tokenization.slow import PreTrainedTokenizer
from triptych.tokenization.special_tokens import special, str_of
from triptych.tokenization.vocabulary import read_merges, read_vocabulary, write_files

Ids = list[int]


class GPT2Tokenizer(PreTrainedTokenizer):
    """Text ↔ ids with vocab.json and merges.txt.

    `errors` says what to do with bytes that are no UTF-8 when decoding (as for `bytes.decode`). `add_prefix_space`
    treats the first word like any other, `add_bos_token` starts every sequence with `bos_token`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "vocab.json", "merges_file": "merges.txt"}
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (may be set)

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        merges_file: str | os.PathLike[str],
        errors: str = "replace",
        unk_token: str | AddedToken = "<|endoftext|>",
        bos_token: str | AddedToken = "<|endoftext|>",
        eos_token: str | AddedToken = "<|endoftext|>",
        pad_token: str | AddedToken | None = None,
        add_prefix_space: bool = False,
        add_bos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        """Read the vocabulary.

        Raises: CheckpointError naming the file that is missing, damaged or of another vocabulary.
        """
        self.encoder = read_vocabulary(vocab_file)
        self.decoder = {token_id: token for token, token_id in self.encoder.items()}
        self.merges = read_merges(merges_file, self.encoder)
        self._bpe = ByteLevelBPE(self.merges)
        self.errors = errors
        self.add_prefix_space = add_prefix_space
        self.add_bos_token = add_bos_token
        roles = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        super().__init__(
            errors=errors,
            **{name: special(t, normalized=True) if isinstance(t, str) else t for name, t in roles.items()},
            add_prefix_space=add_prefix_space,
            add_bos_token=add_bos_token,
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        """The number of tokens before any were added."""
        return len(self.encoder)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, added tokens included."""
        return self.encoder | self._added_tokens.ids

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Put a space before a text's first word, or before each word of a text that comes as words."""
        add_prefix_space = kwargs.pop("add_prefix_space", self.add_prefix_space)
        return (" " + text if is_split_into_words or add_prefix_space else text), kwargs

    def bpe(self, token: str) -> str:
        """The pieces of a word that is spelled in the byte alphabet, with spaces between them."""
        return " ".join(merge(token, self._bpe.ranks))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self._bpe.tokens(text)

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
        """Join tokens into text; a token that was added to the vocabulary is text already."""
        return b"".join(map(self._bytes_of, tokens)).decode("utf-8", errors=self.errors)

    def _bytes_of(self, token: str) -> bytes:
        if token in self._added_tokens.ids and token not in self.encoder:
            return token.encode("utf-8")
        try:
            return bytes(map(alphabet_bytes().__getitem__, token))
        except KeyError:  # a character that spells no byte stands for itself
            return token.encode("utf-8")

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Sequences one after the other, each behind `bos_token` if `add_bos_token` says so."""
        start = [self.bos_token_id] if self.add_bos_token else []
        return start + token_ids_0 if token_ids_1 is None else start + token_ids_0 + start + token_ids_1

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> Ids:
        """1 at special tokens, 0 elsewhere."""
        if already_has_special_tokens or not self.add_bos_token:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens)
        second = [] if token_ids_1 is None else [1] + [0] * len(token_ids_1)
        return [1] + [0] * len(token_ids_0) + second

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; returns their paths."""
        return write_files(save_directory, self.vocab_files_names, filename_prefix, self.encoder, self.merges)
