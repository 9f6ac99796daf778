"""Llama's tokenizer on the SentencePiece library, which Fuyu and Persimmon use.

A space is written "▁" and belongs to the word after it, and a text starts with one more. A character that no piece
holds becomes the bytes of its UTF-8, each a piece such as "<0x0A>", where the vocabulary has those. Kudo and
Richardson, 2018, arXiv:1808.06226.
"""

import inspect
import os
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken

from triptych import frameworks
from triptych.errors import InvalidFileError
from triptych.files import staged_folder
from triptych.models.llama.sentencepiece_model import read_bytes
from triptych.tokenization.options import logger
from triptych.tokenization.slow import PreTrainedTokenizer
from triptych.tokenization.special_tokens import special, str_of

Ids = list[int]
SPACE = "▁"

# Behind the bytes of a model, its field 3 (settings of the normaliser) with field 3 (add a space in front) off: of a
# field that comes twice, the last value counts.
NO_SPACE_IN_FRONT = b"\x1a\x02\x18\x00"

# What the library's processor takes that is chosen here.
NOT_OPTIONS = {"self", "model_file", "model_proto", "out_type", "return_type"}


class LlamaTokenizer(PreTrainedTokenizer):
    """Text ↔ ids with tokenizer.model. Needs the library sentencepiece.

    `sp_model_kwargs` go to it: `enable_sampling`, `nbest_size` and `alpha` draw the pieces of a text at random (Kudo,
    2018, arXiv:1804.10959). `legacy=True` puts a space before the text after a special token too, as checkpoints of
    before July 2023 saw it; `legacy=False` puts one before the whole text only. Text that spells a byte ("<0x0A>") is
    text like any other, while the fast tokenizer of a Unigram model takes it for the byte.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {"vocab_file": "tokenizer.model"}
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (may be set)

    def __init__(
        self,
        vocab_file: str | os.PathLike[str],
        unk_token: str | AddedToken | None = "<unk>",
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        pad_token: str | AddedToken | None = None,
        sp_model_kwargs: dict[str, Any] | None = None,
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        clean_up_tokenization_spaces: bool = False,
        use_default_system_prompt: bool = False,
        spaces_between_special_tokens: bool = False,
        legacy: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Read the model.

        Raises: CheckpointError naming the file that is missing or damaged; ImportError if sentencepiece is missing;
            TypeError naming an option that sentencepiece does not have.
        """
        if legacy is None:
            _tell_of_legacy()
            legacy = True
        self.legacy = legacy
        self.vocab_file = vocab_file
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.use_default_system_prompt = use_default_system_prompt
        self.sp_model_kwargs = dict(sp_model_kwargs or {})
        self._model_bytes = read_bytes(vocab_file)  # saved as they are, wherever the file is by then
        self._from_slow: bool = kwargs.pop("from_slow", False)
        self.sp_model = self.get_spm_processor(self._from_slow)
        self._tokens = self._read_pieces()
        self._token_ids = {piece: token_id for token_id, piece in enumerate(self._tokens)}
        self._unk_id: int = self.sp_model.unk_id()
        self._before_space = "" if unk_token is None else str_of(unk_token)
        self.unk_token_length = len(self.sp_model.encode(self._before_space))
        roles = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token, "pad_token": pad_token}
        super().__init__(
            **{name: special(token) if isinstance(token, str) else token for name, token in roles.items()},
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            sp_model_kwargs=self.sp_model_kwargs,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            use_default_system_prompt=use_default_system_prompt,
            spaces_between_special_tokens=spaces_between_special_tokens,
            legacy=legacy,
            **kwargs,
        )

    def get_spm_processor(self, from_slow: bool = False) -> Any:
        """A new `sentencepiece.SentencePieceProcessor`; it adds the space in front if `legacy` or `from_slow`."""
        sentencepiece = frameworks.load("sentencepiece")
        allowed = inspect.signature(sentencepiece.SentencePieceProcessor.__init__).parameters.keys() - NOT_OPTIONS
        if unknown := self.sp_model_kwargs.keys() - allowed:
            raise TypeError(
                f"sp_model_kwargs must be options of sentencepiece's processor, and {sorted(unknown)} are not. "
                f"They may be {', '.join(sorted(allowed))}."
            )
        model = self._model_bytes if self.legacy or from_slow else self._model_bytes + NO_SPACE_IN_FRONT
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model, **self.sp_model_kwargs)
        except RuntimeError as error:
            raise self._damaged(error) from error
        return processor

    def _read_pieces(self) -> list[str]:
        try:
            pieces: list[str] = self.sp_model.id_to_piece(list(range(self.sp_model.get_piece_size())))
        except UnicodeDecodeError as error:
            raise self._damaged(error) from error
        return pieces

    def _damaged(self, error: Exception) -> InvalidFileError:
        return InvalidFileError(
            f"{os.fspath(self.vocab_file)} is no SentencePiece model: {error}. "
            "Fetch the file again, or check that it is the right one."
        )

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the library's object, which would lose its options."""
        return self.__dict__ | {"sp_model": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the library's object anew."""
        self.__dict__ = state
        self.sp_model = self.get_spm_processor(self._from_slow)

    # The vocabulary.

    @property
    def vocab_size(self) -> int:
        """The number of tokens before any were added."""
        return len(self._tokens)

    def get_vocab(self) -> dict[str, int]:
        """Token → id, added tokens included."""
        return self._token_ids | self._added_tokens.ids

    def _convert_token_to_id(self, token: str) -> int:
        token_id = self._token_ids.get(token)
        return self._unk_id if token_id is None else token_id

    def _convert_id_to_token(self, index: int) -> str | None:
        return self._tokens[index] if 0 <= index < len(self._tokens) else None

    # Text → tokens.

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Split a text into tokens; options that the tokenizer does not know are logged.

        `pair` and `add_special_tokens` belong to fast tokenizers and have no effect here.
        """
        if self.legacy or not text:
            return super().tokenize(text, pair, add_special_tokens, **kwargs)
        tokens = super().tokenize(SPACE + text.replace(SPACE, " "), pair, add_special_tokens, **kwargs)
        # The space was for text: a special token has none in front.
        return tokens[1:] if tokens[:1] == [SPACE] and set(tokens[1:2]) & set(self.all_special_tokens) else tokens

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self.legacy or not text.startswith((SPACE, " ")):
            return self._pieces(text)
        # Some models drop white space in front of everything, so something stands before it.
        return self._pieces(self._before_space + text)[self.unk_token_length :]

    def _pieces(self, text: str) -> list[str]:
        try:
            pieces: list[str] = self.sp_model.encode(text, out_type=str)
        except RuntimeError as error:
            if not any("\ud800" <= char <= "\udfff" for char in text):
                raise
            raise ValueError(
                "Text must be valid Unicode, and this one holds a lone surrogate. Decode the input again, for example "
                "with errors='replace'."
            ) from error
        return pieces

    # Ids → text.

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens into text, without the space in front of it."""
        if tokens and tokens[0].startswith(SPACE):
            tokens = [tokens[0][1:], *tokens[1:]]
        special_tokens = set(self.all_special_tokens)
        text, run = "", list[str]()
        after_special = False
        for number, token in enumerate(tokens):
            if token not in special_tokens:
                run.append(token)
                after_special = False
                continue
            if self.legacy and number and not after_special:
                text += " "
            text += self.sp_model.decode(run) + token
            run, after_special = [], True
        return text + str(self.sp_model.decode(run))

    # Rows as the model expects them.

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Each sequence behind `bos_token` and before `eos_token`, as `add_bos_token` and `add_eos_token` say."""
        start, end = self._around()
        second = [] if token_ids_1 is None else start + token_ids_1 + end
        return start + token_ids_0 + end + second

    def get_special_tokens_mask(
        self, token_ids_0: Ids, token_ids_1: Ids | None = None, already_has_special_tokens: bool = False
    ) -> Ids:
        """1 at special tokens, 0 elsewhere."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        start, end = ([1] * len(ids) for ids in self._around())
        second = [] if token_ids_1 is None else start + [0] * len(token_ids_1) + end
        return start + [0] * len(token_ids_0) + end + second

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """0 for each token of the first sequence, 1 for each of the second, special tokens with the one they mark."""
        around = sum(map(len, self._around()))
        second = [] if token_ids_1 is None else [1] * (len(token_ids_1) + around)
        return [0] * (len(token_ids_0) + around) + second

    def _around(self) -> tuple[Ids, Ids]:
        """The ids before and after each sequence."""
        start = [self._edge("bos_token")] if self.add_bos_token else []
        return start, [self._edge("eos_token")] if self.add_eos_token else []

    def _edge(self, name: str) -> int:
        token = self._special_tokens.get(name)
        if token is None:
            raise ValueError(missing_edge(name))
        return int(self.convert_tokens_to_ids(str_of(token)))

    # Files.

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write tokenizer.model as it was read; returns its path."""
        return write_model(save_directory, self.vocab_files_names["vocab_file"], filename_prefix, self._model_bytes)


def missing_edge(name: str) -> str:
    """What to say when a sequence cannot get the token that it should begin or end with."""
    return f"add_{name}=True needs a {name}, and there is none. Set one, or pass add_{name}=False."


def write_model(directory: str | os.PathLike[str], name: str, prefix: str | None, model: bytes) -> tuple[str]:
    """Write the bytes of a SentencePiece model; returns the file's path."""
    name = f"{prefix}-{name}" if prefix else name
    with staged_folder(directory) as stage:
        (stage / name).write_bytes(model)
    return (str(Path(directory, name)),)


@cache
def _tell_of_legacy() -> None:
    """Log, once in a process, what `legacy` is taken to be."""
    logger.warning(
        "LlamaTokenizer was not told which form of its checkpoint's text to make, so legacy=True is taken: text after "
        "a special token gets a space in front, as before July 2023. Pass legacy=False for the later form, or "
        "legacy=True to keep it without this message (github.com/huggingface/transformers/pull/24565)."
    )
