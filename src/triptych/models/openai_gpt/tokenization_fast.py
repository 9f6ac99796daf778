"""GPT's tokenizer on the engine of the `tokenizers` library; ids as `tokenization.py` gives with "basic"."""

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from triptych.errors import InvalidFileError
from triptych.files import staged_folder
from triptych.models.openai_gpt.tokenization import END_OF_WORD, OpenAIGPTTokenizer
from triptych.tokenization.fast import PreTrainedTokenizerFast
from triptych.tokenization.options import logger
from triptych.tokenization.special_tokens import str_of
from triptych.tokenization.vocabulary import read_merges, read_vocabulary


class OpenAIGPTTokenizerFast(PreTrainedTokenizerFast):
    """Text ↔ ids with tokenizer.json, or with vocab.json and merges.txt.

    Splits text as BERT does: `pre_tokenizer` is always "basic". Unlike the slow tokenizer it keeps the capitals of
    added tokens, and unassigned characters, which become `unk_token`.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (may be set)
    slow_tokenizer_class = OpenAIGPTTokenizer

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        unk_token: str | AddedToken | None = "<unk>",
        **kwargs: Any,
    ) -> None:
        """Build the engine from tokenizer.json if there is one, else from the other two files.

        Raises: CheckpointError naming the file that is missing or damaged; ValueError if files were not given.
        """
        if kwargs.get("pre_tokenizer", "basic") != "basic":
            logger.warning(
                "These files were made with pre_tokenizer=%r, and the fast tokenizer splits text in the basic way, so "
                "some ids differ. Use OpenAIGPTTokenizer (or AutoTokenizer with use_fast=False) for the same ids.",
                kwargs["pre_tokenizer"],
            )
        self._unknown = None if unk_token is None else str_of(unk_token)
        super().__init__(
            vocab_file=vocab_file,
            merges_file=merges_file,
            tokenizer_file=tokenizer_file,
            unk_token=unk_token,
            **kwargs | {"pre_tokenizer": self.pre_tokenizer},
        )

    @property
    def pre_tokenizer(self) -> str:
        """How text is split into words: "basic"."""
        return "basic"

    @property
    def do_lower_case(self) -> bool:
        """True: the vocabulary has no capital letters."""
        return True

    def _make_backend(self, vocabulary: dict[str, Any]) -> Tokenizer:
        vocab_file, merges_file = vocabulary["vocab_file"], vocabulary["merges_file"]
        if vocab_file is None or merges_file is None:
            raise ValueError(
                "OpenAIGPTTokenizerFast needs tokenizer_file, or vocab_file and merges_file. "
                "Use OpenAIGPTTokenizerFast.from_pretrained to load a folder or a hub name."
            )
        return word_backend(vocab_file, merges_file, self._unknown)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; returns their paths."""
        with staged_folder(save_directory) as stage:
            names = [Path(path).name for path in self._tokenizer.model.save(str(stage), filename_prefix)]
        return tuple(str(Path(save_directory, name)) for name in names)


def word_backend(
    vocab_file: str | os.PathLike[str], merges_file: str | os.PathLike[str], unk_token: str | None = "<unk>"
) -> Tokenizer:
    """The engine for a byte-pair encoding of lower-case words; without `unk_token`, unknown characters are left out.

    Raises: CheckpointError naming the file that is missing, damaged or of another vocabulary; ValueError if the
        vocabulary lacks `unk_token`.
    """
    vocabulary = read_vocabulary(vocab_file)
    if unk_token is not None and unk_token not in vocabulary:
        raise ValueError(
            f"unk_token must be in the vocabulary, and {os.fspath(vocab_file)} has no {unk_token!r}. "
            "Pass the vocabulary's own, or None."
        )
    merges = read_merges(merges_file, vocabulary)
    try:
        model = models.BPE(vocabulary, merges, unk_token=unk_token, end_of_word_suffix=END_OF_WORD, fuse_unk=False)
    except Exception as error:  # the library raises no narrower class
        raise InvalidFileError(f"{vocab_file} and {merges_file} make no vocabulary: {error}.") from error
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return backend
