"""The call that every tokenizer answers, on whatever engine it stands."""

import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from triptych.errors import TokenIdError
from triptych.tokenization import files, tensors
from triptych.tokenization.batch_encoding import BatchEncoding
from triptych.tokenization.options import VERY_LARGE_INTEGER, Request, TensorType
from triptych.tokenization.preparation import Ids, Preparation

SIDES = ("right", "left")

# What `clean_up_tokenization` removes the space from.
CLEAN_UPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class PreTrainedTokenizerBase(Preparation):
    """Text → ids with padding, truncation and pairs, ids → text, and the files of both.

    The slow (`PreTrainedTokenizer`) and the fast base (`PreTrainedTokenizerFast`) supply the engine. Attributes:
    `padding_side` and `truncation_side` ("right" or "left"), `model_max_length` (tokens), `model_input_names`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {}
    # Of these, what is loaded beside tokenizer.json, since saving copies it.
    vocab_files_kept: ClassVar[tuple[str, ...]] = ()
    slow_tokenizer_class: type["PreTrainedTokenizerBase"] | None = None

    def __init__(self, **kwargs: Any) -> None:
        """Take the options that every tokenizer has, and keep all of `kwargs` for saving.

        Raises: ValueError if a side is neither "right" nor "left".
        """
        self.init_kwargs: dict[str, Any] = dict(kwargs)
        self.name_or_path: str = kwargs.get("name_or_path", "")
        self.model_max_length: int = kwargs.get("model_max_length", kwargs.get("max_len")) or VERY_LARGE_INTEGER
        for name in ("padding_side", "truncation_side"):
            side = kwargs.get(name, getattr(self, name))
            if side not in SIDES:
                raise ValueError(f"{name} must be 'right' or 'left', not {side!r}.")
            setattr(self, name, side)
        self.model_input_names = kwargs.get("model_input_names", self.model_input_names)
        self.clean_up_tokenization_spaces: bool = kwargs.get("clean_up_tokenization_spaces", True)
        self.split_special_tokens: bool = kwargs.get("split_special_tokens", False)
        self._told: set[str] = set()
        super().__init__(verbose=kwargs.get("verbose", True), **{k: v for k, v in kwargs.items() if k != "verbose"})

    # The engine: what the slow and the fast base supply.

    @property
    def is_fast(self) -> bool:
        """Whether the engine is the `tokenizers` library."""
        raise NotImplementedError

    @property
    def vocab_size(self) -> int:
        """The number of tokens before any were added."""
        raise NotImplementedError

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id → AddedToken, by id."""
        raise NotImplementedError

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Text of an added token → id, by id."""
        return {token.content: token_id for token_id, token in self.added_tokens_decoder.items()}

    def get_added_vocab(self) -> dict[str, int]:
        """The same as `added_tokens_encoder`."""
        return self.added_tokens_encoder

    @abstractmethod
    def get_vocab(self) -> dict[str, int]:
        """Token → id, added tokens included."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of tokens, added ones included."""

    @abstractmethod
    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""

    @abstractmethod
    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Split a text into tokens."""

    @abstractmethod
    def _encode_one(self, text: Any, text_pair: Any, request: Request, **kwargs: Any) -> BatchEncoding: ...

    @abstractmethod
    def _encode_many(self, items: Sequence[Any], request: Request, **kwargs: Any) -> BatchEncoding:
        """items: texts, or (text, text_pair) tuples."""

    @abstractmethod
    def _decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str: ...

    @abstractmethod
    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the vocabulary's own files; returns their paths."""

    # Text → ids.

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode a text, a pair, or a batch of either.

        `text` is a str or a list of them; with `is_split_into_words` a list of words or a list of such lists.
        `text_target` is encoded in the same way and returned as `labels`.

        Returns: BatchEncoding with `input_ids`, `attention_mask` (1 at tokens, 0 at padding) and what else was asked
            for: lists, or tensors (B, T) of `return_tensors`. Where texts are cut, `return_overflowing_tokens` gives
            the rest: as further rows from a fast tokenizer, as `overflowing_tokens` from a slow one.
        Raises: ValueError if texts are of no such form, if an option is none of its choices, if padding is asked for
            without a pad token, or if tensors are asked for and rows differ in length.
        """
        request = self._request(
            add_special_tokens=add_special_tokens,
            lengths=self._lengths(padding, truncation, max_length, stride, pad_to_multiple_of, verbose, kwargs),
            is_split_into_words=is_split_into_words,
            return_tensors=return_tensors,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            verbose=verbose,
        )
        if text is None and text_target is None:
            raise ValueError("A call needs text or text_target, and both are None.")
        if text_target is None:
            return self._encode(text, text_pair, request, kwargs)
        target = self._encode(text_target, text_pair_target, request, kwargs)
        if text is None:
            return target
        encoding = self._encode(text, text_pair, request, kwargs)
        encoding["labels"] = target["input_ids"]
        return encoding

    def encode(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        return_tensors: str | TensorType | None = None,
        **kwargs: Any,
    ) -> Any:
        """The `input_ids` of a text or a pair: a list of ints, or a tensor (1, T)."""
        return self.encode_plus(
            text,
            text_pair,
            add_special_tokens=add_special_tokens,
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            stride=stride,
            return_tensors=return_tensors,
            **kwargs,
        )["input_ids"]

    def encode_plus(
        self,
        text: Any,
        text_pair: Any = None,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode one text or pair, also given as tokens or ids where the tokenizer is a slow one."""
        request = self._request(
            add_special_tokens=add_special_tokens,
            lengths=self._lengths(padding, truncation, max_length, stride, pad_to_multiple_of, verbose, kwargs),
            is_split_into_words=is_split_into_words,
            return_tensors=return_tensors,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            verbose=verbose,
        )
        return self._encode_one(text, text_pair, request, **kwargs)

    def batch_encode_plus(
        self,
        batch_text_or_text_pairs: Any,
        add_special_tokens: bool = True,
        padding: Any = False,
        truncation: Any = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        verbose: bool = True,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode a list of texts or of (text, text_pair) tuples."""
        request = self._request(
            add_special_tokens=add_special_tokens,
            lengths=self._lengths(padding, truncation, max_length, stride, pad_to_multiple_of, verbose, kwargs),
            is_split_into_words=is_split_into_words,
            return_tensors=return_tensors,
            return_token_type_ids=return_token_type_ids,
            return_attention_mask=return_attention_mask,
            return_overflowing_tokens=return_overflowing_tokens,
            return_special_tokens_mask=return_special_tokens_mask,
            return_offsets_mapping=return_offsets_mapping,
            return_length=return_length,
            verbose=verbose,
        )
        if not isinstance(batch_text_or_text_pairs, list | tuple):
            raise TypeError(f"A batch must be a list or tuple, not {type(batch_text_or_text_pairs).__name__}.")
        return self._encode_many(batch_text_or_text_pairs, request, **kwargs)

    def _encode(self, text: Any, text_pair: Any, request: Request, kwargs: dict[str, Any]) -> BatchEncoding:
        for name, value in (("text", text), ("text_pair", text_pair)):
            if value is not None or name == "text":
                _check_form(name, value)
        if not _is_batch(text, request.is_split_into_words):
            return self._encode_one(text, text_pair, request, **kwargs)
        if text_pair is None:
            return self._encode_many(text, request, **kwargs)
        if isinstance(text_pair, str):
            raise TypeError("With a batch of texts, text_pair must be a list of as many texts, not a str.")
        if len(text) != len(text_pair):
            raise ValueError(f"A batch needs as many pairs as texts; text has {len(text)}, text_pair {len(text_pair)}.")
        return self._encode_many(list(zip(text, text_pair, strict=True)), request, **kwargs)

    # Ids → text.

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """The text of a sequence of ids (a list, array or tensor (T,), or one id).

        `clean_up_tokenization_spaces` removes the space before punctuation; None takes the tokenizer's setting.

        Raises: TokenIdError (IndexError, ValueError) naming an id that the vocabulary does not have.
        """
        ids = tensors.to_lists(token_ids)
        if isinstance(ids, int):
            ids = [ids]
        self._check_ids(ids)
        return self._decode(
            ids,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            **kwargs,
        )

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """The text of each sequence of ids (a list of sequences, or an array or tensor (B, T))."""
        return [
            self.decode(
                sequence,
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=clean_up_tokenization_spaces,
                **kwargs,
            )
            for sequence in tensors.to_lists(sequences)
        ]

    @abstractmethod
    def _id_limit(self) -> int:
        """One more than the largest id."""

    def _check_ids(self, ids: Any) -> None:
        if not isinstance(ids, list):
            raise TypeError(f"Ids to decode must be ints in a list, an array or a tensor, not {type(ids).__name__}.")
        if not ids:
            return
        limit = self._id_limit()
        try:
            if min(ids) >= 0 and max(ids) < limit:
                return
            wrong = next(token_id for token_id in ids if not 0 <= token_id < limit)
        except TypeError as error:
            raise TypeError("Ids to decode must be one sequence of ints. Use batch_decode for several.") from error
        raise TokenIdError(
            f"The vocabulary has the ids 0 to {limit - 1}, and {wrong} is not one of them. "
            + (
                "Replace the ignored labels by tokenizer.pad_token_id before decoding."
                if wrong < 0
                else "Decode with the tokenizer that the ids came from."
            )
        )

    @staticmethod
    def clean_up_tokenization(out_string: str) -> str:
        """Remove the space before English punctuation and contractions."""
        for spaced, joined in CLEAN_UPS:
            out_string = out_string.replace(spaced, joined)
        return out_string

    def _cleaned(self, text: str, clean_up_tokenization_spaces: bool | None) -> str:
        clean_up = clean_up_tokenization_spaces
        if self.clean_up_tokenization_spaces if clean_up is None else clean_up:
            return self.clean_up_tokenization(text)
        return text

    # Files.

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *init_inputs: Any,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Self:
        """Load from a folder, a hub name, or (fast tokenizers) a tokenizer.json; `kwargs` override what is stored.

        Raises: CheckpointError (OSError) naming a file that is missing or damaged.
        """
        kwargs |= {"cache_dir": cache_dir, "force_download": force_download, "local_files_only": local_files_only}
        kwargs |= {"token": token, "revision": None if revision == "main" else revision}
        return files.load(cls, pretrained_model_name_or_path, init_inputs, kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> tuple[str, ...]:
        """Write every file that `from_pretrained` reads; all of them or none.

        `legacy_format` chooses, for a fast tokenizer, the vocabulary files (True), tokenizer.json (False) or both.

        Returns: the paths of the files written.
        Raises: SaveError (OSError) if the folder cannot be written.
        """
        if push_to_hub:
            raise ValueError("push_to_hub is not supported. Save first, then use huggingface_hub.upload_folder.")
        return files.save(self, save_directory, legacy_format, filename_prefix)

    def __repr__(self) -> str:
        """The settings and the added tokens."""
        added = "".join(f"\t{token_id}: {token!r},\n" for token_id, token in self.added_tokens_decoder.items())
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, is_fast={self.is_fast}, "
            f"padding_side={self.padding_side!r}, truncation_side={self.truncation_side!r}, "
            f"special_tokens={self.special_tokens_map}, "
            f"clean_up_tokenization_spaces={self.clean_up_tokenization_spaces}), "
            f" added_tokens_decoder={{\n{added}}}"
        )


def _is_batch(text: Any, is_split_into_words: bool) -> bool:
    if is_split_into_words:
        return isinstance(text, list | tuple) and bool(text) and isinstance(text[0], list | tuple)
    return isinstance(text, list | tuple)


def _check_form(name: str, value: Any) -> None:
    """A str, a list of str, or a list of lists of str; only the first of each list is looked at."""
    first = value
    for _ in range(2):
        if isinstance(first, list | tuple):
            first = first[0] if first else ""
    if not isinstance(first, str):
        raise ValueError(
            f"{name} must be a str, a list of str (a batch, or the words of one text) or a list of lists of str, "
            f"and one is of type {type(first).__name__}."
        )
