"""The base of tokenizers whose engine is the `tokenizers` library."""

import copy
import json
import threading
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, ClassVar, Self

from tokenizers import AddedToken, Encoding, Tokenizer, models, pre_tokenizers, processors, trainers

from triptych.errors import InvalidFileError
from triptych.tokenization import engine
from triptych.tokenization.base import PreTrainedTokenizerBase
from triptych.tokenization.batch_encoding import BatchEncoding
from triptych.tokenization.options import Lengths, PaddingStrategy, Request, TruncationStrategy
from triptych.tokenization.preparation import Ids
from triptych.tokenization.special_tokens import LIST_NAME, NAMES, Token, from_json, special, str_of, to_json
from triptych.tokenization.tensors import to_lists


class _Lock:
    """Held while the engine has one call's padding and truncation set. A copy, also a pickled one, is a new lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["_Lock"], tuple[()]]:
        return (_Lock, ())


class PreTrainedTokenizerFast(PreTrainedTokenizerBase):
    """Texts go to the engine as whole batches, and lists of ids come back.

    Made from a `tokenizers.Tokenizer` (`tokenizer_object`) or its file (`tokenizer_file`).
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"tokenizer_file": "tokenizer.json"}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take the engine over, and put in the tokens that it lacks.

        Raises: ValueError if there is no engine to take.
        """
        tokenizer_object: Tokenizer | None = kwargs.pop("tokenizer_object", None)
        tokenizer_file = kwargs.pop("tokenizer_file", None)
        vocabulary = {name: kwargs.pop(name, None) for name in self.vocab_files_names if name != "tokenizer_file"}
        stored: dict[Any, AddedToken] = kwargs.pop("added_tokens_decoder", {})
        if isinstance(tokenizer_object, Tokenizer):
            self._tokenizer = copy.deepcopy(tokenizer_object)  # the caller's own object stays as it is
        elif tokenizer_file is not None:
            self._tokenizer = engine.read(tokenizer_file)
        else:
            self._tokenizer = self._make_backend(vocabulary)
        for name, value in engine.stored_settings(self._tokenizer).items():
            kwargs.setdefault(name, value)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary_end: tuple[int, int] | None = None
        self._names: tuple[int, dict[int, str]] | None = None
        self._engine_in_use = _Lock()
        super().__init__(**kwargs)
        # The engine gives ids in the order of arrival, so the stored tokens come first and by id.
        known = self.added_tokens_encoder
        new = [stored[key] for key in sorted(stored, key=int) if stored[key].content not in known]
        arrived = known.keys() | {token.content for token in new}
        new += [special(token) for token in self.all_special_tokens_extended if str_of(token) not in arrived]
        self._tokenizer.add_tokens(new)
        for token_id, token in stored.items():
            if self._tokenizer.token_to_id(token.content) != int(token_id):
                raise InvalidFileError(
                    f"The added token {token.content!r} has the id {token_id} in the files, but the engine, which "
                    f"counts on from the vocabulary, gives it {self._tokenizer.token_to_id(token.content)}. Load the "
                    "tokenizer with use_fast=False."
                )

    def _make_backend(self, vocabulary: dict[str, Any]) -> Tokenizer:
        """The engine from the vocabulary's own files: the paths (or None) by their names in `vocab_files_names`."""
        raise ValueError(
            f"{type(self).__name__} needs an engine. Pass tokenizer_file='…/tokenizer.json' or "
            "tokenizer_object=tokenizers.Tokenizer(…)."
        )

    # The vocabulary.

    @property
    def is_fast(self) -> bool:
        """True: the engine is the `tokenizers` library."""
        return True

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether the files of the slow tokenizer can be written."""
        return True

    @property
    def backend_tokenizer(self) -> Tokenizer:
        """The engine."""
        return self._tokenizer

    @property
    def decoder(self) -> Any:
        """The engine's decoder."""
        return self._tokenizer.decoder

    @property
    def vocab_size(self) -> int:
        """The number of tokens before any were added."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        return size

    def get_vocab(self) -> dict[str, int]:
        """Token → id, added tokens included."""
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        return vocabulary

    @property
    def vocab(self) -> dict[str, int]:
        """The same as `get_vocab()`."""
        return self.get_vocab()

    def __len__(self) -> int:
        """The number of tokens, added ones included."""
        size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return size

    def _id_limit(self) -> int:
        size = len(self)
        if self._vocabulary_end is None or self._vocabulary_end[0] != size:
            # Mostly the ids are 0 to size - 1, and asking for each is far quicker than a copy of a large vocabulary.
            name = self._tokenizer.id_to_token
            whole = name(size) is None and all(name(token_id) is not None for token_id in range(size))
            self._vocabulary_end = (size, size if whole else max(self.get_vocab().values(), default=-1) + 1)
        return self._vocabulary_end[1]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id → AddedToken, by id."""
        tokens: dict[int, AddedToken] = self._tokenizer.get_added_tokens_decoder()
        return dict(sorted(tokens.items()))

    def _add_tokens(self, new_tokens: Sequence[Token], special_tokens: bool = False) -> int:
        size = len(self)
        self._names = None
        if special_tokens:
            self._tokenizer.add_special_tokens(list(new_tokens))
        else:
            # A plain str says nothing about the fields, so a token that was added before keeps its own.
            known = self.added_tokens_encoder
            self._tokenizer.add_tokens([t for t in new_tokens if not isinstance(t, str) or t not in known])
        return len(self) - size

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or the ids of a list of them; unknown ones give `unk_token_id`."""
        if tokens is None:
            return None
        if isinstance(tokens, str):
            return self._id(tokens)
        return [self._id(token) for token in tokens]

    def _id(self, token: str) -> Any:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is not None:
            return token_id
        unknown = self._special_tokens.get("unk_token")
        return None if unknown is None else self._tokenizer.token_to_id(str_of(unknown))

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or the tokens of a sequence of them; None for an id that has none."""
        if isinstance(ids, int):
            return self._written([ids])[0]
        skipped = set(self.all_special_ids) if skip_special_tokens else frozenset()
        return self._written([int(token_id) for token_id in ids if int(token_id) not in skipped])

    # The engine names an added token as its normaliser writes it ("newword" for "NewWord", "▁tag" for "tag"); users
    # named it themselves.

    def _named_otherwise(self) -> dict[int, str]:
        """Id → text of the added tokens that the engine names otherwise; mostly there are none."""
        size = len(self)
        if self._names is None or self._names[0] != size:
            added, name = self.added_tokens_decoder, self._tokenizer.id_to_token
            self._names = (size, {i: token.content for i, token in added.items() if token.content != name(i)})
        return self._names[1]

    def _written(self, ids: Ids) -> list[str | None]:
        names, name = self._named_otherwise(), self._tokenizer.id_to_token
        return [names[token_id] if token_id in names else name(token_id) for token_id in ids]

    def _joined(self, ids: Ids, skip_special_tokens: bool) -> str:
        """What the engine's own decoding gives, but with the users' names of added tokens."""
        special_ids = {i for i, t in self.added_tokens_decoder.items() if t.special} if skip_special_tokens else ()
        tokens = [token for token in self._written([i for i in ids if i not in special_ids]) if token is not None]
        return self.convert_tokens_to_string(tokens) if self.decoder is not None else " ".join(tokens)

    # Text → ids.

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Split a text, or a pair, into tokens."""
        encoding = self.encode_plus(text, pair, add_special_tokens=add_special_tokens, **kwargs)
        return encoding.tokens()

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens a single text, or a pair, gets."""
        count: int = self._tokenizer.num_special_tokens_to_add(pair)
        return count

    def _encode_one(self, text: Any, text_pair: Any, request: Request, **kwargs: Any) -> BatchEncoding:
        _no_further_options(type(self).__name__, kwargs)
        if isinstance(text, list | tuple) and not request.is_split_into_words:
            raise ValueError(
                f"{type(self).__name__} encodes a str, not a list. For words, pass is_split_into_words=True; "
                "for tokens, use convert_tokens_to_ids; for ids, prepare_for_model."
            )
        item = text if text_pair is None else (text, text_pair)
        with self._engine_in_use:
            self._set_lengths(request.lengths)
            try:
                encoding = self._tokenizer.encode(
                    text, text_pair, request.is_split_into_words, request.add_special_tokens
                )
            except BaseException as error:  # the engine's panics are no Exception
                self._explain(error, [item], request)
                raise
        result = self._columns([encoding], request)
        if request.columns.tensors is not None or request.columns.overflowing_tokens:
            return result
        row = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in result.data.items()}
        return BatchEncoding(row, result.encodings)

    def _encode_many(self, items: Sequence[Any], request: Request, **kwargs: Any) -> BatchEncoding:
        _no_further_options(type(self).__name__, kwargs)
        with self._engine_in_use:
            self._set_lengths(request.lengths)
            try:
                encodings = self._tokenizer.encode_batch(
                    list(items), request.is_split_into_words, request.add_special_tokens
                )
            except BaseException as error:  # the engine's panics are no Exception
                self._explain(error, items, request)
                raise
        return self._columns(encodings, request)

    def _columns(self, encodings: list[Encoding], request: Request) -> BatchEncoding:
        """The columns asked for; rows cut off a text follow it where they are wanted."""
        columns, data = request.columns, dict[str, Any]()
        samples = range(len(encodings))
        if columns.overflowing_tokens:
            groups = [[encoding, *encoding.overflowing] for encoding in encodings]
            samples = [sample for sample, group in enumerate(groups) for _ in group]  # type: ignore[assignment]
            encodings = list(chain.from_iterable(groups))
        data["input_ids"] = [encoding.ids for encoding in encodings]
        if columns.token_type_ids:
            data["token_type_ids"] = [encoding.type_ids for encoding in encodings]
        if columns.attention_mask:
            # Without padding there is nothing to ask the engine for.
            padded = request.lengths.pads
            data["attention_mask"] = (
                [encoding.attention_mask for encoding in encodings]
                if padded
                else [[1] * len(ids) for ids in data["input_ids"]]
            )
        if columns.special_tokens_mask:
            data["special_tokens_mask"] = [encoding.special_tokens_mask for encoding in encodings]
        if columns.offset_mapping:
            data["offset_mapping"] = [encoding.offsets for encoding in encodings]
        if columns.length:
            data["length"] = [len(ids) for ids in data["input_ids"]]
        if columns.overflowing_tokens:
            data["overflow_to_sample_mapping"] = samples
        self._warn_if_too_long(max(map(len, data["input_ids"]), default=0), request)
        return BatchEncoding(data, encodings, tensor_type=columns.tensors)

    def _set_lengths(self, lengths: Lengths) -> None:
        """Bring the engine's truncation and padding to what the call asks for, if they differ."""
        truncation = padding = None
        if lengths.limit is not None:
            truncation = {
                "max_length": lengths.limit,
                "stride": lengths.stride,
                "strategy": str(lengths.truncation),
                "direction": self.truncation_side,
            }
        if lengths.pads:
            padding = {
                "length": lengths.max_length if lengths.padding is PaddingStrategy.MAX_LENGTH else None,
                "pad_to_multiple_of": lengths.pad_to_multiple_of,
                "pad_id": self.pad_token_id,
                "pad_token": self.pad_token,
                "pad_type_id": self.pad_token_type_id,
                "direction": self.padding_side,
            }
        if self._tokenizer.truncation != truncation:
            if truncation is None:
                self._tokenizer.no_truncation()
            else:
                self._enable_truncation(truncation)
        if self._tokenizer.padding != padding:
            if padding is None:
                self._tokenizer.no_padding()
            else:
                self._tokenizer.enable_padding(**padding)

    def _enable_truncation(self, truncation: dict[str, Any]) -> None:
        room = truncation["max_length"] - self.num_special_tokens_to_add()
        if truncation["stride"] and truncation["stride"] >= room:
            raise ValueError(_stride_message(truncation["stride"], room))
        self._tokenizer.enable_truncation(**truncation)

    def _explain(self, error: BaseException, items: Sequence[Any], request: Request) -> None:
        """Raise what the engine's error means to the caller, if that is known."""
        lengths = request.lengths
        if type(error).__name__ == "PanicException" and lengths.limit is not None:
            raise ValueError(_stride_message(lengths.stride, lengths.limit)) from error
        if type(error) is Exception and lengths.limit is not None:
            raise ValueError(
                f"truncation={str(lengths.truncation)!r} cannot reach max_length={lengths.limit}: {error}. "
                f"Pass a larger max_length or truncation={str(TruncationStrategy.LONGEST_FIRST)!r}."
            ) from error
        if isinstance(error, TypeError | UnicodeEncodeError):
            for number, item in enumerate(items):
                for text in item if isinstance(item, list | tuple) else [item]:
                    if problem := _problem(text, request.is_split_into_words):
                        raise ValueError(f"Item {number} of the batch {problem}.") from error
            if any(isinstance(item, list | tuple) and len(item) != 2 for item in items):
                raise ValueError(
                    "A list inside a batch is a pair (text, text_pair). "
                    "For texts that are split into words, pass is_split_into_words=True."
                ) from error

    # Ids → text.

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text."""
        text: str = self._tokenizer.decoder.decode(tokens)
        return text

    def _decode(
        self,
        token_ids: Ids,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        if self._named_otherwise():
            text = self._joined(token_ids, skip_special_tokens)
        else:
            text = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return self._cleaned(text, clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """The text of each sequence of ids (a list of sequences, or an array or tensor (B, T))."""
        rows = [[row] if isinstance(row, int) else row for row in to_lists(sequences)]
        for row in rows:
            self._check_ids(row)
        if self._named_otherwise():
            texts = [self._joined(row, skip_special_tokens) for row in rows]
        else:
            texts = self._tokenizer.decode_batch(rows, skip_special_tokens=skip_special_tokens)
        return [self._cleaned(text, clean_up_tokenization_spaces) for text in texts]

    # Files and training.

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """The vocabulary is in tokenizer.json; there are no further files."""
        return ()

    def to_json(self) -> str:
        """The text of tokenizer.json: the engine without the lengths of the last call.

        Merges are written as "a b", the form that every version of `tokenizers` reads, unless a piece has a space.
        """
        if not isinstance(self._tokenizer.model, models.BPE):
            with self._engine_in_use:
                return engine.text_of(self._tokenizer)
        state: dict[str, Any] = json.loads(self._tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        merges = state["model"].get("merges") or []
        if merges and not any(" " in piece for pair in merges if isinstance(pair, list) for piece in pair):
            state["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
        # A line for each part: indenting the vocabulary would take seven times as long.
        lines = (f"  {json.dumps(name)}: {json.dumps(part, ensure_ascii=False)}" for name, part in state.items())
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def train_new_from_iterator(
        self,
        text_iterator: Iterable[str] | Iterable[list[str]],
        vocab_size: int,
        length: int | None = None,
        new_special_tokens: Sequence[Token] | None = None,
        special_tokens_map: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A tokenizer of the same kind and settings with a vocabulary learned from texts.

        text_iterator: texts, or batches of them; `length` of them for the progress bar. `special_tokens_map` renames
            special tokens; `kwargs` go to the trainer (`min_frequency`, `show_progress`, …).
        Raises: ValueError if the model is not a BPE.
        """
        if not isinstance(self._tokenizer.model, models.BPE):
            raise ValueError(f"Only BPE models can be trained here, not {type(self._tokenizer.model).__name__}.")
        renamed = special_tokens_map or {}
        state = json.loads(self._tokenizer.to_str())
        added = [
            from_json(token, content=renamed.get(token["content"], token["content"]))
            for token in state["added_tokens"]
            if token["special"]
        ]
        added += [special(token) for token in new_special_tokens or ()]
        state |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
        state["model"] |= {"vocab": {}, "merges": []}
        backend = Tokenizer.from_str(json.dumps(state))
        if isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            kwargs.setdefault("initial_alphabet", pre_tokenizers.ByteLevel.alphabet())
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if state["model"].get(name):
                kwargs.setdefault(name, state["model"][name])
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=added, **kwargs)
        backend.train_from_iterator(text_iterator, length=length, trainer=trainer)
        backend.post_processor = self._retargeted_post_processor(backend, renamed)
        return type(self)(tokenizer_object=backend, **self._renamed_settings(renamed, new_special_tokens or ()))

    def _renamed_settings(self, renamed: dict[str, str], new_special_tokens: Sequence[Token]) -> dict[str, Any]:
        """The constructor's options, with the roles that special tokens have now and under their new names."""
        settings = {name: value for name, value in self.init_kwargs.items() if name not in (*NAMES, "name_or_path")}
        for name, value in self.special_tokens_map_extended.items():
            tokens = value if isinstance(value, list) else [value]
            new = [_rename(token, renamed) for token in tokens]
            settings[name] = new if isinstance(value, list) else new[0]
        if new_special_tokens:
            settings[LIST_NAME] = [*settings.get(LIST_NAME, ()), *map(special, new_special_tokens)]
        return settings

    def _retargeted_post_processor(self, backend: Tokenizer, renamed: dict[str, str]) -> Any:
        """The post-processor, with the special tokens of a template under their new names and ids."""
        processor = self._tokenizer.post_processor
        if not isinstance(processor, processors.TemplateProcessing):
            return processor
        state = json.loads(self._tokenizer.to_str())["post_processor"]
        for piece in (*state["single"], *state["pair"]):
            if "SpecialToken" in piece:
                piece["SpecialToken"]["id"] = renamed.get(piece["SpecialToken"]["id"], piece["SpecialToken"]["id"])
        names = [renamed.get(name, name) for name in state["special_tokens"]]
        state["special_tokens"] = {
            name: {"id": name, "ids": [backend.token_to_id(name)], "tokens": [name]} for name in names
        }
        whole = json.loads(backend.to_str()) | {"post_processor": state}
        return Tokenizer.from_str(json.dumps(whole)).post_processor


def _rename(token: Token, renamed: dict[str, str]) -> AddedToken:
    token = special(token)
    return from_json(to_json(token), content=renamed.get(token.content, token.content))


def _no_further_options(name: str, kwargs: dict[str, Any]) -> None:
    if kwargs:
        raise TypeError(f"{name} does not know the options {sorted(kwargs)}. Check their spelling.")


def _stride_message(stride: int, room: int) -> str:
    return (
        f"stride must be smaller than the number of tokens that a cut text keeps, and stride={stride} is not smaller "
        f"than what is left of {room}. Pass a smaller stride or a larger max_length."
    )


def _problem(text: Any, is_split_into_words: bool) -> str:
    """What is wrong with a text of a batch; empty if nothing is."""
    words = text if isinstance(text, list | tuple) and is_split_into_words else [text]
    for word in words:
        if not isinstance(word, str):
            return f"must be a str, or a pair of them, and is of type {type(word).__name__}"
        if any("\ud800" <= char <= "\udfff" for char in word):
            return "must be valid Unicode, and holds a lone surrogate; decode the input again with errors='replace'"
    return ""
