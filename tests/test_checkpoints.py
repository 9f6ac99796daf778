"""Checkpoints of the reference load here in every format, and every documented option of loading does what it says."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from triptych.checkpoints.checkpoint import open_checkpoint
from triptych.checkpoints.locate import find_weights
from triptych.errors import CheckpointError, LoadingWarning, MissingFileError, WeightMismatchError
from triptych.hub import pop_options
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import (
    GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)

CASES = ["safetensors", "sharded_safetensors", "bin", "sharded_bin", "legacy_bin", "variant", "base"]
CLEAN = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(golden) -> Path:
    return golden / "checkpoints"


@pytest.fixture
def expected(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "expected.safetensors")


@torch.no_grad()
def logits_of(model: nn.Module, expected: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(expected["input_ids"], return_dict=False)[0]


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_format_of_the_reference_gives_its_logits(folder, expected, case, low_cpu_mem_usage):
    model, info = GPTNeoForCausalLM.from_pretrained(
        folder / case,
        variant="fp16" if case == "variant" else None,
        low_cpu_mem_usage=low_cpu_mem_usage,
        output_loading_info=True,
    )
    assert info == CLEAN
    torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)
    assert not model.training
    assert model.lm_head.weight is model.transformer.wte.weight
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.is_contiguous()
        assert parameter.data_ptr() % parameter.element_size() == 0


def test_half_precision_weights_give_the_logits_of_the_reference(folder, expected):
    model = GPTNeoForCausalLM.from_pretrained(folder / "fp16")
    assert model.dtype == torch.float32
    torch.testing.assert_close(logits_of(model, expected), expected["fp16_logits"], rtol=0, atol=2e-5)


def test_a_bare_model_reads_what_a_model_with_a_head_saved(folder, expected):
    bare, info = GPTNeoModel.from_pretrained(folder / "safetensors", output_loading_info=True)
    assert info == CLEAN
    full = GPTNeoForCausalLM.from_pretrained(folder / "base")
    for name, value in bare.state_dict().items():
        assert torch.equal(value, full.state_dict()[f"transformer.{name}"])


def test_safetensors_come_before_bin_and_use_safetensors_forces_one(folder, tmp_path):
    model = GPTNeoForCausalLM.from_pretrained(folder / "safetensors")
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(7)
    model.save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes((folder / "bin" / "pytorch_model.bin").read_bytes())
    for use_safetensors, is_seven in ((None, True), (True, True), (False, False)):
        loaded = GPTNeoForCausalLM.from_pretrained(tmp_path, use_safetensors=use_safetensors)
        assert bool((loaded.transformer.ln_f.bias == 7).all()) == is_seven
    with pytest.raises(MissingFileError, match=r"looked for model\.safetensors.*use_safetensors=True"):
        GPTNeoForCausalLM.from_pretrained(folder / "bin", use_safetensors=True)
    with pytest.raises(MissingFileError, match=r"looked for pytorch_model\.bin.*use_safetensors=False"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", use_safetensors=False)


def test_a_subfolder_is_read(folder, expected):
    model = GPTNeoForCausalLM.from_pretrained(folder, subfolder="sharded_bin")
    torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)


def test_a_sharded_model_in_the_hub_cache_loads_by_name_without_the_network(folder, expected, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    model = tmp_path / "models--owner--model"
    snapshot = model / "snapshots" / commit
    for part in (model / "blobs", model / "refs", snapshot):
        part.mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted((folder / "sharded_safetensors").iterdir())):
        (model / "blobs" / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    for name, options in (("owner/model", {"cache_dir": tmp_path, "local_files_only": True}), (snapshot, {})):
        loaded = GPTNeoForCausalLM.from_pretrained(name, **options)
        torch.testing.assert_close(logits_of(loaded, expected), expected["logits"], rtol=0, atol=2e-5)


def test_a_missing_variant_and_other_frameworks_files_are_explained(folder, tmp_path):
    with pytest.raises(MissingFileError, match=r"model\.int8\.safetensors.*holds .*model\.safetensors.*variant='int8'"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", variant="int8")
    (tmp_path / "config.json").write_bytes((folder / "bin" / "config.json").read_bytes())
    for name in ("flax_model.msgpack", "tf_model.h5"):
        (tmp_path / name).touch()
        with pytest.raises(MissingFileError, match=f"{name} cannot be read here yet"):
            GPTNeoForCausalLM.from_pretrained(tmp_path)


def test_tensors_are_listed_without_being_read_and_read_one_at_a_time(folder):
    for case in ("sharded_safetensors", "sharded_bin"):
        with open_checkpoint(find_weights(folder / case, pop_options({}))) as checkpoint:
            info = checkpoint.tensors["transformer.h.1.mlp.c_fc.weight"]
            assert (info.shape, info.dtype) == ((48, 32), "float32")
            one = checkpoint.read("transformer.h.1.mlp.c_fc.weight")
            mapped = checkpoint.read("transformer.h.1.mlp.c_fc.weight", mapped=True)
            half = checkpoint.read("transformer.h.1.mlp.c_fc.weight", dtype=torch.float16)
        assert torch.equal(one, mapped)
        assert torch.equal(one.half(), half)
    with open_checkpoint(find_weights(folder / "safetensors", pop_options({})), framework="np") as checkpoint:
        assert (checkpoint.read("transformer.h.1.mlp.c_fc.weight") == one.numpy()).all()


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("torch_dtype", "case", "dtype"),
    [
        (None, "fp16", torch.float32),
        ("auto", "fp16", torch.float16),
        ("auto", "safetensors", torch.float32),
        ("float16", "safetensors", torch.float16),
        ("torch.bfloat16", "sharded_bin", torch.bfloat16),
        (torch.bfloat16, "sharded_safetensors", torch.bfloat16),
        (torch.float64, "fp16", torch.float64),
    ],
)
def test_torch_dtype_decides_the_dtype_of_every_parameter(folder, torch_dtype, case, dtype):
    stored = GPTNeoForCausalLM.from_pretrained(folder / case, torch_dtype="auto").state_dict()
    model = GPTNeoForCausalLM.from_pretrained(folder / case, torch_dtype=torch_dtype)
    assert torch.get_default_dtype() == torch.float32
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(value, stored[name].to(dtype))


def test_auto_takes_the_dtype_of_the_weights_when_the_configuration_names_none(folder):
    config = GPTNeoConfig.from_pretrained(folder / "fp16")
    config.torch_dtype = None
    assert GPTNeoModel.from_pretrained(folder / "fp16", config=config, torch_dtype="auto").dtype == torch.float16


@pytest.mark.parametrize("torch_dtype", ["half-ish", torch.int8, "nn", 16])
def test_a_dtype_that_weights_cannot_have_is_refused(folder, torch_dtype):
    with pytest.raises(ValueError, match="torch_dtype must be"):
        GPTNeoModel.from_pretrained(folder / "safetensors", torch_dtype=torch_dtype)


def test_the_model_outlives_its_files_unless_it_is_memory_mapped(folder, expected, tmp_path):
    for case in ("safetensors", "bin"):
        target = tmp_path / case
        target.mkdir()
        for file in (folder / case).iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        model = GPTNeoForCausalLM.from_pretrained(target)
        for file in target.iterdir():
            file.write_bytes(b"\0" * file.stat().st_size)
        torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)


def test_training_a_memory_mapped_model_leaves_the_file_alone(folder):
    before = (folder / "safetensors" / "model.safetensors").read_bytes()
    model = GPTNeoForCausalLM.from_pretrained(folder / "safetensors", low_cpu_mem_usage=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (folder / "safetensors" / "model.safetensors").read_bytes() == before


def test_a_new_head_is_initialised_and_reported_and_nothing_else_changes(folder):
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        with pytest.warns(LoadingWarning, match=r"2 newly initialised.*classifier\.bias, classifier\.weight") as caught:
            model, info = GPTNeoForTokenClassification.from_pretrained(
                folder / "safetensors", num_labels=5, output_loading_info=True
            )
        assert caught[0].filename == __file__
        assert info == CLEAN | {"missing_keys": ["classifier.bias", "classifier.weight"]}
        weight = model.classifier.weight.detach()
        assert weight.shape == (5, 32)
        assert 0.15 < float(weight.std()) < 0.25  # initializer_range of this checkpoint is 0.2
        assert not model.classifier.bias.any()
        torch.manual_seed(seed)
        with pytest.warns(LoadingWarning):
            again = GPTNeoForTokenClassification.from_pretrained(folder / "safetensors", num_labels=5)
        assert torch.equal(weight, again.classifier.weight)
    stored = load_file(folder / "safetensors" / "model.safetensors")
    for name, value in model.transformer.state_dict().items():
        assert torch.equal(value, stored[f"transformer.{name}"])


def test_only_the_missing_half_of_a_layer_is_initialised(folder):
    state = load_file(folder / "safetensors" / "model.safetensors")
    kept = state.pop("transformer.h.0.mlp.c_fc.weight")
    del state["transformer.h.1.mlp.c_fc.bias"], state["transformer.ln_f.weight"]
    with pytest.warns(LoadingWarning, match="3 newly initialised"):
        model = GPTNeoForCausalLM.from_pretrained(folder / "safetensors", state_dict=state)
    first, second = (block.mlp.c_fc for block in model.transformer.h)
    assert not torch.equal(first.weight, kept)
    assert torch.equal(first.bias, state["transformer.h.0.mlp.c_fc.bias"])
    assert torch.equal(second.weight, state["transformer.h.1.mlp.c_fc.weight"])
    assert not second.bias.any()
    assert bool((model.transformer.ln_f.weight == 1).all())
    assert torch.equal(model.transformer.ln_f.bias, state["transformer.ln_f.bias"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_unexpected_tensors_are_reported_and_old_buffers_are_not(folder):
    state = load_file(folder / "safetensors" / "model.safetensors")
    state["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    state["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            GPTNeoForCausalLM.from_pretrained(folder / "safetensors", state_dict=state, output_loading_info=True)[1]
            == CLEAN
        )
    state |= {f"extra.{number:02d}": torch.zeros(1) for number in range(22)}
    with pytest.warns(LoadingWarning, match=r"22 not used.*extra\.09, … and 12 more"):
        info = GPTNeoForCausalLM.from_pretrained(folder / "safetensors", state_dict=state, output_loading_info=True)[1]
    assert info["unexpected_keys"] == [f"extra.{number:02d}" for number in range(22)]


def test_the_head_of_another_task_is_reported_on_both_sides(folder, tmp_path):
    with pytest.warns(LoadingWarning, match=r"qa_outputs\.bias, qa_outputs\.weight"):
        GPTNeoForQuestionAnswering.from_pretrained(folder / "base").save_pretrained(tmp_path)
    with pytest.warns(LoadingWarning) as caught:
        info = GPTNeoForTokenClassification.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert info["missing_keys"] == ["classifier.bias", "classifier.weight"]
    assert info["unexpected_keys"] == ["qa_outputs.bias", "qa_outputs.weight"]
    assert len(caught) == 1


def test_shapes_that_differ_are_listed_and_may_be_initialised_anew(folder, tmp_path):
    with pytest.warns(LoadingWarning):
        GPTNeoForSequenceClassification.from_pretrained(folder / "base", num_labels=3).save_pretrained(tmp_path)
    with pytest.raises(WeightMismatchError, match=r"score\.weight: \(3, 32\).*\(5, 32\)[\s\S]*num_labels") as caught:
        GPTNeoForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert isinstance(caught.value, RuntimeError)
    with pytest.warns(LoadingWarning, match=r"score\.weight \(3, 32\) → \(5, 32\)"):
        model, info = GPTNeoForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert info == CLEAN | {"mismatched_keys": [("score.weight", torch.Size([3, 32]), torch.Size([5, 32]))]}
    assert model.score.weight.shape == (5, 32)
    assert model.score.weight.any()


def test_an_untied_head_that_the_checkpoint_lacks_is_missing(folder):
    with pytest.warns(LoadingWarning, match=r"1 newly initialised.*lm_head\.weight"):
        model = GPTNeoForCausalLM.from_pretrained(folder / "safetensors", tie_word_embeddings=False)
    assert model.lm_head.weight is not model.transformer.wte.weight
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_a_checkpoint_of_something_else_says_so(folder):
    with pytest.raises(CheckpointError, match=r"none of the 1 tensors of state_dict fits; it has encoder\.weight"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", state_dict={"encoder.weight": torch.ones(1)})


def test_weights_that_are_whole_numbers_are_refused(folder):
    state = dict(GPTNeoForCausalLM.from_pretrained(folder / "safetensors").state_dict())
    name = next(name for name in state if name.endswith("c_fc.weight"))
    state[name] = (state[name] * 100).to(torch.int8)  # as programs that quantise write them
    with pytest.raises(CheckpointError, match=r"stored as floats, but 1 in .*c_fc\.weight \(int8\)"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", state_dict=state)


def test_a_state_dict_is_copied_and_needs_no_folder(folder, expected):
    state = load_file(folder / "safetensors" / "model.safetensors")
    config = GPTNeoConfig.from_pretrained(folder / "safetensors")
    model = GPTNeoForCausalLM.from_pretrained(None, config=config, state_dict=state)
    for value in state.values():
        value.zero_()
    torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="A folder or hub name is needed"):
        GPTNeoForCausalLM.from_pretrained(None, config=config)


def test_keyword_arguments_change_the_configuration_or_are_refused_by_name(folder):
    model = GPTNeoForCausalLM.from_pretrained(
        folder / "safetensors", use_cache=False, resid_dropout=0.5, attn_implementation="eager"
    )
    assert (model.config.use_cache, model.config.resid_dropout) == (False, 0.5)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'use_cash'.*did you mean 'use_cache'\?"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", use_cash=False)
    with pytest.raises(TypeError, match=r"did you mean 'quantization'\?"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", quantisation="int8")
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'use_cache'.*set on the object\)\.$"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", config=model.config, use_cache=True)


def test_the_configuration_may_be_an_object_or_another_file(folder):
    config = GPTNeoConfig.from_pretrained(folder / "base", window_size=9)
    model = GPTNeoForCausalLM.from_pretrained(folder / "bin", config=config)
    assert model.config == config
    assert model.config is not config  # what the model does to its own does not reach other models
    other = GPTNeoForCausalLM.from_pretrained(folder / "bin", config=folder / "base" / "config.json")
    assert other.config.architectures == ["GPTNeoModel"]
    assert other.name_or_path == other.config.name_or_path == str(folder / "bin")


def test_arguments_of_a_users_own_constructor_reach_it(folder):
    class WithScale(GPTNeoModel):
        def __init__(self, config: GPTNeoConfig, shift: float, *, scale: float = 1.0) -> None:
            super().__init__(config)
            self.scale, self.shift = scale, shift
            self.register_buffer("table", torch.arange(4.0) * scale, persistent=False)
            self.register_buffer("scratch", torch.empty(3), persistent=False)

    model = WithScale.from_pretrained(folder / "base", 2.0, scale=3.0)
    assert (model.scale, model.shift) == (3.0, 2.0)
    assert model.table.tolist() == [0.0, 3.0, 6.0, 9.0]
    assert model.scratch.device.type == "cpu"


def test_generation_options_come_from_their_file_or_else_the_configuration(folder, tmp_path):
    model = GPTNeoForCausalLM.from_pretrained(folder / "safetensors")
    assert model.generation_config.eos_token_id == 60
    model.generation_config.max_new_tokens = 11
    model.save_pretrained(tmp_path)
    assert GPTNeoForCausalLM.from_pretrained(tmp_path).generation_config.max_new_tokens == 11
    (tmp_path / "generation_config.json").unlink()
    assert GPTNeoForCausalLM.from_pretrained(tmp_path).generation_config.max_new_tokens is None


@pytest.mark.parametrize("option", ["from_tf", "from_flax"])
def test_what_is_not_supported_is_refused_by_name(folder, option):
    with pytest.raises(ValueError, match=f"{option} was given"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", **{option: True})


def test_options_without_effect_are_accepted(folder):
    GPTNeoForCausalLM.from_pretrained(
        folder / "safetensors", mirror="x", proxies={}, resume_download=True, trust_remote_code=True, from_tf=False
    )


# -- device maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, torch.device("cpu")])
def test_one_device_needs_no_accelerate(folder, expected, monkeypatch, device_map):
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    model = GPTNeoForCausalLM.from_pretrained(folder / "safetensors", device_map=device_map)
    torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)
    assert {str(device) for device in model.hf_device_map.values()} == {"cpu"}
    with pytest.raises(ImportError, match=r"triptych\[device-map\]"):
        GPTNeoForCausalLM.from_pretrained(folder / "safetensors", device_map="auto")


@pytest.mark.parametrize("device_map", ["auto", "balanced", "balanced_low_0", "sequential"])
def test_accelerate_spreads_the_model(folder, expected, device_map):
    model = GPTNeoForCausalLM.from_pretrained(folder / "sharded_safetensors", device_map=device_map)
    torch.testing.assert_close(logits_of(model, expected).cpu(), expected["logits"], rtol=0, atol=2e-5)
    assert model.hf_device_map


def test_parts_of_the_model_may_live_on_disk(folder, expected, tmp_path):
    parts = ("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.ln_f", "lm_head")
    device_map = dict.fromkeys(parts, "cpu") | {"transformer.h.1": "disk"}
    with pytest.raises(ValueError, match="offload_folder is needed"):
        GPTNeoForCausalLM.from_pretrained(folder / "bin", device_map=device_map)
    model = GPTNeoForCausalLM.from_pretrained(folder / "bin", device_map=device_map, offload_folder=tmp_path)
    torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)
    assert model.transformer.h[1].mlp.c_fc.weight.device.type == "meta"
    assert (tmp_path / "index.json").is_file()


def test_a_model_that_is_partly_on_disk_generates_the_same(folder, tmp_path):
    parts = ("transformer.wte", "transformer.wpe", "transformer.h.0", "transformer.ln_f", "lm_head")
    device_map = dict.fromkeys(parts, "cpu") | {"transformer.h.1": "disk"}
    model = GPTNeoForCausalLM.from_pretrained(folder / "bin", device_map=device_map, offload_folder=tmp_path)
    ids = torch.arange(8).view(2, 4)
    expected = GPTNeoForCausalLM.from_pretrained(folder / "bin").generate(ids, max_new_tokens=4, pad_token_id=0)
    assert model.generate(ids, max_new_tokens=4, pad_token_id=0).tolist() == expected.tolist()


def test_tied_and_new_weights_may_live_on_disk(folder, expected, tmp_path):
    device_map = {"transformer": "cpu", "lm_head": "disk"}
    model = GPTNeoForCausalLM.from_pretrained(
        folder / "safetensors", device_map=device_map, offload_folder=tmp_path / "tied"
    )
    torch.testing.assert_close(logits_of(model, expected), expected["logits"], rtol=0, atol=2e-5)
    with pytest.warns(LoadingWarning):
        model = GPTNeoForTokenClassification.from_pretrained(
            folder / "safetensors",
            device_map={"transformer": "cpu", "dropout": "cpu", "classifier": "disk"},
            offload_folder=tmp_path / "new",
        )
    assert logits_of(model, expected).std() > 0


def test_a_device_map_that_is_none_is_refused(folder):
    with pytest.raises(ValueError, match="device_map must be one of auto"):
        GPTNeoForCausalLM.from_pretrained(folder / "bin", device_map="somewhere")
    with pytest.raises(ValueError, match=r"must cover the whole model, but lm_head\.weight"):
        GPTNeoForCausalLM.from_pretrained(folder / "bin", device_map={"transformer.wte": "cpu"})
