"""Saving writes what the reference writes, all of it or nothing."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from triptych.checkpoints import safetensors_file
from triptych.checkpoints.index import StoredTensor, parse_size, plan_shards
from triptych.errors import LoadingWarning, SaveError
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM, GPTNeoModel


@pytest.fixture
def folder(golden) -> Path:
    return golden / "checkpoints"


@pytest.fixture
def model(folder) -> GPTNeoForCausalLM:
    return GPTNeoForCausalLM.from_pretrained(folder / "safetensors")


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    values = other.state_dict()
    return all(torch.equal(value, values[name]) for name, value in model.state_dict().items())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("safetensors", {}),
        ("sharded_safetensors", {"max_shard_size": "20KB"}),
        ("bin", {"safe_serialization": False}),
        ("sharded_bin", {"safe_serialization": False, "max_shard_size": 20_000}),
        ("variant", {"variant": "fp16", "max_shard_size": "20KB"}),
    ],
)
def test_the_files_are_those_of_the_reference(folder, model, tmp_path, case, options):
    model.save_pretrained(tmp_path, **options)
    assert names(tmp_path) == names(folder / case)
    for file in names(tmp_path):
        if not file.endswith(".bin"):  # a zip holds dates
            assert (tmp_path / file).read_bytes() == (folder / case / file).read_bytes(), file
    assert same_weights(GPTNeoForCausalLM.from_pretrained(tmp_path, variant=options.get("variant")), model)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"safe_serialization": False}])
def test_whoever_may_read_the_configuration_may_read_the_weights(model, tmp_path, options):
    model.save_pretrained(tmp_path, **options)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert set(modes.values()) == {modes["config.json"]}


def test_half_precision_and_a_bare_model_come_back(model, tmp_path):
    model.half().save_pretrained(tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    assert same_weights(GPTNeoForCausalLM.from_pretrained(tmp_path / "half", torch_dtype="auto"), model)
    model.transformer.save_pretrained(tmp_path / "bare")
    assert names(tmp_path / "bare") == ["config.json", "model.safetensors"]
    bare = GPTNeoModel.from_pretrained(tmp_path / "bare", torch_dtype="auto")
    assert same_weights(bare, model.transformer)
    assert bare.config.architectures == ["GPTNeoModel"]


def test_the_file_says_that_it_is_pytorchs(model, tmp_path):
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - not a dict


def test_an_untied_head_is_written(folder, tmp_path):
    config = GPTNeoConfig.from_pretrained(folder / "safetensors", tie_word_embeddings=False)
    model = GPTNeoForCausalLM(config)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" in load_file(tmp_path / "model.safetensors")
    assert same_weights(GPTNeoForCausalLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("safe_serialization", [True, False])
def test_shared_transposed_and_sliced_tensors_come_back(model, tmp_path, safe_serialization):
    first, second = model.transformer.h
    second.mlp.c_fc.weight = first.mlp.c_fc.weight
    first.attn.attention.q_proj.weight = torch.nn.Parameter(torch.randn(32, 32).T)
    first.attn.attention.k_proj.weight = torch.nn.Parameter(torch.randn(64, 64)[:32, 7:39])
    both = torch.randn(2, 32, 32)
    first.attn.attention.v_proj.weight = torch.nn.Parameter(both[0])
    second.attn.attention.v_proj.weight = torch.nn.Parameter(both[1])
    model.save_pretrained(tmp_path, safe_serialization=safe_serialization)
    loaded = GPTNeoForCausalLM.from_pretrained(tmp_path)
    assert same_weights(loaded, model)
    assert all(parameter.is_contiguous() for parameter in loaded.parameters())


def test_a_given_state_dict_is_what_is_written(model, tmp_path):
    state = {name: value + 1 for name, value in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = GPTNeoForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_save_function_is_called_for_bin_files(model, tmp_path):
    written = []

    def save(state, path):
        written.append(Path(path).name)
        torch.save(state, path)

    model.save_pretrained(tmp_path, safe_serialization=False, save_function=save)
    assert written == ["pytorch_model.bin"]
    assert same_weights(GPTNeoForCausalLM.from_pretrained(tmp_path), model)


def test_only_the_main_process_writes(model, tmp_path):
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()


def test_weights_of_an_earlier_save_go_and_all_else_stays(model, tmp_path):
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size="20KB")
    model.save_pretrained(tmp_path, variant="fp16")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "model.txt").write_text("mine")
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size="40KB")
    configs = ["config.json", "generation_config.json"]
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    others = ["model.fp16.safetensors", "model.txt", "notes.txt"]
    assert names(tmp_path) == sorted([*configs, *shards, "pytorch_model.bin.index.json", *others])
    model.save_pretrained(tmp_path, safe_serialization=False)
    assert names(tmp_path) == sorted([*configs, "pytorch_model.bin", *others])


def test_both_formats_stand_side_by_side_with_a_word_about_which_is_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.warns(LoadingWarning, match=r"also holds model\.safetensors"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    for use_safetensors in (True, False):
        assert same_weights(GPTNeoForCausalLM.from_pretrained(tmp_path, use_safetensors=use_safetensors), model)


@pytest.mark.filterwarnings("ignore:temperature=0.7 has an effect only in sampling")
def test_generation_options_that_do_not_fit_each_other_do_not_lose_the_weights(model, tmp_path):
    model.generation_config.temperature = 0.7  # without do_sample
    model.save_pretrained(tmp_path)
    assert same_weights(GPTNeoForCausalLM.from_pretrained(tmp_path), model)
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.7


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}, {"safe_serialization": False}])
def test_a_memory_mapped_model_is_saved_over_its_own_files(folder, model, tmp_path, options):
    for case in ("sharded_safetensors", "bin"):
        target = shutil.copytree(folder / case, tmp_path / case)
        mapped = GPTNeoForCausalLM.from_pretrained(target, low_cpu_mem_usage=True)
        with torch.no_grad():
            mapped.transformer.ln_f.bias.add_(1)
            model.transformer.ln_f.bias.copy_(mapped.transformer.ln_f.bias)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LoadingWarning)  # of two formats side by side
            mapped.save_pretrained(target, **options)
        assert same_weights(mapped, model)
        written = options.get("safe_serialization", True)
        assert same_weights(GPTNeoForCausalLM.from_pretrained(target, use_safetensors=written), model)


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (KeyboardInterrupt, KeyboardInterrupt),
        (OSError(28, "No space left on device"), SaveError),
        (SafetensorError("Error while serializing: I/O error"), SaveError),
    ],
)
@pytest.mark.parametrize("at", [1, 3])
def test_an_interrupted_save_leaves_the_old_checkpoint(folder, model, tmp_path, monkeypatch, error, seen, at):
    target = shutil.copytree(folder / "sharded_safetensors", tmp_path / "model")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    write, calls = safetensors_file.write_file, 0

    def failing(tensors, path):
        nonlocal calls
        calls += 1
        if calls == at:
            path.write_bytes(b"half")
            raise error
        write(tensors, path)

    monkeypatch.setattr(safetensors_file, "write_file", failing)
    with torch.no_grad():
        changed = GPTNeoForCausalLM.from_pretrained(target)
        changed.transformer.wte.weight.zero_()
    with pytest.raises(seen):
        changed.save_pretrained(target, max_shard_size="20KB")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert same_weights(GPTNeoForCausalLM.from_pretrained(target), model)


def test_an_interruption_while_files_change_places_leaves_the_old_checkpoint(folder, model, tmp_path, monkeypatch):
    target = shutil.copytree(folder / "sharded_safetensors", tmp_path / "model")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    replace, calls = Path.replace, 0

    def failing(self, other):
        nonlocal calls
        if Path(other).parent == target:
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", failing)
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(target)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_target_that_is_a_file_or_cannot_be_written_is_named(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match="file is a file"):
        model.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(SaveError, match="Nothing can be written in"):
        model.save_pretrained(tmp_path)
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_reported_with_the_file(model, tmp_path):
    def save(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match=r"pytorch_model\.bin cannot be written .*No space left"):
        model.save_pretrained(tmp_path, safe_serialization=False, save_function=save)
    assert names(tmp_path) == []


def test_weights_without_memory_cannot_be_saved(model, tmp_path):
    model.transformer.h[1].to("meta")
    with pytest.raises(ValueError, match=r"13 are not .*transformer\.h\.1"):
        model.save_pretrained(tmp_path)


def test_unknown_arguments_and_push_to_hub_are_refused(model, tmp_path):
    with pytest.raises(TypeError, match="'max_shard'"):
        model.save_pretrained(tmp_path, max_shard="5GB")
    with pytest.raises(ValueError, match="push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("200MB", 2 * 10**8),
        ("10KB", 10**4),
        ("10 kib", 10240),
        ("1MiB", 2**20),
        ("2GiB", 2**31),
        (123, 123),
    ],
)
def test_sizes_of_shards_are_read_as_documented(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("size", ["5", "5TB", "0.5GB", "", "GB", 0, -1, "0KB", 1.5, None, True])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="max_shard_size must be"):
        parse_size(size)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), min_size=1, max_size=30), st.integers(1, 60))
def test_shards_keep_the_order_hold_every_tensor_once_and_stay_below_the_limit(sizes, limit):
    tensors = [StoredTensor(str(i), size, ("shared", group) if group else i) for i, (size, group) in enumerate(sizes)]
    shards = plan_shards(tensors, limit)
    assert sorted(int(name) for shard in shards for name in shard) == list(range(len(sizes)))
    by_name = {tensor.name: tensor for tensor in tensors}
    home = {}
    for number, shard in enumerate(shards):
        assert shard
        assert [int(name) for name in shard] == sorted(int(name) for name in shard)
        first = {}
        for name in shard:
            first.setdefault(by_name[name].storage, by_name[name].nbytes)
            assert home.setdefault(by_name[name].storage, number) == number
        assert len(first) == 1 or sum(first.values()) <= limit
