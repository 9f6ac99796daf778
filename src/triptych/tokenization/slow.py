"""The base of tokenizers whose engine is Python."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from triptych.tokenization.added_tokens import AddedTokens
from triptych.tokenization.base import PreTrainedTokenizerBase
from triptych.tokenization.batch_encoding import BatchEncoding
from triptych.tokenization.options import Request, logger
from triptych.tokenization.preparation import Ids
from triptych.tokenization.special_tokens import Token, from_json, special, str_of, to_json


class PreTrainedTokenizer(PreTrainedTokenizerBase):
    """Text is split at the added tokens; what is between them goes through the subclass.

    A subclass supplies `vocab_size`, `get_vocab`, `_tokenize` (text → tokens), `_convert_token_to_id`,
    `_convert_id_to_token` and `save_vocabulary`, sets its own state up first and then calls this constructor with
    every option that is to be saved.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Set the added tokens up: those stored in `added_tokens_decoder`, then special tokens that are new."""
        self._added_tokens = AddedTokens()
        stored: Mapping[Any, AddedToken] = kwargs.pop("added_tokens_decoder", {})
        super().__init__(**kwargs)
        for token_id, token in stored.items():
            self._added_tokens.put(int(token_id), token)
        self._vocabulary_end: int | None = None
        self._add_tokens(
            [t for t in self.all_special_tokens_extended if str_of(t) not in self._added_tokens.ids],
            special_tokens=True,
        )

    # What a subclass supplies.

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        raise NotImplementedError

    def _convert_token_to_id(self, token: str) -> Any:
        raise NotImplementedError

    def _convert_id_to_token(self, index: int) -> Any:
        raise NotImplementedError

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Change the text before anything else is done with it; returns it with the options that were not used."""
        return text, kwargs

    # The vocabulary.

    @property
    def is_fast(self) -> bool:
        """False: the engine is Python."""
        return False

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id → AddedToken, by id."""
        return self._added_tokens.sorted()

    def __len__(self) -> int:
        """The number of tokens, added ones included."""
        return len(self.get_vocab())

    def _id_limit(self) -> int:
        if self._vocabulary_end is None:
            self._vocabulary_end = max(self.get_vocab().values(), default=-1) + 1
        return self._vocabulary_end

    def _add_tokens(self, new_tokens: Sequence[Token], special_tokens: bool = False) -> int:
        known = self.get_vocab()
        size, free = len(known), self._id_limit()  # ids that the vocabulary leaves out stay free
        for token in new_tokens:
            text = str_of(token)
            if not text:
                continue
            if text not in known:
                known[text], free = free, free + 1
            token_id = known[text]
            if special_tokens:
                new = special(token)
            elif isinstance(token, str):
                old = self._added_tokens.get(text)
                new = old if old is not None else AddedToken(text)
            else:
                new = from_json(to_json(token))
            self._added_tokens.put(token_id, new)
            if new.special and text not in self.all_special_tokens:
                self._additional.append(new)
        self._vocabulary_end = None
        return len(known) - size

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the ids of a list of them; unknown ones give `unk_token_id`."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            return self._id(tokens)
        return [self._id(token) for token in tokens]

    def _id(self, token: str) -> Any:
        token_id = self._added_tokens.ids.get(token)
        return self._convert_token_to_id(token) if token_id is None else token_id

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of a sequence of them; None for an id that has none."""
        if isinstance(ids, int):
            return self._token(ids)
        skipped = set(self.all_special_ids) if skip_special_tokens else frozenset()
        return [self._token(int(token_id)) for token_id in ids if int(token_id) not in skipped]

    def _token(self, token_id: int) -> Any:
        token = self._added_tokens.by_id.get(token_id)
        return self._convert_id_to_token(token_id) if token is None else token.content

    # Text → ids.

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Split a text into tokens; options that the tokenizer does not know are logged.

        `pair` and `add_special_tokens` belong to fast tokenizers and have no effect here.
        """
        split_special = kwargs.pop("split_special_tokens", self.split_special_tokens)
        text, unused = self.prepare_for_tokenization(text, **kwargs)
        if unused:
            logger.warning("%s does not know the options %s.", type(self).__name__, sorted(unused))
        if split_special or not self._added_tokens:
            return self._tokenize(text) if text else []
        tokens: list[str] = []
        for piece, is_added in self._added_tokens.split(text):
            if is_added:
                tokens.append(piece)
            else:
                tokens += self._tokenize(piece)
        return tokens

    def _ids(self, text: Any, request: Request, kwargs: dict[str, Any]) -> Ids:
        """The ids of a text, or of a list of words, tokens or ids."""
        if isinstance(text, str):
            return list(map(self._id, self.tokenize(text, **kwargs)))
        if isinstance(text, list | tuple):
            if not text:
                return []
            if isinstance(text[0], str) and request.is_split_into_words:
                words = (self.tokenize(word, is_split_into_words=True, **kwargs) for word in text)
                return [token_id for tokens in words for token_id in map(self._id, tokens)]
            if isinstance(text[0], str):
                return list(map(self._id, text))
            if isinstance(text[0], int):
                return list(text)
        got = f"a list of {type(text[0]).__name__}" if isinstance(text, list | tuple) else type(text).__name__
        raise ValueError(f"A text must be a str, or a list of words, tokens or ids, and one of them is {got}.")

    def _no_offsets(self, request: Request) -> None:
        if request.columns.offset_mapping:
            raise NotImplementedError(
                f"Offsets need a fast tokenizer, and {type(self).__name__} is a slow one. "
                f"Use {type(self).__name__}Fast."
            )

    def _encode_one(self, text: Any, text_pair: Any, request: Request, **kwargs: Any) -> BatchEncoding:
        self._no_offsets(request)
        first = self._ids(text, request, kwargs)
        second = None if text_pair is None else self._ids(text_pair, request, kwargs)
        row = self._finished_row(first, second, request)
        tensors = request.columns.tensors
        return BatchEncoding(row, tensor_type=tensors, prepend_batch_axis=tensors is not None)

    def _encode_many(self, items: Sequence[Any], request: Request, **kwargs: Any) -> BatchEncoding:
        self._no_offsets(request)
        rows = []
        for item in items:
            text, pair = _text_and_pair(item, request.is_split_into_words)
            second = None if pair is None else self._ids(pair, request, kwargs)
            row = self._row(self._ids(text, request, kwargs), second, request)
            if request.columns.length:
                row["length"] = len(row["input_ids"])
            rows.append(row)
        names = rows[0] if rows else self.model_input_names[:1]
        columns = {name: [row[name] for row in rows] for name in names}
        return BatchEncoding(self._padded(columns, request), tensor_type=request.columns.tensors)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a single text, or a pair, gets."""
        return len(self.build_inputs_with_special_tokens([], [] if pair else None))

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> Ids:
        """1 at special tokens, 0 elsewhere; this base adds none to sequences that have none yet."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        return [0] * (len(token_ids_0) + len(token_ids_1 or ()))

    # Ids → text.

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""
        return " ".join(tokens)

    def _decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        spaces_between_special_tokens: bool = True,
        **kwargs: Any,
    ) -> str:
        """Runs of ordinary tokens become text; added tokens stand between them, by themselves."""
        alone = self._standing_alone()
        pieces: list[str] = []
        run: list[str] = []
        for token in self.convert_ids_to_tokens(token_ids, skip_special_tokens=skip_special_tokens):
            if token not in alone:
                run.append(token)
                continue
            if run and (text := self.convert_tokens_to_string(run)):
                pieces.append(text)
            run = []
            pieces.append(token)
        if run:
            pieces.append(self.convert_tokens_to_string(run))
        return self._cleaned((" " if spaces_between_special_tokens else "").join(pieces), clean_up_tokenization_spaces)

    def _standing_alone(self) -> set[str]:
        """The tokens with a space around them: added ones, but of the special ones only those without a role."""
        beyond = {t for t in self.additional_special_tokens if self.convert_tokens_to_ids(t) >= self.vocab_size}
        return (self._added_tokens.ids.keys() - set(self.all_special_tokens)) | beyond


def _text_and_pair(item: Any, is_split_into_words: bool) -> tuple[Any, Any]:
    """A batch item as (text, None) or (text, text_pair)."""
    if not isinstance(item, list | tuple):
        return item, None
    if is_split_into_words and not (item and isinstance(item[0], list | tuple)):
        return item, None
    if item and isinstance(item[0], int):
        return item, None
    if len(item) != 2:
        raise ValueError(
            f"A list inside a batch is a pair (text, text_pair), and one has {len(item)} items. "
            "For texts that are split into words, pass is_split_into_words=True."
        )
    return item[0], item[1]
