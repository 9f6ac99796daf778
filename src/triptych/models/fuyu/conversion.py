"""Fuyu as Adept published it → a folder that `from_pretrained` loads.

The release is a .tar that holds the vocabulary, adept_vocab.model (SentencePiece), and a checkpoint of the training
program, iter_0001251/mp_rank_00/model_optim_rng.pt, whose "model" is a nested dict of tensors. It is read where it is,
in the .tar too, and written shard by shard, so that memory does not grow with the model.
"""

import math
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.checkpoints import safetensors_file
from triptych.checkpoints.checkpoint import TensorInfo
from triptych.checkpoints.index import StoredTensor as Planned, make_index, parse_size, plan_shards, shard_names
from triptych.checkpoints.names import FORMATS, SAFETENSORS
from triptych.checkpoints.renaming import Row, check, rows_of
from triptych.checkpoints.torch_archive import FilePart, StoredTensor, TorchArchive
from triptych.errors import CheckpointError, MissingFileError, SaveError
from triptych.files import staged_folder, write_json
from triptych.generation.configuration import GENERATION_CONFIG_NAME, GenerationConfig
from triptych.models.fuyu.configuration import FuyuConfig
from triptych.models.llama.sentencepiece_model import MAX_BYTES as MAX_VOCABULARY_BYTES, parse
from triptych.tokenization.files import FILES as TOKENIZER_FILES

WEIGHTS, VOCABULARY = "model_optim_rng.pt", "adept_vocab.model"
HEAD_WIDTH = 64  # of every head of fuyu-8b; where queries are normalised, the files say
CHANNELS = 3  # of a pixel; the files do not say
MAX_ENTRIES = 10**5  # of all dicts of tensors together; fuyu-8b has seven hundred
FLOATS = ("bfloat16", "float16", "float32", "float64")

_LAYER, _MINE = "language_model.encoder.layers.{n}.", "language_model.model.layers.{n}."
# V vocabulary, C width, F inner width, D width of a head, P values of a patch.
ADEPT_RELEASE = (
    Row("language_model.model.embed_tokens.weight", "language_model.embedding.word_embeddings.weight", "V C"),
    Row(_MINE + "input_layernorm.weight", _LAYER + "input_layernorm.weight", "C"),
    Row(_MINE + "input_layernorm.bias", _LAYER + "input_layernorm.bias", "C"),
    Row(_MINE + "self_attn.query_key_value.weight", _LAYER + "self_attention.query_key_value.weight", "3C C"),
    Row(_MINE + "self_attn.query_key_value.bias", _LAYER + "self_attention.query_key_value.bias", "3C"),
    Row(_MINE + "self_attn.q_layernorm.weight", _LAYER + "self_attention.q_layernorm.weight", "D"),
    Row(_MINE + "self_attn.q_layernorm.bias", _LAYER + "self_attention.q_layernorm.bias", "D"),
    Row(_MINE + "self_attn.k_layernorm.weight", _LAYER + "self_attention.k_layernorm.weight", "D"),
    Row(_MINE + "self_attn.k_layernorm.bias", _LAYER + "self_attention.k_layernorm.bias", "D"),
    Row(_MINE + "self_attn.dense.weight", _LAYER + "self_attention.dense.weight", "C C"),
    Row(_MINE + "self_attn.dense.bias", _LAYER + "self_attention.dense.bias", "C"),
    Row(_MINE + "post_attention_layernorm.weight", _LAYER + "post_attention_layernorm.weight", "C"),
    Row(_MINE + "post_attention_layernorm.bias", _LAYER + "post_attention_layernorm.bias", "C"),
    Row(_MINE + "mlp.dense_h_to_4h.weight", _LAYER + "mlp.dense_h_to_4h.weight", "F C"),
    Row(_MINE + "mlp.dense_h_to_4h.bias", _LAYER + "mlp.dense_h_to_4h.bias", "F"),
    Row(_MINE + "mlp.dense_4h_to_h.weight", _LAYER + "mlp.dense_4h_to_h.weight", "C F"),
    Row(_MINE + "mlp.dense_4h_to_h.bias", _LAYER + "mlp.dense_4h_to_h.bias", "C"),
    Row("language_model.model.final_layernorm.weight", "language_model.encoder.final_layernorm.weight", "C"),
    Row("language_model.model.final_layernorm.bias", "language_model.encoder.final_layernorm.bias", "C"),
    Row("language_model.lm_head.weight", "word_embeddings_for_head.weight", "V C"),
    Row("vision_embed_tokens.weight", "vit_encoder.linear_encoder.weight", "C P"),
    Row("vision_embed_tokens.bias", "vit_encoder.linear_encoder.bias", "C"),
)
# What the model does not have: frequencies that follow from the configuration, and a layer that is not used.
LEFT_OUT = re.compile(r"rotary_emb\.inv_freq$|(^|\.)image_patch_projection(\.|$)")
# Some files keep the head with the decoder, others beside it.
HEAD = re.compile(r"^language_model\.(?=word_embeddings_for_head\.)")

TOKENIZER_CONFIG: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "|ENDOFTEXT|",
    "clean_up_tokenization_spaces": False,
    "eos_token": "|ENDOFTEXT|",
    "legacy": True,
    "processor_class": "FuyuProcessor",
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}
PREPROCESSOR_CONFIG: dict[str, Any] = {
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": 0.5,
    "image_processor_type": "FuyuImageProcessor",
    "image_std": 0.5,
    "padding_mode": "constant",
    "padding_value": 1.0,
    "patch_size": {"height": 30, "width": 30},
    "processor_class": "FuyuProcessor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 1080, "width": 1920},
}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    max_shard_size: int | str = "5GB",
) -> FuyuConfig:
    """Write the release in `source` as configurations, safetensors and tokenizer.model in the folder `target`.

    source: the .tar of the release, the folder that it was unpacked into, or the model_optim_rng.pt of it.
    tokenizer: adept_vocab.model; if None, the one of the release.

    Sizes come from the shapes of the tensors, and what shapes do not tell from the defaults of FuyuConfig. Objects of
    the training program in the .pt become placeholders: nothing is imported, nothing is run.

    Returns: the configuration written. `target` gets all files or, on any error, none.
    Raises: CheckpointError naming the file, or the tensors, that are missing, damaged or of another model; ValueError
        for a wrong max_shard_size; SaveError if `target` cannot be written.
    """
    limit = parse_size(max_shard_size)
    weights, vocabulary = find_release(Path(source), None if tokenizer is None else Path(tokenizer))
    words = parse(vocabulary.read_bytes(), vocabulary.name)
    with TorchArchive(weights) as archive:
        tensors = named_tensors(archive)
        sizes, rows = _layout(tensors, archive.name)
        check({name: tensor.shape for name, tensor in tensors.items()}, rows, sizes, archive.name)
        for name, tensor in tensors.items():
            archive.check(name, tensor)
        if len(words.pieces) > sizes["V"]:
            raise CheckpointError(
                f"{vocabulary.name} has {len(words.pieces):,} pieces, and the model embeds {sizes['V']:,} tokens. "
                "Give the vocabulary of this model."
            )
        config = _configuration(sizes, tensors)
        patch = {"height": config.patch_size, "width": config.patch_size}
        # An older tokenizer.json would be read in place of the tokenizer.model that is written here.
        with staged_folder(
            target, replaces=lambda name: name in TOKENIZER_FILES or any(each.owns(name) for each in FORMATS)
        ) as stage:
            _write_shards(archive, {row.published: tensors[row.original] for row in rows}, limit, stage)
            config.save_pretrained(stage)
            _generation(config, words.pieces).to_json_file(stage / GENERATION_CONFIG_NAME)
            (stage / "tokenizer.model").write_bytes(vocabulary.read_bytes())
            write_json(stage / "tokenizer_config.json", TOKENIZER_CONFIG)
            write_json(stage / "preprocessor_config.json", PREPROCESSOR_CONFIG | {"patch_size": patch})
    return config


# -- the files of the release ------------------------------------------------------------------------------------


def find_release(source: Path, tokenizer: Path | None = None) -> tuple[FilePart, FilePart]:
    """The checkpoint and the vocabulary, wherever they are.

    Raises: MissingFileError naming what is not there; CheckpointError if there are several, or the .tar is damaged.
    """
    if not source.exists():
        raise MissingFileError(f"{source} does not exist. Give the release's .tar, its folder or its {WEIGHTS}.")
    members = None if source.is_dir() else _members(source)
    if members is not None:
        found = members
    elif source.is_dir():
        found = [FilePart.whole(path) for name in (WEIGHTS, VOCABULARY) for path in sorted(source.rglob(name))]
    else:  # the .pt itself; the vocabulary lies beside the run's folder
        beside = [folder / VOCABULARY for folder in source.absolute().parents[:3]]
        found = [FilePart.whole(path) for path in (source, *filter(Path.is_file, beside))][:2]
    weights = [part for part in found if not part.name.endswith(VOCABULARY)]
    words = [part for part in found if part.name.endswith(VOCABULARY)]
    if tokenizer is not None:
        if not tokenizer.is_file():
            raise MissingFileError(f"{tokenizer} does not exist. Give the path of {VOCABULARY}.")
        words = [FilePart.whole(tokenizer)]
    for name, parts, remedy in (
        (WEIGHTS, weights, f"Give the {WEIGHTS} itself"),
        (VOCABULARY, words, "Pass tokenizer=… (on the command line, --tokenizer)"),
    ):
        if not parts:
            raise MissingFileError(f"{source} lacks {name}. Fetch the whole release, or: {remedy}.")
        if len(parts) > 1:
            several = ", ".join(part.name for part in parts[:3])
            raise CheckpointError(f"{source} must hold one {name}, and holds {len(parts)}: {several}. {remedy}.")
    if not 0 < words[0].size <= MAX_VOCABULARY_BYTES:
        raise CheckpointError(f"{words[0].name} has {words[0].size:,} bytes, so it is no vocabulary. Fetch it again.")
    return weights[0], words[0]


def _members(source: Path) -> list[FilePart] | None:
    """The two files within a .tar; None if it is none.

    Raises: CheckpointError if it is damaged.
    """
    is_one = False
    try:
        with tarfile.open(source, "r:") as tar:
            is_one = True
            members, reached = [], -1
            for each in tar:
                if each.size < 0 or each.offset_data <= reached:  # it would go round and round
                    raise tarfile.ReadError(f"{each.name!r} does not lie behind what is in front of it")
                reached = each.offset_data
                if PurePosixPath(each.name).name in (WEIGHTS, VOCABULARY):
                    members.append(each)
    except Exception as error:  # tarfile raises all kinds over damaged headers
        if is_one:
            raise CheckpointError(f"{source} is no whole .tar: {error}. Fetch it again.") from error
        with source.open("rb") as file:
            start = file.read(3)
        if start[:2] == b"\x1f\x8b" or start in (b"BZh", b"\xfd7z"):
            raise CheckpointError(f"{source} is compressed, so its parts cannot be read in place. Unpack it.") from None
        return None
    size = source.stat().st_size
    for member in members:
        if not member.isreg() or member.issparse() or member.offset_data + member.size > size:
            raise CheckpointError(f"{member.name} in {source} is not there as a whole plain file. Fetch it again.")
    return [FilePart(source, each.offset_data, each.size, f"{source}/{each.name}") for each in members]


# -- the tensors -------------------------------------------------------------------------------------------------


def named_tensors(archive: TorchArchive) -> dict[str, StoredTensor]:
    """Name in the release → tensor, the names of nested dicts joined by dots; what is left out is not among them.

    Raises: CheckpointError if there is no such dict, or it holds something else.
    """
    top = archive.value
    if not isinstance(top, dict) or not isinstance(top.get("model"), dict):
        raise CheckpointError(f'{archive.name} must hold a dict whose "model" is a dict. It is no release of Fuyu.')
    found: dict[str, StoredTensor] = {}
    todo: list[tuple[str, Any]] = [("", top["model"])]
    looked_at = 0
    while todo:
        prefix, value = todo.pop()
        looked_at += 1 + (len(value) if isinstance(value, dict) else 0)
        if looked_at > MAX_ENTRIES or len(prefix) > 1000:  # a dict may hold itself
            raise CheckpointError(f'"model" in {archive.name} has no end. The file is damaged or hostile.')
        if isinstance(value, dict):
            names = (name if isinstance(name, str) and name.isprintable() else repr(name) for name in value)
            todo += [(f"{prefix}.{name}".lstrip("."), value) for name, value in zip(names, value.values(), strict=True)]
        elif not LEFT_OUT.search(prefix):
            if not isinstance(value, StoredTensor):
                raise CheckpointError(
                    f'"model" in {archive.name} must hold tensors, and {prefix} is none. It is no release of Fuyu.'
                )
            found[HEAD.sub("", prefix)] = value
    return found


def _layout(tensors: Mapping[str, StoredTensor], source: str) -> tuple[dict[str, int], list[Row]]:
    """The model's sizes by the letters of the table, and the rows of its tensors."""
    layer_of = re.compile(re.escape(_LAYER).replace(r"\{n\}", r"(\d{1,9})"))
    count = 1 + max((int(match[1]) for match in map(layer_of.match, tensors) if match), default=-1)
    normalised = any(name.endswith(".q_layernorm.weight") for name in tensors)
    table = [row for row in ADEPT_RELEASE if normalised or not re.search(r"\.[qk]_layernorm\.", row.original)]
    # A hostile name may count to any number; so many layers as there are tensors are enough to say what is missing.
    rows = rows_of(table, max(1, min(count, len(tensors))))

    def size(name: str, axis: int) -> int:
        """One size of a tensor; 0 if there is no such tensor, which `check` tells of."""
        shape = tensors[name].shape if name in tensors else ()
        return shape[axis] if axis < len(shape) else 0

    width = size("language_model.embedding.word_embeddings.weight", 1)
    first = _LAYER.format(n=0)
    sizes = {
        "V": size("language_model.embedding.word_embeddings.weight", 0),
        "C": width,
        "3C": 3 * width,
        "F": size(first + "mlp.dense_h_to_4h.weight", 0),
        "D": size(first + "self_attention.q_layernorm.weight", 0) if normalised else HEAD_WIDTH,
        "P": size("vit_encoder.linear_encoder.weight", 1),
        "layers": count,
    }
    return sizes, rows


def _configuration(sizes: Mapping[str, int], tensors: Mapping[str, StoredTensor]) -> FuyuConfig:
    width, head, values = sizes["C"], sizes["D"], sizes["P"]
    patch = math.isqrt(values // CHANNELS)
    for what, is_so in (
        (f"the width {width} is no multiple of the width of a head, {head}", head and width % head == 0),
        (f"a patch of {values} values is no square of {CHANNELS} channels", patch * patch * CHANNELS == values),
    ):
        if not is_so:
            raise CheckpointError(f"The tensors fit together, but {what}. They are not of a Fuyu model.")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if not dtypes <= set(FLOATS):
        raise CheckpointError(
            f"The tensors must be of {', '.join(FLOATS)}, and some are of {min(dtypes - set(FLOATS))}."
        )
    return FuyuConfig(
        vocab_size=sizes["V"],
        hidden_size=width,
        intermediate_size=sizes["F"],
        num_hidden_layers=sizes["layers"],
        num_attention_heads=width // head,
        patch_size=patch,
        num_channels=CHANNELS,
        qk_layernorm=any(".q_layernorm." in name for name in tensors),
        architectures=["FuyuForCausalLM"],
        torch_dtype=max(dtypes, key=FLOATS.index),
    )


def _generation(config: FuyuConfig, pieces: list[str]) -> GenerationConfig:
    """Texts end where the release's do, which is not at the eos token of the published configuration."""
    generation = GenerationConfig.from_model_config(config)
    end = TOKENIZER_CONFIG["eos_token"]
    if end in pieces:
        generation.eos_token_id = pieces.index(end)
    return generation


def _write_shards(archive: TorchArchive, tensors: Mapping[str, StoredTensor], limit: int, stage: Path) -> None:
    """The tensors under their published names, in files of at most `limit` bytes, one file after the other."""
    shards = plan_shards((Planned(name, tensor.nbytes, name) for name, tensor in tensors.items()), limit)
    files = shard_names(SAFETENSORS, None, len(shards))
    for file, names in _with_progress(list(zip(files, shards, strict=True))):
        pieces = {
            name: (TensorInfo(tensors[name].shape, tensors[name].dtype), archive.pieces(name, tensors[name]))
            for name in names
        }
        try:
            safetensors_file.write_pieces(pieces, stage / file)
        except CheckpointError:
            raise
        except OSError as error:
            raise SaveError(f"{file} cannot be written: {error}. Free some space or choose another folder.") from error
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(tensor.nbytes for tensor in tensors.values())
        write_json(stage / SAFETENSORS.index_name(), make_index(weight_map, total))


def _with_progress(items: list[tuple[str, list[str]]]) -> Iterable[tuple[str, list[str]]]:
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description="Writing shards", console=Console(stderr=True), transient=True)
