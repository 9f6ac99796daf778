"""GPT as OpenAI published it → a folder that `from_pretrained` loads.

The release (openai/finetune-transformer-lm, folder model/) is one long row of float32 numbers in ten files, the shapes
to cut it by, and the vocabulary: params_0.npy … params_9.npy, params_shapes.json, encoder_bpe_40000.json and
vocab_40000.bpe.
"""

import json
import os
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from triptych.checkpoints import safetensors_file
from triptych.checkpoints.names import FORMATS, SAFETENSORS
from triptych.checkpoints.renaming import Row, check, rename, rows_of
from triptych.errors import CheckpointError, InvalidFileError, MissingFileError
from triptych.files import read_json, staged_folder, write_json
from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.models.openai_gpt.pretokenization import PRE_TOKENIZERS
from triptych.models.openai_gpt.tokenization_fast import OpenAIGPTTokenizerFast
from triptych.tokenization.files import CONFIG as TOKENIZER_CONFIG, FILES as TOKENIZER_FILES

SHAPES, ENCODER, MERGES = "params_shapes.json", "encoder_bpe_40000.json", "vocab_40000.bpe"
PARTS = tuple(f"params_{part}.npy" for part in range(10))
HEAD_WIDTH = 64  # of every head in the paper; the files do not say

# In the order of the release. P positions, V vocabulary, C width.
OPENAI_RELEASE = (
    Row("positions_embed.weight", "positions", "P C"),
    Row("tokens_embed.weight", "tokens", "V C"),
    Row("h.{n}.attn.c_attn.weight", "h{n}/attn/c_attn/w", "1 C 3C", "drop leading axis"),
    Row("h.{n}.attn.c_attn.bias", "h{n}/attn/c_attn/b", "3C"),
    Row("h.{n}.attn.c_proj.weight", "h{n}/attn/c_proj/w", "1 C C", "drop leading axis"),
    Row("h.{n}.attn.c_proj.bias", "h{n}/attn/c_proj/b", "C"),
    Row("h.{n}.ln_1.weight", "h{n}/ln_1/g", "C"),
    Row("h.{n}.ln_1.bias", "h{n}/ln_1/b", "C"),
    Row("h.{n}.mlp.c_fc.weight", "h{n}/mlp/c_fc/w", "1 C 4C", "drop leading axis"),
    Row("h.{n}.mlp.c_fc.bias", "h{n}/mlp/c_fc/b", "4C"),
    Row("h.{n}.mlp.c_proj.weight", "h{n}/mlp/c_proj/w", "1 4C C", "drop leading axis"),
    Row("h.{n}.mlp.c_proj.bias", "h{n}/mlp/c_proj/b", "C"),
    Row("h.{n}.ln_2.weight", "h{n}/ln_2/g", "C"),
    Row("h.{n}.ln_2.bias", "h{n}/ln_2/b", "C"),
)
PER_LAYER = sum("{n}" in row.original for row in OPENAI_RELEASE)
ONCE = len(OPENAI_RELEASE) - PER_LAYER


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    heads: int | None = None,
    pre_tokenizer: str = "spacy",
) -> OpenAIGPTConfig:
    """Write the release in the folder `source` as config.json, model.safetensors and tokenizer files in `target`.

    heads: attention heads; if None, one for each 64 of the width, as in the paper.
    pre_tokenizer: what the tokenizer's files ask for; "spacy" is what the released weights were trained with.

    Returns: the configuration written. `target` gets all files or, on any error, none.
    Raises: CheckpointError naming the file that is missing, damaged or of another model; ValueError for wrong options;
        SaveError if `target` cannot be written.
    """
    source, target = Path(source), Path(target)
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise ValueError(f"pre_tokenizer must be one of {', '.join(PRE_TOKENIZERS)}, not {pre_tokenizer!r}.")
    shapes = read_shapes(source / SHAPES)
    layers = (len(shapes) - ONCE) // PER_LAYER
    rows = rows_of(OPENAI_RELEASE, layers)
    named = dict(zip((row.original for row in rows), shapes, strict=True))
    sizes = _sizes(named, source / SHAPES)
    check(named, rows, sizes, str(source / SHAPES))
    config = OpenAIGPTConfig(
        vocab_size=sizes["V"],
        n_positions=sizes["P"],
        n_embd=sizes["C"],
        n_layer=layers,
        n_head=_heads(sizes["C"], heads),
        architectures=["OpenAIGPTLMHeadModel"],
        torch_dtype="float32",
    )
    tokenizer = _tokenizer(source, config)
    row = open_parts(source, sum(map(prod, shapes)))
    starts = accumulate(map(prod, shapes), initial=0)
    arrays = {name: Stretch(row, start, shape) for (name, shape), start in zip(named.items(), starts, strict=False)}
    with staged_folder(
        target, replaces=lambda name: name in TOKENIZER_FILES or any(each.owns(name) for each in FORMATS)
    ) as stage:
        safetensors_file.write_arrays(
            rename(arrays, rows, sizes, str(source / SHAPES)), stage / SAFETENSORS.file_name()
        )
        config.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
        options = read_json(stage / TOKENIZER_CONFIG) | {"pre_tokenizer": pre_tokenizer}
        write_json(stage / TOKENIZER_CONFIG, options)
    return config


def read_shapes(path: Path) -> list[tuple[int, ...]]:
    """The shapes of all tensors, in their order.

    Raises: CheckpointError naming the file if it is missing or no list of the right length of shapes.
    """
    try:
        shapes = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(
            f"{path} does not exist. Give the folder of the release, with {SHAPES}, {PARTS[0]} … {PARTS[-1]}, "
            f"{ENCODER} and {MERGES}."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, IsADirectoryError) as error:
        raise InvalidFileError(f"{path} must hold JSON in UTF-8: {error}. Fetch the file again.") from error
    if not isinstance(shapes, list) or not all(map(_is_shape, shapes)):
        raise InvalidFileError(f"{path} must be a list of shapes, each a list of sizes. Fetch the file again.")
    if len(shapes) < ONCE + PER_LAYER or (len(shapes) - ONCE) % PER_LAYER:
        raise InvalidFileError(
            f"{path} must list {ONCE} shapes and {PER_LAYER} more for each layer, and lists {len(shapes)}. "
            "Fetch the file again."
        )
    return [tuple(shape) for shape in shapes]


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)


def _sizes(shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, int]:
    """The model's sizes, from the two tables that stand first."""
    for name in ("positions", "tokens"):
        if len(shapes[name]) != 2:
            raise InvalidFileError(f"In {path}, the table of {name} must have two axes, and has {shapes[name]}.")
    (positions, width), (vocabulary, _) = shapes["positions"], shapes["tokens"]
    return {"P": positions, "V": vocabulary, "C": width, "3C": 3 * width, "4C": 4 * width}


def _heads(width: int, heads: int | None) -> int:
    if heads is None and width % HEAD_WIDTH:
        raise ValueError(
            f"The files do not say the number of heads. It is the width over {HEAD_WIDTH} by default, and the width is "
            f"{width}. Pass heads=… (on the command line, --heads)."
        )
    heads = width // HEAD_WIDTH if heads is None else heads
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide the width {width}, and {heads} does not.")
    return heads


def _tokenizer(source: Path, config: OpenAIGPTConfig) -> OpenAIGPTTokenizerFast:
    tokenizer = OpenAIGPTTokenizerFast(
        source / ENCODER, source / MERGES, model_max_length=config.n_positions, pre_tokenizer="basic"
    )
    if len(tokenizer) != config.vocab_size:
        raise CheckpointError(
            f"{source / ENCODER} has {len(tokenizer)} tokens, and the model of {SHAPES} has {config.vocab_size}. "
            "Use the files of one release."
        )
    strange = {token: i for token, i in tokenizer.get_vocab().items() if not 0 <= i < config.vocab_size}
    if strange:
        raise CheckpointError(
            f"{source / ENCODER} must number its tokens from 0 to {config.vocab_size - 1}; got {strange}. "
            "Use the files of one release."
        )
    return tokenizer


@dataclass(frozen=True, slots=True)
class Stretch:
    """A tensor of the row that the parts make, read when NumPy asks for it: the row may be large."""

    row: list[np.memmap[Any, np.dtype[np.float32]]]
    start: int
    shape: tuple[int, ...]
    dtype: ClassVar[np.dtype[np.float32]] = np.dtype(np.float32)

    def reshape(self, shape: tuple[int, ...]) -> "Stretch":
        """The same numbers as a tensor of another shape."""
        return replace(self, shape=shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The numbers, in memory of their own."""
        numbers = np.empty(prod(self.shape), np.float32)
        offset = -self.start  # of the part's first number in `numbers`
        for part in self.row:
            first, end = max(offset, 0), min(offset + part.size, numbers.size)
            if first < end:
                # Not through the map, whose pages would count as memory in use.
                at = part.offset + (first - offset) * numbers.itemsize
                numbers[first:end] = np.fromfile(str(part.filename), np.float32, end - first, offset=at)
            offset += part.size
        return numbers.reshape(self.shape)


def open_parts(source: Path, expected: int) -> list[np.memmap[Any, np.dtype[np.float32]]]:
    """All parts, which make one row (N,) of float32.

    Raises: CheckpointError naming the parts that are missing or damaged, or both numbers when the sizes do not add up.
    """
    absent = [name for name in PARTS if not (source / name).is_file()]
    if absent:
        raise MissingFileError(f"{source} lacks {', '.join(absent)}. Fetch all {len(PARTS)} parts of the release.")
    parts = [_open_part(source / name) for name in PARTS]
    count = sum(part.size for part in parts)
    if count != expected:
        raise CheckpointError(
            f"{SHAPES} asks for {expected:,} numbers, and {PARTS[0]} … {PARTS[-1]} in {source} hold {count:,}. "
            "They belong to different releases, or a part is not whole; fetch them again."
        )
    return parts


def _open_part(path: Path) -> np.memmap[Any, np.dtype[np.float32]]:
    try:
        # Maps the numbers of a .npy file and knows nothing else: `np.load` would also open archives.
        part = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError, SyntaxError, OverflowError, MemoryError, RecursionError) as error:
        raise InvalidFileError(
            f"{path} is no whole .npy file of plain numbers: {error}. Fetch it again; pickled objects are never read."
        ) from error
    if part.ndim != 1 or part.dtype != np.float32:
        raise InvalidFileError(
            f"{path} must hold one row of float32 numbers, and holds {part.dtype} of shape {part.shape}. "
            "Fetch it again."
        )
    return part
