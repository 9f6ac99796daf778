"""Llama's tokenizer on the engine of the `tokenizers` library."""

import os
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from triptych.errors import InvalidFileError
from triptych.models.llama.sentencepiece_model import SentencePieceModel, read_bytes, read_model
from triptych.models.llama.tokenization import SPACE, LlamaTokenizer, missing_edge, write_model
from triptych.tokenization.fast import PreTrainedTokenizerFast
from triptych.tokenization.options import logger
from triptych.tokenization.preparation import Ids
from triptych.tokenization.special_tokens import special
from triptych.tokenization.vocabulary import Merges

# Pieces that are special tokens of every tokenizer made from a byte-pair encoding that has them, whatever their role.
SPECIAL_PIECES = ("<unk>", "<s>", "</s>")


class LlamaTokenizerFast(PreTrainedTokenizerFast):
    """Text ↔ ids with tokenizer.json, or with tokenizer.model, which is converted (without sentencepiece).

    Every text begins with a space, and with `bos_token` (`add_bos_token`); batches are padded on the left. To a
    Unigram model, text that spells a byte ("<0x0A>") is that byte's token, while the slow tokenizer takes it for text.
    `legacy` is kept for the slow tokenizer and changes nothing here.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "tokenizer.model",
        "tokenizer_file": "tokenizer.json",
    }
    vocab_files_kept: ClassVar[tuple[str, ...]] = ("vocab_file",)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (may be set)
    slow_tokenizer_class = LlamaTokenizer
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        clean_up_tokenization_spaces: bool = False,
        unk_token: str | AddedToken | None = "<unk>",
        bos_token: str | AddedToken | None = "<s>",
        eos_token: str | AddedToken | None = "</s>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        use_default_system_prompt: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build the engine from tokenizer.json if there is one, else from tokenizer.model.

        Raises: CheckpointError naming the file that is missing or damaged; ValueError if no file was given, or if
            sequences should begin or end with a token that is None.
        """
        kwargs |= {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token}
        if tokenizer_file is None and "tokenizer_object" not in kwargs:
            # What the slow tokenizer of the same model saves.
            kwargs = {"pad_token": None, "sp_model_kwargs": {}, "spaces_between_special_tokens": False} | kwargs
            if kwargs.get("legacy") is None:
                kwargs["legacy"] = True
            roles = ("bos_token", "eos_token", "unk_token", "pad_token")
            kwargs |= {name: special(kwargs[name]) for name in roles if isinstance(kwargs[name], str)}
        super().__init__(
            vocab_file=vocab_file,
            tokenizer_file=tokenizer_file,
            clean_up_tokenization_spaces=clean_up_tokenization_spaces,
            add_bos_token=add_bos_token,
            add_eos_token=add_eos_token,
            use_default_system_prompt=use_default_system_prompt,
            **kwargs,
        )
        self.vocab_file = vocab_file
        self.use_default_system_prompt = use_default_system_prompt
        self._add_bos_token = add_bos_token
        self._add_eos_token = add_eos_token
        self.update_post_processor()

    def _make_backend(self, vocabulary: dict[str, Any]) -> Tokenizer:
        if vocabulary["vocab_file"] is None:
            raise ValueError(
                "LlamaTokenizerFast needs tokenizer_file or vocab_file. "
                "Use LlamaTokenizerFast.from_pretrained to load a folder or a hub name."
            )
        return sentencepiece_backend(vocabulary["vocab_file"])

    # Rows as the model expects them.

    @property
    def add_bos_token(self) -> bool:
        """Whether sequences begin with `bos_token`."""
        return self._add_bos_token

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        self._add_bos_token = value
        self.update_post_processor()

    @property
    def add_eos_token(self) -> bool:
        """Whether sequences end with `eos_token`."""
        return self._add_eos_token

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        self._add_eos_token = value
        self.update_post_processor()

    def update_post_processor(self) -> None:
        """Tell the engine which tokens sequences begin and end with; call it after setting `bos_token` or `eos_token`.

        Raises: ValueError if the token is None.
        """
        around = [self._edge("bos_token", self.add_bos_token), self._edge("eos_token", self.add_eos_token)]

        def template(name: str, number: int) -> list[str]:
            start, end = ([f"{token}:{number}"] if token is not None else [] for token in around)
            return [*start, f"${name}:{number}", *end]

        single = template("A", 0)
        used = dict.fromkeys(token for token in around if token is not None)
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=single + template("B", 1),
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in used],
        )

    def _edge(self, name: str, wanted: bool) -> str | None:
        token = self._special_tokens.get(name)
        if wanted and token is None:
            raise ValueError(missing_edge(name))
        return str(token) if wanted else None

    def build_inputs_with_special_tokens(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """Each sequence behind `bos_token` and before `eos_token`, as `add_bos_token` and `add_eos_token` say."""
        start = [self.bos_token_id] if self.add_bos_token else []
        end = [self.eos_token_id] if self.add_eos_token else []
        second = [] if token_ids_1 is None else start + token_ids_1 + end
        return start + token_ids_0 + end + second

    def create_token_type_ids_from_sequences(self, token_ids_0: Ids, token_ids_1: Ids | None = None) -> Ids:
        """0 for each token of the first sequence, 1 for each of the second; special tokens are not counted."""
        return [0] * len(token_ids_0) + [1] * len(token_ids_1 or ())

    # Files.

    @property
    def can_save_slow_tokenizer(self) -> bool:
        """Whether tokenizer.model is there to be copied."""
        return self.vocab_file is not None and Path(self.vocab_file).is_file()

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Copy tokenizer.model; returns the path of the copy.

        Raises: ValueError if the tokenizer came without one, as tokenizer.json does not hold all of it.
        """
        if not self.can_save_slow_tokenizer:
            raise ValueError(
                "tokenizer.model is copied when it is saved, and this tokenizer has none to copy "
                f"(vocab_file={self.vocab_file!r}). Save it with save_pretrained, which writes tokenizer.json."
            )
        model = read_bytes(self.vocab_file)  # type: ignore[arg-type]
        return write_model(save_directory, self.vocab_files_names["vocab_file"], filename_prefix, model)


def sentencepiece_backend(vocab_file: str | os.PathLike[str]) -> Tokenizer:
    """The engine for a SentencePiece model, as tokenizers of this family are published.

    As there, a text always begins with a space, white space is kept and characters are not replaced; a warning is
    logged where the model says otherwise.

    Raises: CheckpointError naming the file that is missing or damaged.
    """
    model = read_model(vocab_file)
    if ignored := _ignored(model):
        logger.warning(
            "%s %s, which fast tokenizers of this family do not, so some ids differ. Use LlamaTokenizer (or "
            "AutoTokenizer with use_fast=False) for the ids of the model.",
            os.fspath(vocab_file),
            " and ".join(ignored),
        )
    try:
        backend = Tokenizer(_engine_model(model))
    except Exception as error:  # the library raises no narrower class
        raise InvalidFileError(f"{os.fspath(vocab_file)} makes no vocabulary: {error}.") from error
    if model.kind == "bpe":
        known = (piece for piece in SPECIAL_PIECES if backend.token_to_id(piece) is not None)
        backend.add_special_tokens(list(map(special, known)))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def _ignored(model: SentencePieceModel) -> list[str]:
    found = {
        "puts no space in front of a text": not model.add_dummy_prefix,
        "drops white space at the ends and in a row": model.remove_extra_whitespaces,
        "replaces characters by others": model.has_character_map,
    }
    return [what for what, is_so in found.items() if is_so]


def _engine_model(model: SentencePieceModel) -> models.Model:
    if model.kind == "unigram":
        return models.Unigram(list(zip(model.pieces, model.scores, strict=True)), model.unk_id, byte_fallback=True)
    ids = {piece: token_id for token_id, piece in enumerate(model.pieces)}
    unknown = model.pieces[model.unk_id]
    return models.BPE(ids, merges_of(model, ids), unk_token=unknown, fuse_unk=True, byte_fallback=True)


def merges_of(model: SentencePieceModel, ids: dict[str, int]) -> Merges:
    """The pairs whose joining makes the pieces of a byte-pair encoding, most likely result first.

    The model stores results only, so every split of a piece into two others is a pair; those of one piece are in the
    order of their ids.
    """
    by_score = sorted(range(len(model.pieces)), key=lambda token_id: -model.scores[token_id])
    return list(chain.from_iterable(_splits(model.pieces[token_id], ids) for token_id in by_score))


def _splits(piece: str, ids: dict[str, int]) -> Merges:
    pairs = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
    known = [(ids[left], ids[right], (left, right)) for left, right in pairs if left in ids and right in ids]
    return [pair for _, _, pair in sorted(known)]
