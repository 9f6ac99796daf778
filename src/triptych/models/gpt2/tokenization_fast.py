"""GPT-2's tokenizer on the engine of the `tokenizers` library; ids as in `tokenization.py`."""

import os
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from triptych.errors import InvalidFileError
from triptych.files import staged_folder
from triptych.models.gpt2.tokenization import GPT2Tokenizer
from triptych.tokenization.batch_encoding import BatchEncoding
from triptych.tokenization.fast import PreTrainedTokenizerFast
from triptych.tokenization.options import Request
from triptych.tokenization.special_tokens import special, str_of
from triptych.tokenization.vocabulary import read_merges, read_vocabulary


class GPT2TokenizerFast(PreTrainedTokenizerFast):
    """Text ↔ ids with tokenizer.json, or with vocab.json and merges.txt.

    Texts that come as words need `add_prefix_space=True`, since a word inside a text starts with its space.
    """

    vocab_files_names: ClassVar[dict[str, str]] = {
        "vocab_file": "vocab.json",
        "merges_file": "merges.txt",
        "tokenizer_file": "tokenizer.json",
    }
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 (may be set)
    slow_tokenizer_class = GPT2Tokenizer

    def __init__(
        self,
        vocab_file: str | os.PathLike[str] | None = None,
        merges_file: str | os.PathLike[str] | None = None,
        tokenizer_file: str | os.PathLike[str] | None = None,
        unk_token: str | AddedToken = "<|endoftext|>",
        bos_token: str | AddedToken = "<|endoftext|>",
        eos_token: str | AddedToken = "<|endoftext|>",
        add_prefix_space: bool = False,
        **kwargs: Any,
    ) -> None:
        """Build the engine from tokenizer.json if there is one, else from the other two files.

        Raises: CheckpointError naming the file that is missing or damaged; ValueError if files were not given.
        """
        for name, default in (("errors", "replace"), ("pad_token", None), ("add_bos_token", False)):
            kwargs.setdefault(name, default)
        kwargs |= {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token}
        for name in ("unk_token", "bos_token", "eos_token", "pad_token"):
            if isinstance(kwargs[name], str):
                kwargs[name] = special(kwargs[name], normalized=True)
        super().__init__(
            vocab_file=vocab_file,
            merges_file=merges_file,
            tokenizer_file=tokenizer_file,
            add_prefix_space=add_prefix_space,
            **kwargs,
        )
        self.add_prefix_space = add_prefix_space
        if isinstance(self._tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel):
            self._tokenizer.pre_tokenizer.add_prefix_space = add_prefix_space
        if kwargs["add_bos_token"] and tokenizer_file is None:
            self._start_with(str_of(bos_token))

    def _make_backend(self, vocabulary: dict[str, Any]) -> Tokenizer:
        vocab_file, merges_file = vocabulary["vocab_file"], vocabulary["merges_file"]
        if vocab_file is None or merges_file is None:
            raise ValueError(
                "GPT2TokenizerFast needs tokenizer_file, or vocab_file and merges_file. "
                "Use GPT2TokenizerFast.from_pretrained to load a folder or a hub name."
            )
        return byte_level_backend(vocab_file, merges_file)

    def _start_with(self, bos: str) -> None:
        self._tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0",
            pair=f"{bos}:0 $A:0 $B:1",
            special_tokens=[(bos, self.convert_tokens_to_ids(bos))],
        )

    def _encode_one(self, text: Any, text_pair: Any, request: Request, **kwargs: Any) -> BatchEncoding:
        self._check_words(request)
        return super()._encode_one(text, text_pair, request, **kwargs)

    def _encode_many(self, items: Any, request: Request, **kwargs: Any) -> BatchEncoding:
        self._check_words(request)
        return super()._encode_many(items, request, **kwargs)

    def _check_words(self, request: Request) -> None:
        if request.is_split_into_words and not self.add_prefix_space:
            raise ValueError(
                "Texts that come as words need the space that each word starts with, and this tokenizer was made "
                "without it. Load it with add_prefix_space=True."
            )

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write vocab.json and merges.txt; returns their paths."""
        with staged_folder(save_directory) as stage:
            names = [Path(path).name for path in self._tokenizer.model.save(str(stage), filename_prefix)]
        return tuple(str(Path(save_directory, name)) for name in names)


def byte_level_backend(vocab_file: str | os.PathLike[str], merges_file: str | os.PathLike[str]) -> Tokenizer:
    """The engine for a byte-level byte-pair encoding.

    Raises: CheckpointError naming the file that is missing, damaged or of another vocabulary.
    """
    vocabulary = read_vocabulary(vocab_file)
    merges = read_merges(merges_file, vocabulary)
    try:
        model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    except Exception as error:  # the library raises no narrower class
        raise InvalidFileError(f"{vocab_file} and {merges_file} make no vocabulary: {error}.") from error
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend
