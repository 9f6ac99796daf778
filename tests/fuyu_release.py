"""Adept's release of Fuyu, made small: its layout and names, with objects of the training program in the pickle."""

import struct
import sys
import tarfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 2,
}
PIECES = ("<unk>", "<s>", "</s>", "|ENDOFTEXT|", *"abc")


def _message(number: int, data: bytes) -> bytes:
    """A field of a protobuf message that is a message or a text of fewer than 128 bytes."""
    return bytes([8 * number + 2, len(data)]) + data


def _piece(text: str, kind: int) -> bytes:
    return _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", 0) + bytes([0x18, kind]))


def vocabulary(pieces: Sequence[str]) -> bytes:
    """A SentencePiece model: pieces (the unknown one is of kind 2), its kind (1, Unigram), and no normalisation."""
    stored = b"".join(_piece(text, 2 if text == "<unk>" else 1) for text in pieces)
    return stored + _message(2, b"\x18\x01") + _message(3, _message(1, b"identity"))


VOCABULARY = vocabulary(PIECES)
PROGRAM = "megatron_of_the_test.arguments"  # no such module is there when the file is read


class Arguments:
    """What the training program keeps its arguments in; pickled as a class of PROGRAM."""

    def __init__(self) -> None:
        self.num_layers, self.rampup_batch_size, self.params_dtype = 3, [16, 16], torch.bfloat16
        self.model_type = Kind()


class Kind:
    """Pickled by a call with arguments, as the members of an enum are."""

    def __reduce__(self) -> Any:
        return (Kind, ())


def tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16, **changes: int) -> dict[str, Tensor]:
    """Name in the release → tensor, written out after the description of the release."""
    sizes = SIZES | changes
    width, inner, vocabulary = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    head, values = width // sizes["num_attention_heads"], 3 * sizes["patch_size"] ** 2
    layer = {
        "input_layernorm.weight": (width,),
        "input_layernorm.bias": (width,),
        "self_attention.query_key_value.weight": (3 * width, width),
        "self_attention.query_key_value.bias": (3 * width,),
        "self_attention.q_layernorm.weight": (head,),
        "self_attention.q_layernorm.bias": (head,),
        "self_attention.k_layernorm.weight": (head,),
        "self_attention.k_layernorm.bias": (head,),
        "self_attention.rotary_emb.inv_freq": (head // 4,),
        "self_attention.dense.weight": (width, width),
        "self_attention.dense.bias": (width,),
        "post_attention_layernorm.weight": (width,),
        "post_attention_layernorm.bias": (width,),
        "mlp.dense_h_to_4h.weight": (inner, width),
        "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (width, inner),
        "mlp.dense_4h_to_h.bias": (width,),
    }
    shapes = {"language_model.embedding.word_embeddings.weight": (vocabulary, width)}
    for n in range(sizes["num_hidden_layers"]):
        shapes |= {f"language_model.encoder.layers.{n}.{name}": shape for name, shape in layer.items()}
    shapes |= {
        "language_model.encoder.final_layernorm.weight": (width,),
        "language_model.encoder.final_layernorm.bias": (width,),
        "word_embeddings_for_head.weight": (vocabulary, width),
        "vit_encoder.linear_encoder.weight": (width, values),
        "vit_encoder.linear_encoder.bias": (width,),
        "image_patch_projection.weight": (width, values),
        "image_patch_projection.bias": (width,),
    }
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * 0.3).to(dtype) for name, shape in shapes.items()}


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dicts within dicts as in the release: the modules apart, the names within `encoder` whole."""
    model: dict[str, Any] = {}
    for name, value in flat.items():
        parts = name.split(".")
        if parts[:2] == ["language_model", "encoder"]:
            parts = [*parts[:2], ".".join(parts[2:])]
        where = model
        for part in parts[:-1]:
            where = where.setdefault(part, {})
        where[parts[-1]] = value
    return model


def checkpoint(model: Any) -> dict[str, Any]:
    """What the training program saves."""
    moments = {"exp_avg": torch.ones(5), "exp_avg_sq": torch.zeros(5)}
    return {
        "args": Arguments(),
        "checkpoint_version": 3.0,
        "iteration": 1251,
        "model": model,
        "optimizer": {"optimizer": {"state": {0: moments}}, "scheduler": Kind()},
        "random_rng_state": [("MT19937", (1, 2), None)],
        "rng_tracker_states": {"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)},
    }


def write_checkpoint(path: Path, saved: Any) -> None:
    """torch.save where the training program's module is there, which is gone afterwards."""
    package, _, leaf = PROGRAM.partition(".")
    modules = {package: types.ModuleType(package), PROGRAM: types.ModuleType(PROGRAM)}
    setattr(modules[package], leaf, modules[PROGRAM])
    sys.modules |= modules
    try:
        for each in (Arguments, Kind):
            each.__module__ = PROGRAM
            setattr(modules[PROGRAM], each.__name__, each)
        torch.save(saved, path)
    finally:
        for each in (Arguments, Kind):
            each.__module__ = __name__
        for name in modules:
            del sys.modules[name]


def write_folder(folder: Path, saved: Any) -> Path:
    """The release as a folder; returns the path of its checkpoint."""
    path = folder / "iter_0001251" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    write_checkpoint(path, saved)
    (folder / "adept_vocab.model").write_bytes(VOCABULARY)
    return path


def write_tar(path: Path, folder: Path) -> None:
    """The release as one file."""
    with tarfile.open(path, "w") as tar:
        tar.add(folder, arcname="fuyu_8b_release")
