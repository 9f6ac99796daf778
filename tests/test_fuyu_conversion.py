"""Fuyu as Adept published it → a folder that loads: names, numbers, damage, and pickles that would run code."""

import dataclasses
import gzip
import io
import json
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fuyu_release
from fuyu_models import gap
from fuyu_release import checkpoint, nested, tensors, write_folder, write_tar
from triptych import AutoTokenizer, FuyuConfig, FuyuForCausalLM, FuyuProcessor, LlamaTokenizerFast
from triptych.checkpoints.torch_archive import MAX_STEPS, FilePart, Placeholder, TorchArchive, _InertUnpickler
from triptych.errors import CheckpointError, MissingFileError, SaveError
from triptych.models.fuyu.conversion import ADEPT_RELEASE, convert, named_tensors, rows_of

PUBLISHED = FuyuConfig(**fuyu_release.SIZES)
# CHECKPOINTS: what is called what, from the release's names to the published ones
RENAMED = (
    ("language_model.encoder", "language_model.model"),
    ("language_model.embedding.word_embeddings", "language_model.model.embed_tokens"),
    ("word_embeddings_for_head", "language_model.lm_head"),
    ("self_attention", "self_attn"),
    ("vit_encoder.linear_encoder", "vision_embed_tokens"),
)


def published(flat):
    """The tensors under their published names, renamed by replacing text."""
    found = {}
    for name, value in flat.items():
        if "inv_freq" in name or "image_patch_projection" in name:
            continue
        for old, new in RENAMED:
            name = name.replace(old, new)
        found[name] = value
    return found


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    write_folder(folder, checkpoint(nested(tensors())))
    return folder


def written(folder):
    state = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
    return state


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("form", ["folder", "tar", "pt"])
def test_every_tensor_gets_its_published_name_and_its_numbers(release, tmp_path, form):
    write_tar(tmp_path / "release.tar", release)
    source = {
        "folder": release,
        "tar": tmp_path / "release.tar",
        "pt": release / "iter_0001251" / "mp_rank_00" / "model_optim_rng.pt",
    }[form]
    config = convert(source, tmp_path / "out")
    expected, got = published(tensors()), written(tmp_path / "out")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == torch.bfloat16
        assert torch.equal(got[name], value), name
    assert {name: getattr(config, name) for name in fuyu_release.SIZES} == fuyu_release.SIZES
    assert config.torch_dtype == torch.bfloat16
    assert config == FuyuConfig.from_pretrained(tmp_path / "out")
    assert config == FuyuConfig(**fuyu_release.SIZES, architectures=["FuyuForCausalLM"], torch_dtype="bfloat16")


def test_a_converted_folder_loads_as_a_model(release, tmp_path):
    convert(release, tmp_path / "out")
    model, found = FuyuForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values())
    expected = FuyuForCausalLM(PUBLISHED).eval()
    expected.load_state_dict({name: value.float() for name, value in published(tensors()).items()})
    ids, places = torch.arange(3, 12)[None], torch.tensor([[-1, 0, 1, -1, -1, -1, -1, -1, -1]])
    images = {"image_patches": [torch.ones(2, 12)], "image_patches_indices": places}
    with torch.no_grad():
        assert gap(model(ids, **images).logits, expected(ids, **images).logits) == 0
    assert model.generation_config.eos_token_id == fuyu_release.PIECES.index("|ENDOFTEXT|")


def test_the_tokenizer_and_the_processor_are_written_as_published(release, tmp_path):
    convert(release, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == fuyu_release.VOCABULARY
    tokenizer = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert tokenizer["bos_token"] == tokenizer["eos_token"] == "|ENDOFTEXT|"
    assert tokenizer["tokenizer_class"] == "LlamaTokenizer"
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert processor["image_processor_type"] == "FuyuImageProcessor"
    assert processor["processor_class"] == "FuyuProcessor"
    assert processor["patch_size"] == {"height": 2, "width": 2}
    assert processor["rescale_factor"] == 0.00392156862745098
    assert names(tmp_path / "out") == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }


def test_a_converted_folder_loads_as_a_processor(release, tmp_path):
    convert(release, tmp_path / "out")
    processor = FuyuProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_processor.patch_size == {"height": 2, "width": 2}
    assert processor.tokenizer.eos_token_id == fuyu_release.PIECES.index("|ENDOFTEXT|")
    assert processor.tokenizer.tokenize("abc")[-3:] == ["a", "b", "c"]


def test_a_vocabulary_of_another_model_is_refused(release, tmp_path):
    more = fuyu_release.vocabulary([*fuyu_release.PIECES, *map(str, range(40))])
    (tmp_path / "other.model").write_bytes(more)
    with pytest.raises(CheckpointError, match="47 pieces, and the model embeds 40"):
        convert(release, tmp_path / "out", tokenizer=tmp_path / "other.model")
    (tmp_path / "other.model").write_bytes(more[:-20])
    with pytest.raises(CheckpointError, match=r"other\.model"):
        convert(release, tmp_path / "out", tokenizer=tmp_path / "other.model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_keep_their_dtype(tmp_path, dtype):
    write_folder(tmp_path / "release", checkpoint(nested(tensors(dtype=dtype))))
    assert convert(tmp_path / "release", tmp_path / "out").torch_dtype == dtype
    got = written(tmp_path / "out")
    assert all(torch.equal(got[name], value) for name, value in published(tensors(dtype=dtype)).items())


def test_sizes_are_those_of_the_shapes(tmp_path):
    changes = {"vocab_size": 7, "hidden_size": 128, "intermediate_size": 9, "num_hidden_layers": 1, "patch_size": 5}
    flat = tensors(**changes, num_attention_heads=4)
    write_folder(tmp_path / "release", checkpoint(nested(flat)))
    config = convert(tmp_path / "release", tmp_path / "out")
    assert {name: getattr(config, name) for name in changes} == changes
    assert (config.num_attention_heads, config.qk_layernorm) == (4, True)
    without = {name: value for name, value in flat.items() if "q_layernorm" not in name and "k_layernorm" not in name}
    write_folder(tmp_path / "without", checkpoint(nested(without)))
    config = convert(tmp_path / "without", tmp_path / "out2")
    assert (config.num_attention_heads, config.qk_layernorm) == (2, False)  # 64 wide each, as in the release
    assert not any(FuyuForCausalLM.from_pretrained(tmp_path / "out2", output_loading_info=True)[1].values())


def test_tensors_may_share_one_storage_and_stand_in_any_order_in_it(tmp_path):
    """As the training program keeps them: all in one buffer, some turned."""
    flat = tensors()
    buffer = torch.cat([value.flatten() for value in flat.values()])
    views = dict(zip(flat, buffer.split([value.numel() for value in flat.values()]), strict=True))
    shared = {name: views[name].view(value.shape) for name, value in flat.items()}
    name = "language_model.encoder.layers.1.mlp.dense_4h_to_h.weight"
    shared[name] = flat[name].t().contiguous().t()
    name = "vit_encoder.linear_encoder.weight"
    shared[name] = torch.nn.Parameter(torch.stack((flat[name], flat[name]), 2)[..., 1])
    write_folder(tmp_path / "release", checkpoint(nested(shared)))
    convert(tmp_path / "release", tmp_path / "out")
    got = written(tmp_path / "out")
    assert all(torch.equal(got[name], value) for name, value in published(flat).items())


def test_dicts_may_be_nested_in_any_way_and_the_head_may_be_in_the_decoder(tmp_path):
    flat = tensors()
    flat["language_model.word_embeddings_for_head.weight"] = flat.pop("word_embeddings_for_head.weight")
    expected = published(tensors())
    for number, model in enumerate((flat, nested(flat))):
        write_folder(tmp_path / f"release{number}", checkpoint(model))
        convert(tmp_path / f"release{number}", tmp_path / f"out{number}")
        got = written(tmp_path / f"out{number}")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_weights_are_written_in_shards_of_the_size_asked_for(release, tmp_path):
    convert(release, tmp_path / "out", max_shard_size="10KB")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in published(tensors()).values())
    assert not any(FuyuForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)[1].values())
    convert(release, tmp_path / "out")  # one file, and the shards are gone
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]


def test_the_table_holds_every_published_name_once_in_both_directions():
    rows = rows_of(ADEPT_RELEASE, PUBLISHED.num_hidden_layers)
    assert {row.published for row in rows} == set(FuyuForCausalLM(PUBLISHED).state_dict())
    assert len({row.original for row in rows}) == len(rows)
    assert {row.original: row.published for row in rows} == {
        name: next(iter(published({name: None}))) for name in tensors() if published({name: None})
    }


# -- what would run code, and what is no release -----------------------------------------------------------------


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_nothing_in_the_pickle_is_imported_or_run(tmp_path, monkeypatch):
    """Modules that it names are there to be imported, and calls that it asks for would leave traces."""
    saved = checkpoint(nested(tensors()))
    saved["args2"] = Hostile(os.system, f"touch {tmp_path / 'ran'}")
    saved["args3"] = Hostile(eval, f"open({str(tmp_path / 'ran')!r}, 'w')")
    saved["args4"] = Hostile(pickle.loads, pickle.dumps(Hostile(os.system, f"touch {tmp_path / 'ran'}")))
    write_folder(tmp_path / "release", saved)
    (tmp_path / "megatron_of_the_test").mkdir()
    for name in ("__init__", "arguments"):
        (tmp_path / "megatron_of_the_test" / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    convert(tmp_path / "release", tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    assert not any(name.startswith("megatron") for name in sys.modules)
    with TorchArchive(FilePart.whole(next((tmp_path / "release").rglob("*.pt")))) as archive:
        for name in ("args", "args2", "args3", "args4"):
            assert isinstance(archive.value[name], Placeholder)
        assert isinstance(archive.value["optimizer"]["scheduler"], Placeholder)


def replaced_pickle(path, data):
    """The same archive with another pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in entries:
            archive.writestr(name, data if name.endswith("data.pkl") else old)


HOSTILE_PICKLES = {
    "a call of a string": b"\x80\x02X\x04\x00\x00\x00evilU\x02hi\x85R.",
    "a write on a function that is known": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x08__code__K\x01s\x86b.",
    "an import by the old opcode": b"(S'touch ran'\nios\nsystem\n.",
    "a list without end": b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    "a storage that is none": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(U\x01xK\x00K\x01\x85K\x01\x85\x89NtR.",
    "a number that asks for all of the memory": b"\x80\x02}r\xff\xff\xff\xff.",
    "nothing": b"",
    "a name with dots": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93)R.",
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles_are_refused_and_leave_nothing_behind(release, tmp_path, name):
    path = next(release.rglob("*.pt"))
    good = path.read_bytes()
    replaced_pickle(path, HOSTILE_PICKLES[name])
    with pytest.raises(CheckpointError, match=r"The pickle in .* cannot be read|is a dict"):
        convert(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path.write_bytes(good)
    convert(release, tmp_path / "out")  # nothing that was written on lives on


class Overwritten:
    """A tensor on which the pickle writes other strides once it is made."""

    def __init__(self, value, strides):
        description = (value._typed_storage(), 0, tuple(value.shape), value.stride(), False, {})
        self.made = (torch._utils._rebuild_tensor_v2, description, ("0", "bfloat16", 2, 0, value.shape, strides))

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("strides", [(-200, 340), (1_150_000_000, -1_950_000_000)], ids=["leak", "crash"])
def test_a_pickle_cannot_lead_a_tensor_into_the_memory_of_the_process(tmp_path, strides):
    flat = tensors()
    name = next(iter(flat))
    write_folder(tmp_path / "release", checkpoint(nested(flat | {name: Overwritten(flat[name], strides)})))
    with pytest.raises(CheckpointError, match=r"cannot be read \(ValueError: it writes on a tensor that is made"):
        convert(tmp_path / "release", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_is_checked_where_it_is_read_too(release):
    with TorchArchive(FilePart.whole(next(release.rglob("*.pt")))) as archive:
        tensor = named_tensors(archive)["language_model.embedding.word_embeddings.weight"]
        assert b"".join(archive.pieces("it", tensor))
        for changes in ({"strides": (-200, 340)}, {"offset": -1}, {"strides": (1,)}, {"itemsize": 1}):
            with pytest.raises(CheckpointError, match="it is no tensor"):
                next(archive.pieces("it", dataclasses.replace(tensor, **changes)))


NESTED = b")" + 20 * b"2\x86"  # (), then a pair of what is there twice, twenty deep; sixty deep takes for ever
LONG_LIST = b"(" + 99 * b"K\x01" + b"l"
ENDLESS_PICKLES = {
    "a key of pairs of pairs": (b"\x80\x02}" + NESTED + b"K\x01s.", "a key is no text"),
    "one of several keys": (b"\x80\x02}(K\x01K\x01" + NESTED + b"K\x01u.", "a key is no text"),
    "a key of a dict as it is made": (b"(" + NESTED + b"K\x01d.", "a key is no text"),
    "a member of a set": (b"\x80\x04\x8f(" + NESTED + b"\x90.", "a key is no text"),
    "a member of a frozen set": (b"\x80\x04(" + NESTED + b"\x91.", "a key is no text"),
    "a number of a thousand bits": (b"\x80\x02}\x8a\x7f" + 127 * b"\x01" + b"K\x01s.", "a key is no text"),
    "a long tuple": (b"\x80\x02}(" + 99 * b"K\x01" + b"tK\x01s.", "a key is no text"),
    "a dict made of a list": (b"\x80\x02ccollections\nOrderedDict\n]\x85R.", "TypeError"),
    "sizes made of a long list": (b"\x80\x02ctorch\nSize\n" + LONG_LIST + b"\x85R.", "has 99 axes"),
    "more sets than memory": (b"\x80\x04(" + 10**6 * b"\x8f" + b"t.", "more than 1,000,000 steps"),
}


@pytest.mark.parametrize("name", ENDLESS_PICKLES)
def test_a_small_pickle_takes_neither_long_nor_much_memory(release, tmp_path, name):
    data, message = ENDLESS_PICKLES[name]
    replaced_pickle(next(release.rglob("*.pt")), data)
    with pytest.raises(CheckpointError, match=rf"The pickle in .* cannot be read \(.*{message}"):
        convert(release, tmp_path / "out")


def test_a_table_with_a_huge_number_takes_little_memory():
    tracemalloc.start()
    try:
        unpickled = _InertUnpickler(HOSTILE_PICKLES["a number that asks for all of the memory"]).load()
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert unpickled == {}


def test_dicts_with_keys_of_all_plain_kinds_are_read(tmp_path):
    keys = ["text", 1, -(2**63), 0.5, b"bytes", True, None, (torch.bfloat16, "text"), torch.float32]
    saved = {"model": dict.fromkeys(keys, 3), "set": {1, "a"}, "ordered": OrderedDict(a=1)}
    torch.save(saved, tmp_path / "a.pt", pickle_protocol=4)
    with TorchArchive(FilePart.whole(tmp_path / "a.pt")) as archive:
        found = archive.value
    assert list(found["model"])[:5] == keys[:5]
    assert set(found["model"].values()) == {3}
    assert found["set"] == {1, "a"}
    assert found["ordered"] == {"a": 1}


def test_the_pickle_of_a_real_release_has_far_fewer_steps_than_allowed(tmp_path):
    """As many tensors as fuyu-8b has, each three times, as where an optimiser's are kept."""
    many = {f"{copy}.{name}": torch.ones(1) for copy in range(3) for name in tensors(num_hidden_layers=36)}
    torch.save({"model": many}, tmp_path / "many.pt")
    with zipfile.ZipFile(tmp_path / "many.pt") as archive:
        steps = sum(1 for _ in pickletools.genops(archive.read("many/data.pkl")))
    assert steps < MAX_STEPS / 10
    with TorchArchive(FilePart.whole(tmp_path / "many.pt")) as archive:
        assert len(archive.value["model"]) == len(many)


def test_a_dict_that_holds_itself_ends(tmp_path):
    model = nested(tensors())
    model["language_model"]["again"] = model
    write_folder(tmp_path / "release", checkpoint(model))
    with pytest.raises(CheckpointError, match=r'"model" in .* has no end'):
        convert(tmp_path / "release", tmp_path / "out")


def test_dicts_that_hold_a_large_one_many_times_take_little_memory(tmp_path):
    model = {}
    model |= {f"{number}": model for number in range(10_000)}
    write_folder(tmp_path / "release", checkpoint(model))
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r'"model" in .* has no end'):
            convert(tmp_path / "release", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def without(flat, *names):
    return {name: value for name, value in flat.items() if name not in names}


HEAD = "word_embeddings_for_head.weight"
NORM = "language_model.encoder.layers.2.self_attention.k_layernorm.bias"
WRONG_TENSORS = {
    "missing": (lambda flat: without(flat, NORM), r"lacks language_model\.encoder\.layers\.2.*k_layernorm\.bias"),
    "missing head": (lambda flat: without(flat, HEAD), r"lacks word_embeddings_for_head\.weight"),
    "unused": (
        lambda flat: flat | {"vit_encoder.extra.weight": torch.ones(2)},
        r"holds what no row of the table names: vit_encoder\.extra\.weight",
    ),
    "a name that writes to the terminal": (
        lambda flat: flat | {"\x1b[31mred": torch.ones(2)},
        r"names: '\\x1b\[31mred'",
    ),
    "a layer left out": (
        lambda flat: {name.replace("layers.1.", "layers.7."): value for name, value in flat.items()},
        r"lacks language_model\.encoder\.layers\.1\.",
    ),
    "a layer numbered beyond all": (
        lambda flat: {name.replace("layers.1.", "layers.999999999."): value for name, value in flat.items()},
        r"lacks language_model\.encoder\.layers\.1\.",
    ),
    "shape": (
        lambda flat: flat | {HEAD: torch.ones(41, 24)},
        r"word_embeddings_for_head\.weight must have the shape \(V, C\) = \(40, 24\), and has \(41, 24\)",
    ),
    "axes": (
        lambda flat: flat | {"language_model.embedding.word_embeddings.weight": torch.ones(40)},
        r"must have the shape",
    ),
    "width of a head": (
        lambda flat: {name: torch.ones(7) if "k_layer" in name or "q_layer" in name else x for name, x in flat.items()},
        r"the width 24 is no multiple of the width of a head, 7",
    ),
    "a patch": (
        lambda flat: flat | {"vit_encoder.linear_encoder.weight": torch.ones(24, 15)},
        r"a patch of 15 values is no square of 3 channels",
    ),
    "dtype": (
        lambda flat: flat | {HEAD: torch.ones(40, 24, dtype=torch.int8)},
        r"must be of bfloat16, .* and some are of int8",
    ),
    "no tensor": (lambda flat: flat | {HEAD: fuyu_release.Kind()}, r"must hold tensors, and word_embeddings_for_head"),
    "a number": (lambda flat: flat | {HEAD: 3}, r"must hold tensors, and word_embeddings_for_head\.weight is none"),
    "repeated numbers": (
        lambda flat: flat | {HEAD: torch.ones(1, 1).expand(40, 24)},
        r"word_embeddings_for_head\.weight of shape \(40, 24\) needs 3,840 bytes of data/\d+, which has 4 bytes",
    ),
}


@pytest.mark.parametrize("what", WRONG_TENSORS)
def test_tensors_that_are_missing_unused_or_wrong_are_named_and_nothing_is_written(tmp_path, what):
    change, message = WRONG_TENSORS[what]
    write_folder(tmp_path / "release", checkpoint(nested(change(tensors()))))
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path / "release", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("saved", [[1], {"state": {}}, {"model": [torch.ones(1)]}, torch.ones(3)], ids=repr)
def test_a_checkpoint_of_something_else_says_so(tmp_path, saved):
    write_folder(tmp_path / "release", saved)
    with pytest.raises(CheckpointError, match=r'must hold a dict whose "model" is a dict\. It is no release of Fuyu'):
        convert(tmp_path / "release", tmp_path / "out")


def flip_a_byte(path):
    """Change one number of the largest storage."""
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size * ("/data/" in info.filename))
        middle = info.header_offset + 30 + len(info.filename) + 64 + info.file_size // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 1
    path.write_bytes(data)


def drop_an_entry(path):
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    largest = max(entries, key=lambda entry: len(entry[1]) * ("/data/" in entry[0]))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            if (name, data) != largest:
                archive.writestr(name, data)


def compress(path):
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def big_endian(path):
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, b"big" if name.endswith("byteorder") else data)


def old_format(path):
    torch.save({"model": {}}, path, _use_new_zipfile_serialization=False)


DAMAGE = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "is no whole archive of torch.save"),
    "empty": (lambda path: path.write_bytes(b""), "is no whole archive of torch.save"),
    "a byte": (flip_a_byte, r"data/\d+ in .*model_optim_rng\.pt does not hold the bytes that were written"),
    "a storage": (drop_an_entry, r"of data/\d+, which is not there"),
    "compressed": (compress, "does not hold the bytes that were written"),
    "byte order": (big_endian, "written on a big-endian machine"),
    "old format": (old_format, "PyTorch before 1.6 wrote it; load it and save it again"),
    "no pickle": (lambda path: zipfile.ZipFile(path, "w").close(), r"lacks data\.pkl, so torch\.save did not write it"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_nothing_is_written(release, tmp_path, what):
    damage, message = DAMAGE[what]
    damage(next(release.rglob("*.pt")))
    with pytest.raises(CheckpointError, match=message):
        convert(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_release_that_lacks_a_file_or_has_one_twice_says_so(release, tmp_path):
    path = next(release.rglob("*.pt"))
    with pytest.raises(MissingFileError, match=r"nowhere does not exist\. Give the release's \.tar"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    (release / "adept_vocab.model").rename(tmp_path / "elsewhere.model")
    for source in (release, path):
        with pytest.raises(MissingFileError, match=r"lacks adept_vocab\.model.*--tokenizer"):
            convert(source, tmp_path / "out")
        convert(source, tmp_path / "converted", tokenizer=tmp_path / "elsewhere.model")
    with pytest.raises(MissingFileError, match="words does not exist"):
        convert(release, tmp_path / "out", tokenizer=tmp_path / "words")
    (tmp_path / "words").write_bytes(b"")
    with pytest.raises(CheckpointError, match="words has 0 bytes, so it is no vocabulary"):
        convert(release, tmp_path / "out", tokenizer=tmp_path / "words")
    second = release / "iter_0001251" / "mp_rank_01"
    second.mkdir()
    (second / "model_optim_rng.pt").write_bytes(path.read_bytes())
    with pytest.raises(
        CheckpointError, match=r"must hold one model_optim_rng\.pt, and holds 2: .*mp_rank_00.*mp_rank_01"
    ):
        convert(release, tmp_path / "out")
    path.unlink()
    (second / "model_optim_rng.pt").unlink()
    with pytest.raises(MissingFileError, match=r"lacks model_optim_rng\.pt"):
        convert(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_tar_is_refused(release, tmp_path):
    write_tar(tmp_path / "whole.tar", release)
    data = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"no whole \.tar|not there as a whole plain file"):
        convert(tmp_path / "cut.tar", tmp_path / "out")
    (tmp_path / "release.tar.gz").write_bytes(gzip.compress(data))
    with pytest.raises(CheckpointError, match=r"is compressed.*Unpack it"):
        convert(tmp_path / "release.tar.gz", tmp_path / "out")
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        for name in ("model_optim_rng.pt", "adept_vocab.model"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    with pytest.raises(CheckpointError, match="is not there as a whole plain file"):
        convert(tmp_path / "links.tar", tmp_path / "out")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
    with pytest.raises(MissingFileError, match=r"lacks model_optim_rng\.pt"):
        convert(tmp_path / "other.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_that_leads_back_ends(release, tmp_path):
    write_tar(tmp_path / "whole.tar", release)
    back = bytearray(tarfile.TarInfo("back").tobuf(tarfile.GNU_FORMAT))
    back[124:136] = (-512).to_bytes(12, "big", signed=True)
    back[148:156] = b" " * 8
    back[148:156] = b"%06o\0 " % sum(back)
    for start in (b"", tarfile.TarInfo("first").tobuf()):
        (tmp_path / "loop.tar").write_bytes(start + back + (tmp_path / "whole.tar").read_bytes())
        with pytest.raises(CheckpointError, match=r"no whole \.tar: 'back' does not lie behind"):
            convert(tmp_path / "loop.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tar_of_names_upon_names_ends(release, tmp_path):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2
    first = tarfile.TarInfo("first").tobuf()
    (tmp_path / "names.tar").write_bytes(first + 2000 * (name.tobuf() + b"a\0".ljust(512, b"\0")))
    with pytest.raises(CheckpointError, match=r"no whole \.tar"):
        convert(tmp_path / "names.tar", tmp_path / "out")


def test_an_older_tokenizer_in_the_target_goes(release, tmp_path):
    convert(release, tmp_path / "out")
    older = LlamaTokenizerFast(tmp_path / "out" / "tokenizer.model")
    older.add_tokens("bc")
    older.save_pretrained(tmp_path / "out")
    assert {"tokenizer.json", "special_tokens_map.json", "added_tokens.json"} <= names(tmp_path / "out")
    convert(release, tmp_path / "out")
    convert(release, tmp_path / "new")
    assert names(tmp_path / "out") == names(tmp_path / "new")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("abc")[-3:] == ["a", "b", "c"]


def test_an_interrupted_conversion_leaves_what_was_there(release, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(FuyuConfig, "save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(release, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"old"


def test_a_target_that_is_a_file_and_a_wrong_size_are_refused(release, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SaveError, match="is a file"):
        convert(release, tmp_path / "out")
    with pytest.raises(ValueError, match="max_shard_size must be a positive int"):
        convert(release, tmp_path / "other", max_shard_size="many")


MEASURE = """
import sys
from triptych.models.fuyu.conversion import convert
convert(sys.argv[1], sys.argv[2])
open("/proc/self/clear_refs", "w").write("5")
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
convert(sys.argv[3], sys.argv[4])
print(peak() - before, "torch" in sys.modules)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux' /proc")
def test_memory_does_not_grow_with_the_model_and_pytorch_is_not_needed(release, tmp_path):
    flat = tensors(hidden_size=1024, intermediate_size=4096, vocab_size=8192, num_attention_heads=16)
    write_folder(tmp_path / "large", checkpoint(nested(flat)))
    assert sum(value.nbytes for value in flat.values()) > 100e6
    command = [sys.executable, "-c", MEASURE, release, tmp_path / "a", tmp_path / "large", tmp_path / "b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, needs_torch = done.stdout.split()
    assert int(peak) < 60e6
    assert needs_torch == "False"


def test_the_command_converts_and_tells_what_it_made(release, tmp_path, run):
    out = run("convert", "fuyu", release, tmp_path / "out", "--json").out
    facts = json.loads(out)
    assert facts["config"]["num_attention_heads"] == 3
    assert facts["files"] == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    text = run("convert", "fuyu", release, tmp_path / "again", "--max-shard-size", "20KB").out
    assert "3 layers of 24 wide, 3 heads, 40 tokens, 16,384 positions" in text
    assert "model-00001-of-" in text
    done = run("convert", "fuyu", tmp_path / "nowhere", tmp_path / "other", code=1)
    assert "nowhere does not exist" in done.err
    assert done.err.count("\n") == 1
