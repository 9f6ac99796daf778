"""Damaged, mislabelled and hostile checkpoints give an error that names the file or key, and nothing is run."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.errors import CheckpointError, InvalidFileError, MissingFileError, UnsafeFileError, WeightMismatchError
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

SHARD = "model-00002-of-00004.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(golden, tmp_path) -> Path:
    return shutil.copytree(golden / "checkpoints" / "sharded_safetensors", tmp_path / "sharded")


@pytest.fixture
def whole(golden, tmp_path) -> Path:
    return shutil.copytree(golden / "checkpoints" / "safetensors", tmp_path / "whole")


@pytest.fixture
def pickled(golden, tmp_path) -> Path:
    return shutil.copytree(golden / "checkpoints" / "bin", tmp_path / "bin")


class Payload:
    """Writes a file when it is unpickled by an unpickler that runs code."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def change_index(folder: Path, shard: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["transformer.wpe.weight"] = shard
    (folder / INDEX).write_text(json.dumps(index))


def test_a_missing_shard_is_named(sharded):
    (sharded / SHARD).unlink()
    with pytest.raises(MissingFileError, match=rf"names 4 shards, but 1 of them cannot be found: {SHARD}"):
        GPTNeoForCausalLM.from_pretrained(sharded)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_shard_is_named(sharded, keep, low_cpu_mem_usage):
    data = (sharded / SHARD).read_bytes()
    (sharded / SHARD).write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=rf"{SHARD} is not a whole safetensors file.*fetch it again"):
        GPTNeoForCausalLM.from_pretrained(sharded, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_a_truncated_file_is_named(whole, keep):
    file = whole / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        GPTNeoForCausalLM.from_pretrained(whole)


@pytest.mark.parametrize("start", [b"\xff" * 8, (2**40).to_bytes(8, "little"), (10**8).to_bytes(8, "little")])
def test_a_header_that_claims_a_huge_size_is_refused(whole, start):
    file = whole / "model.safetensors"
    file.write_bytes(start + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        GPTNeoForCausalLM.from_pretrained(whole)


def test_a_header_whose_tensors_overlap_or_overflow_is_refused(whole):
    for offsets in ([0, 2**62], [8, 4], [0, 10**6]):
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": offsets}}).encode()
        (whole / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole"):
            GPTNeoForCausalLM.from_pretrained(whole)


def test_a_git_lfs_pointer_is_recognised(whole):
    (whole / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        GPTNeoForCausalLM.from_pretrained(whole)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 300, 40_000, -400])
def test_a_truncated_bin_file_is_named(golden, pickled, keep, legacy):
    source = golden / "checkpoints" / ("legacy_bin" if legacy else "bin") / "pytorch_model.bin"
    (pickled / "pytorch_model.bin").write_bytes(source.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a whole PyTorch weight file") as caught:
        GPTNeoForCausalLM.from_pretrained(pickled)
    assert not isinstance(caught.value, UnsafeFileError)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_bin_file_is_never_run(pickled, tmp_path, legacy):
    ran = tmp_path / "ran"
    state = {"transformer.wte.weight": torch.ones(61, 32), "extra": Payload(ran)}
    torch.save(state, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin may hold tensors only.*(posix|nt)\.system"):
        GPTNeoForCausalLM.from_pretrained(pickled)
    assert not ran.exists()


def test_an_object_of_a_class_in_a_bin_file_is_refused_by_name(pickled):
    torch.save({"weight": torch.ones(1), "config": Path("x")}, pickled / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match=r"pytorch_model\.bin may hold tensors only.*pathlib"):
        GPTNeoForCausalLM.from_pretrained(pickled)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, r"'state_dict' \(dict\), 'epoch' \(int\)"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
        ({1: torch.ones(1)}, r"1 \(Tensor\)"),
        ({"a": torch.eye(2).to_sparse()}, r"'a' \(Tensor\)"),
    ],
)
def test_a_bin_file_that_is_no_state_dict_names_what_it_holds(pickled, value, message):
    torch.save(value, pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        GPTNeoForCausalLM.from_pretrained(pickled)


@pytest.mark.parametrize(
    "shard",
    ["../whole/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x", "C:x", "..", ".", "", "a\0b", 3, None],
)
def test_an_index_that_points_outside_the_folder_is_refused(sharded, whole, shard):
    change_index(sharded, shard)
    with pytest.raises(CheckpointError, match=r"index\.json must name shards that lie beside it.*transformer\.wpe"):
        GPTNeoForCausalLM.from_pretrained(sharded)


def test_a_shard_that_is_a_link_to_a_file_elsewhere_is_refused(sharded, whole):
    (sharded / SHARD).rename(whole / SHARD)
    (sharded / SHARD).symlink_to(whole / SHARD)
    with pytest.raises(CheckpointError, match=rf"{SHARD} is a link to .*whole"):
        GPTNeoForCausalLM.from_pretrained(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_an_index_that_is_not_json_is_named(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(InvalidFileError, match=INDEX):
        GPTNeoForCausalLM.from_pretrained(sharded)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_weight_map_is_named(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=rf'{INDEX} must have a "weight_map"'):
        GPTNeoForCausalLM.from_pretrained(sharded)


def test_a_tensor_that_is_not_in_the_shard_the_index_says_is_named(sharded):
    change_index(sharded, SHARD.replace("00002", "00004"))
    with pytest.raises(CheckpointError, match=r"transformer\.wpe\.weight is in model-00004.*not there"):
        GPTNeoForCausalLM.from_pretrained(sharded)


def test_a_tensor_of_a_wrong_shape_is_named_with_both_shapes(whole):
    state = load_file(whole / "model.safetensors")
    state["transformer.h.1.ln_2.bias"] = torch.zeros(31)
    save_file(state, whole / "model.safetensors")
    with pytest.raises(WeightMismatchError, match=r"transformer\.h\.1\.ln_2\.bias: \(31,\) .*\(32,\)"):
        GPTNeoForCausalLM.from_pretrained(whole)


def test_a_safetensors_file_named_bin_and_the_reverse_are_refused(whole, pickled):
    safetensors, pickle = whole / "model.safetensors", pickled / "pytorch_model.bin"
    swapped = safetensors.read_bytes()
    safetensors.write_bytes(pickle.read_bytes())
    pickle.write_bytes(swapped)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not"):
        GPTNeoForCausalLM.from_pretrained(whole)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin (is not|may hold)"):
        GPTNeoForCausalLM.from_pretrained(pickled)


def test_a_weight_file_in_place_of_a_folder_is_explained(whole):
    with pytest.raises(OSError, match=r"model\.safetensors"):
        GPTNeoForCausalLM.from_pretrained(whole / "model.safetensors", config=whole / "config.json")
