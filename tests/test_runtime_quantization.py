"""Weights of 8 and 4 bits: close to the float ones, smaller, asked for everywhere by one argument, and undone."""

import copy
import json
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from decoding_models import FAMILIES, by_forward, is_prepared, written
from gpt_neo_models import tokens
from triptych import AutoModelForCausalLM, AutoTokenizer, GPTNeoForCausalLM, GPTNeoForSequenceClassification
from triptych.cli import app
from triptych.models.openai_gpt.modeling_torch import Conv1D
from triptych.runtime import quantization
from triptych.runtime.int4_linear import Int4Linear
from triptych.runtime.int8_linear import Int8Linear
from triptych.runtime.quantization import quantized_layers
from triptych.runtime.quantized_linear import QuantizedLinear
from triptych.runtime.torchao_linear import TorchaoInt4Linear, TorchaoInt8Linear

LAYERS: dict[str, type[QuantizedLinear]] = {
    "int8": Int8Linear,
    "int4": Int4Linear,
    "int8 of torchao": TorchaoInt8Linear,
    "int4 of torchao": TorchaoInt4Linear,
}
ROUNDING = {"int8": 0.02, "int4": 0.15}  # how far a layer's output, and
FAR = {"int8": 0.1, "int4": 0.5}  # how far a small model's logits may be from the float ones, of their length
SIZES: dict[str, dict[str, Any]] = {  # what 32 divides, so that 4 bits can be had
    "gpt_neo": {"hidden_size": 96},
    "openai_gpt": {"n_embd": 96},
    "fuyu": {"hidden_size": 96, "intermediate_size": 160},
}
BOX = ["triptych/tales-neo", "triptych/tales-gpt"]
STORY = (
    "The old sailor sat by the fire and told the children of the storm. The wind had taken the masts, he said, and "
    "for three days they had nothing to drink but rain. On the fourth day a boy cried out that he could see land, and "
    "they all went up on deck to look. It was a little island with a hill in the middle and a white beach round it. "
    "They let down the boat and rowed to the shore, where a great many birds flew up and screamed at them. 'There must "
    "be water here,' said the captain, 'or the birds would not stay.' So they walked along the sand until they came to "
    "a stream, and every man lay down on his face and drank."
)


@pytest.fixture(params=LAYERS)
def layer_class(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[QuantizedLinear]:
    """What is to hold weights on the CPU; what is for a GPU elsewhere runs here, on kernels made for the test."""
    made = LAYERS[request.param]
    monkeypatch.setitem(quantization.LAYERS, (made.quantization, "cpu"), made)
    if made is TorchaoInt4Linear:
        request.getfixturevalue("kernels_of_a_gpu")
    return made


@pytest.fixture
def kind(layer_class: type[QuantizedLinear]) -> str:
    return layer_class.quantization


@pytest.fixture
def kernels_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two int4 products of PyTorch that only GPUs have, by their documented interface, for the CPU."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_convert_weight_to_int4pack", _packed, "CPU")
        library.impl("_weight_int4pack_mm", _product, "CPU")
        yield


def _packed(pairs: torch.Tensor, inner_tiles: int) -> torch.Tensor:  # (out, in / 2) of uint8, the first half on top
    rows, half = pairs.shape
    return pairs.view(torch.int32).view(rows // 8, half // (8 * inner_tiles), 32, inner_tiles // 2)


def _product(x: torch.Tensor, packed: torch.Tensor, group: int, scales: torch.Tensor) -> torch.Tensor:
    pairs = packed.reshape(-1).view(torch.uint8).view(-1, x.shape[1] // 2)
    steps = torch.stack([pairs >> 4, pairs & 15], dim=-1).view(len(pairs), -1, group).float() - 8
    scale, offset = scales.float().transpose(0, 1)[..., None].unbind(2)  # (out, groups, 1)
    return (x.float() @ (steps * scale + offset).flatten(1).t()).bfloat16()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return _small(request.param)


def _small(family: str, **options: Any) -> Any:
    return FAMILIES[family](**SIZES[family], **options)


def _distance(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.float() - want.float()).norm() / want.float().norm())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sizes", [(40, 96), (130, 64), (64, 256)])
def test_a_quantised_layer_is_close_to_its_float_one(
    layer_class: type[QuantizedLinear], transposed: bool, sizes: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer: Any = Conv1D(*sizes) if transposed else nn.Linear(*reversed(sizes))
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    short = layer_class.of(layer)
    bits = {"int8": 8, "int4": 4}[short.quantization]
    with torch.no_grad():
        for rows in (1, 2, 9):
            x = torch.randn(rows, 3, sizes[1])
            assert _distance(short(x), layer(x)) < ROUNDING[short.quantization]
        weight, bias = short.weight_and_bias()
        assert weight.shape == layer.weight.shape
        assert torch.equal(bias, layer.bias)
        assert _distance(short(x), short.restored()(x)) < 0.02
        assert short(x.bfloat16()).dtype == torch.bfloat16
        assert short(x[:, -1]).shape == (9, sizes[0])
        assert short(x[:0]).shape == (0, 3, sizes[0])
    spread = layer.weight.abs().max() * 2 / (2**bits - 2)
    assert (weight - layer.weight).abs().max() <= 0.51 * spread
    assert short.numel == layer.weight.numel() + layer.bias.numel()


def test_sums_in_float16_have_room(layer_class: type[QuantizedLinear]) -> None:
    layer = nn.Linear(512, 8, dtype=torch.float16)
    nn.init.constant_(layer.weight, 0.1)
    with torch.no_grad():
        out = layer_class.of(layer)(torch.full((3, 512), 30.0, dtype=torch.float16))
    assert _distance(out, torch.full((3, 8), 1536.0)) < 0.01


def test_weights_of_8_bits_are_rounded_to_the_nearest_step() -> None:
    layer = nn.Linear(70, 40)
    weight = Int8Linear.of(layer).weight_and_bias()[0]
    assert ((weight - layer.weight).abs() <= 0.501 * layer.weight.abs().amax(dim=1, keepdim=True) / 127).all()


@pytest.mark.parametrize(("in_features", "group"), [(768, 64), (192, 64), (96, 32)])
def test_weights_of_4_bits_have_scales_for_groups_of_inputs(in_features: int, group: int) -> None:
    layer = nn.Linear(in_features, 100)
    short = Int4Linear.of(layer)
    assert short.group == group
    assert short.nbytes == 128 * (in_features // 2 + in_features // group * 4) + 400  # 100 outputs fill up two blocks
    weight = short.weight_and_bias()[0].view(100, -1, group)
    assert max(len(values.unique()) for row in weight for values in row) <= 16
    spread = layer.weight.view(100, -1, group)
    step = (spread.amax(dim=2) - spread.amin(dim=2)) / 15
    assert ((weight - spread).abs() <= 0.55 * step[..., None]).all()  # scales are of 8 digits


def test_a_matrix_of_zeros_stays_one(layer_class: type[QuantizedLinear]) -> None:
    layer = nn.Linear(32, 8, bias=False)
    nn.init.zeros_(layer.weight)
    assert torch.equal(layer_class.of(layer)(torch.randn(2, 32)), torch.zeros(2, 8))


@pytest.mark.parametrize("name", BOX)
@pytest.mark.parametrize(("kind", "most"), [("int8", 0.01), ("int4", 0.02)])
def test_perplexity_changes_by_little(name: str, kind: str, most: float) -> None:
    ids = AutoTokenizer.from_pretrained(name)(STORY, return_tensors="pt").input_ids
    with torch.no_grad():
        losses = [
            AutoModelForCausalLM.from_pretrained(name, quantization=each)(ids, labels=ids).loss for each in (None, kind)
        ]
    assert 0 < (losses[1] - losses[0]).abs() < most


def test_decoding_goes_through_the_prepared_step_and_equals_forward(model: Any, kind: str) -> None:
    model.quantize(kind)
    ids, scores = written(model, tokens(1, 5))
    assert is_prepared(model)
    for at, here in enumerate(scores):
        with torch.no_grad():
            whole = model(input_ids=ids[:, : 5 + at]).logits[:, -1]
        # inputs are quantised by the range of all tokens at once, so a longer input rounds a little differently
        assert _distance(here, whole) < 0.1


def test_the_numbers_are_near_those_of_the_float_model(model: Any, kind: str) -> None:
    with torch.no_grad():
        want = model(input_ids=tokens(2, 9)).logits
        got = model.quantize(kind)(input_ids=tokens(2, 9)).logits
    assert 0 < _distance(got, want) < FAR[kind]
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [*BOX, "triptych/shapes-fuyu"])
@pytest.mark.parametrize(
    ("kind", "share", "asked"),
    [
        ("int8", 0.6, {"quantization": "int8"}),
        ("int8", 0.6, {"load_in_8bit": True}),
        ("int8", 0.6, {"quantization_config": SimpleNamespace(load_in_8bit=True, load_in_4bit=False)}),
        ("int4", 0.5, {"quantization": "int4", "load_in_4bit": True}),
        ("int4", 0.5, {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}),
    ],
)
def test_it_takes_less_memory_and_has_as_many_parameters(
    name: str, kind: str, share: float, asked: dict[str, Any]
) -> None:
    floats = AutoModelForCausalLM.from_pretrained(name)
    short = AutoModelForCausalLM.from_pretrained(name, **asked)
    assert floats.quantization is None
    assert short.quantization == kind
    assert short.num_parameters() == floats.num_parameters()
    assert short.num_parameters(only_trainable=True) == 0
    assert short.get_memory_footprint() < share * floats.get_memory_footprint()
    assert not any(type(layer) in (nn.Linear, Conv1D) for block in _blocks(short) for layer in block.modules())


def _blocks(model: Any) -> list[nn.Module]:
    return [each for each in model.modules() if type(each).__name__ in model._no_split_modules]


def test_what_is_saved_is_float_and_loads_as_any_model(model: Any, kind: str, tmp_path: Path) -> None:
    model.quantize(kind)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.quantization is None
    state = model.state_dict()
    assert list(state) == list(again.state_dict())
    assert all(value.dtype == torch.float32 for value in state.values())
    shorter = type(model).from_pretrained(tmp_path, quantization=kind)
    pairs = zip(quantized_layers(model)[:-1], quantized_layers(shorter)[:-1], strict=True)  # the head is tied
    for one, other in pairs:
        # only Int8Linear has a scale that is the same for what was rounded with it
        most = 1e-6 if type(one) is Int8Linear else 0.02
        assert _distance(other.weight_and_bias()[0], one.weight_and_bias()[0]) < most


def test_a_state_dict_can_be_loaded_into_it(model: Any, kind: str) -> None:
    source = _small(model.config.model_type.replace("openai-gpt", "openai_gpt"), seed=1)
    model.quantize(kind)
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        want, got = (each(input_ids=tokens(1, 6)).logits for each in (source, model))
    assert _distance(got, want) < FAR[kind]
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
    with pytest.raises(RuntimeError, match="has shape"):
        model.load_state_dict({name: value[:1] for name, value in source.state_dict().items()})


def test_a_state_dict_is_checked_as_that_of_a_float_layer(layer_class: type[QuantizedLinear]) -> None:
    holder = nn.ModuleDict({"with": nn.Linear(32, 8), "without": nn.Linear(32, 8, bias=False)})
    full = {name: value.clone() for name, value in holder.state_dict().items()}
    for name, layer in list(holder.items()):
        holder[name] = layer_class.of(layer)
    for key in ("without.bias", "with.scales"):
        with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key}"'):
            holder.load_state_dict(full | {key: torch.ones(8)})
    with pytest.raises(RuntimeError, match="bias has shape"):
        holder.load_state_dict(full | {"with.bias": torch.ones(3)})
    new = full | {"with.weight": full["with.weight"].neg()}
    bias = new.pop("with.bias")
    with pytest.raises(RuntimeError, match=r'Missing key.*"with\.bias"'):
        holder.load_state_dict(new)
    found = holder.load_state_dict(new | {"without.bias": torch.ones(8)}, strict=False)
    assert found == (["with.bias"], ["without.bias"])
    weight, kept = holder["with"].weight_and_bias()
    assert torch.equal(kept, bias)
    assert _distance(weight, new["with.weight"]) < ROUNDING[layer_class.quantization]
    assert holder["without"].weight_and_bias()[1] is None


def test_it_can_be_undone_and_trained_then(model: Any, kind: str) -> None:
    with torch.no_grad():
        want = model(input_ids=tokens(2, 6)).logits
    model.quantize(kind).dequantize()
    assert model.quantization is None
    out = model(input_ids=tokens(2, 6), labels=tokens(2, 6))
    assert _distance(out.logits.detach(), want) < FAR[kind]
    out.loss.backward()
    head = model.get_output_embeddings().weight
    assert (head is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert head.grad is not None


def test_copies_and_pickles_write_the_same(model: Any, kind: str) -> None:
    want = written(model.quantize(kind), tokens(2, 5))[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(written(other, tokens(2, 5))[0], want)


def test_a_refused_model_is_as_it_was(model: Any, kind: str) -> None:
    last = [layer for layer in model.modules() if type(layer) in (nn.Linear, Conv1D)][-2]
    last.weight.data[1, 2] = float("nan")
    with pytest.raises(ValueError, match="must be finite"):
        model.quantize(kind)
    assert model.quantization is None
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_floats_are_let_go_of_one_after_the_other(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    layers = [layer for block in _blocks(model) for layer in block.modules() if type(layer) in (nn.Linear, Conv1D)]
    weights = [weakref.ref(layer.weight) for layer in layers]
    del layers
    alive, of = [], Int8Linear.of

    def watched(*arguments: Any) -> QuantizedLinear:
        alive.append(sum(weight() is not None for weight in weights))
        return of(*arguments)

    monkeypatch.setattr(Int8Linear, "of", watched)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.quantize()
    torch.set_num_threads(threads)
    assert alive[0] == len(weights)
    assert alive[-1] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layers_are_quantised_from_the_file_and_stand_for_floats_of_the_dtype_asked_for(
    kind: str, dtype: torch.dtype
) -> None:
    stored = GPTNeoForCausalLM.from_pretrained(BOX[0])
    model = GPTNeoForCausalLM.from_pretrained(BOX[0], quantization=kind, torch_dtype=dtype)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}
    assert {value.dtype for value in model.dequantize().parameters()} == {dtype}
    want = stored.quantize(kind).state_dict()
    name = "transformer.h.0.mlp.c_fc.weight"
    assert _distance(model.state_dict()[name], want[name]) < 0.01


def test_a_float_layer_among_those_of_8_bits_decodes_as_forward_does() -> None:
    model = _small("gpt_neo").quantize()
    for block in model.transformer.h:
        block.attn.attention.q_proj = block.attn.attention.q_proj.restored().eval()
    got = written(model, tokens(2, 5))
    assert is_prepared(model)
    want = by_forward(model, tokens(2, 5))
    assert torch.equal(got[0], want[0])
    assert (got[1] - want[1]).abs().max() < 0.1  # a float's last digit may move an input to the next step


def test_a_pickle_from_a_processor_with_other_kernels_uses_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layers = []
    layer = Int8Linear.of(nn.Linear(4, 4))
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda has=has: has)
        layers.append(copy.deepcopy(layer))
    assert [each.reduce_range for each in layers] == [False, True]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(layer_class: type[QuantizedLinear], value: float) -> None:
    layer = nn.Linear(32, 8)
    layer.weight.data[1, 2] = value
    with pytest.raises(ValueError, match="must be finite"):
        layer_class.of(layer)


def test_models_without_a_language_model_head_and_of_half_precision(kind: str) -> None:
    ids = tokens(2, 6)
    for model in (_small("gpt_neo", model_class=GPTNeoForSequenceClassification), _small("gpt_neo").bfloat16()):
        with torch.no_grad():
            want = model(ids).logits
            got = model.quantize(kind)(ids).logits
        assert got.dtype == want.dtype
        assert _distance(got, want) < FAR[kind]
        with torch.no_grad():
            assert model.bfloat16().dequantize()(ids).logits.dtype == torch.bfloat16


def test_what_cannot_be_done_says_what_to_do(model: Any, kind: str) -> None:
    with pytest.raises(ValueError, match="must be int8 or int4; got"):
        model.quantize("int3")
    with pytest.raises(ValueError, match="'int8' or 'int4'; got None"):
        model.quantize(None)
    model.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in model.dequantize().parameters())  # there is nothing to undo
    model.quantize(kind).quantize(kind)
    with pytest.raises(ValueError, match="is quantised to"):
        model.quantize("int4" if kind == "int8" else "int8")
    with pytest.raises(ValueError, match=r"dequantize\(\) first"):
        model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="packed for cpu and cannot be moved to meta"):
        model.to("meta")
    assert model.device.type == "cpu"  # nothing of it was moved
    model.get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match="cannot be trained"):
        model(input_ids=tokens(1, 4))


@pytest.mark.parametrize("options", [{"torch_dtype": "bfloat16"}, {"low_cpu_mem_usage": True}])
def test_each_layer_goes_to_the_device_of_the_map(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    # "meta" stands in for a GPU: what stayed on the CPU, or waits for a number, raises there
    monkeypatch.setitem(quantization.LAYERS, ("int8", "meta"), TorchaoInt8Linear)
    monkeypatch.setattr("triptych.runtime.torchao_linear.refuse_endless", lambda value: None)
    model = GPTNeoForCausalLM.from_pretrained(BOX[0], quantization="int8", device_map="meta", **options)
    assert {layer.device.type for layer in quantized_layers(model)} == {"meta"}
    assert {value.device.type for value in (*model.parameters(), *model.buffers())} == {"meta"}
    for layer in quantized_layers(model):
        x = torch.empty(2, layer.in_features, device="meta", dtype=model.dtype)
        assert layer(x).shape == (2, layer.out_features)
    with pytest.raises(ValueError, match="packed for meta and cannot be moved to cpu"):
        model.to_empty(device="cpu")


@pytest.mark.parametrize("off", [{"load_in_8bit": False}, {"load_in_8bit": False, "load_in_4bit": False}])
def test_flags_that_are_off_ask_for_nothing(off: dict[str, Any]) -> None:
    for config in (off, SimpleNamespace(**off, quant_method="bitsandbytes")):
        assert quantization.named_quantization(None, off, config) is None
        assert quantization.named_quantization("int4", off, config) == "int4"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int3"}, "must be int8 or int4; got"),
        ({"quantization": "int8", "device_map": "meta"}, "is for models on cpu or cuda; this one is on meta"),
        ({"load_in_4bit": True, "device_map": {"": "disk"}, "offload_folder": "."}, "on the CPU or on GPUs; got disk"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "one way only; got load_in_8bit=True and load_in_4bit=True"),
        ({"quantization": "int8", "load_in_4bit": True}, "one way only"),
        ({"quantization_config": {"quant_method": "gptq", "load_in_4bit": True}}, "must have load_in_8bit=True or"),
        ({"quantization_config": {"load_in_4bit": True, "load_in_8bit": True}}, "must have"),
        ({"quantization_config": {}}, "must have load_in_8bit=True or load_in_4bit=True"),
        ({"quantization_config": SimpleNamespace(bits=4)}, "Pass quantization='int8' or 'int4' instead"),
    ],
)
def test_loading_refuses_what_there_is_not(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        GPTNeoForCausalLM.from_pretrained(BOX[0], **options)


def test_a_processor_without_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _small("gpt_neo")
    monkeypatch.setattr("triptych.runtime.int8_linear._engine", lambda: "none")
    with pytest.raises(ValueError, match="no int8 kernels"):
        model.quantize()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Turing")
    monkeypatch.setitem(quantization.LAYERS, ("int4", "cpu"), TorchaoInt4Linear)
    with pytest.raises(ValueError, match=r"8\.0 or newer; this Turing has 7\.5"):
        model.quantize("int4")
    assert model.quantization is None


def test_without_torchao_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quantization.LAYERS, ("int8", "cpu"), TorchaoInt8Linear)
    monkeypatch.setattr("triptych.frameworks.is_available", lambda name: False)
    with pytest.raises(ImportError, match=r"triptych\[quantization\]"):
        GPTNeoForCausalLM.from_pretrained(BOX[0], quantization="int8")


def test_layers_that_4_bits_cannot_split_stay_float() -> None:
    model = FAMILIES["fuyu"](hidden_size=96, intermediate_size=40)
    model.quantize("int4")
    assert {layer.in_features for layer in quantized_layers(model)} == {96}
    assert any(type(layer) is nn.Linear and layer.in_features == 40 for layer in model.modules())
    with pytest.raises(ValueError, match="inputs 32 divides; this model has none"):
        FAMILIES["gpt_neo"]().quantize("int4")


def test_nothing_imports_torchao_before_it_is_used() -> None:
    code = (
        "import sys, triptych, triptych.modeling_torch\n"
        "for kind in (None, 'int8', 'int4'):\n"
        f"    triptych.GPTNeoForCausalLM.from_pretrained({BOX[0]!r}, quantization=kind)\n"
        "assert 'torchao' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commands_take_it() -> None:
    run = CliRunner().invoke
    arguments = ["generate", "The sea", "-n", "4", "--greedy", "--json", "--quantization"]
    out = run(app, [*arguments, "int8"])
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["new_tokens"] == 4
    assert run(app, [*arguments, "int4"]).exit_code == 0
    assert run(app, [*arguments, "int3"]).exit_code == 2
    assert run(app, [*arguments, "int8", "--device", "meta"]).exit_code == 2
