"""Weights of 8 bits: close to the float ones, smaller, asked for everywhere by one argument, and undone."""

import copy
import json
import pickle
from pathlib import Path
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
from triptych.runtime.quantization import Int8Linear, quantized_layers

BOX = ["triptych/tales-neo", "triptych/tales-gpt"]
STORY = (
    "The old sailor sat by the fire and told the children of the storm. The wind had taken the masts, he said, and "
    "for three days they had nothing to drink but rain. On the fourth day a boy cried out that he could see land, and "
    "they all went up on deck to look. It was a little island with a hill in the middle and a white beach round it. "
    "They let down the boat and rowed to the shore, where a great many birds flew up and screamed at them. 'There must "
    "be water here,' said the captain, 'or the birds would not stay.' So they walked along the sand until they came to "
    "a stream, and every man lay down on his face and drank."
)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_layer_of_8_bits_is_close_to_its_float_one(transposed: bool, rows: int) -> None:
    torch.manual_seed(0)
    layer: Any = Conv1D(40, 70) if transposed else nn.Linear(70, 40)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    short = Int8Linear.of(layer)
    x = torch.randn(rows, 3, 70)
    with torch.no_grad():
        want = layer(x)
        assert (short(x) - want).norm() / want.norm() < 0.02
        weight, bias = short.weight_and_bias()
        rows_of = weight.t() if transposed else weight
        step = (layer.weight.t() if transposed else layer.weight).abs().amax(dim=1) / 127
        assert ((rows_of - (layer.weight.t() if transposed else layer.weight)).abs() <= 0.501 * step[:, None]).all()
        assert torch.equal(bias, layer.bias)
        assert torch.equal(short.restored()(x), nn.functional.linear(x, rows_of, bias))


def test_a_matrix_of_zeros_stays_one() -> None:
    layer = nn.Linear(8, 4, bias=False)
    nn.init.zeros_(layer.weight)
    assert torch.equal(Int8Linear.of(layer)(torch.randn(2, 8)), torch.zeros(2, 4))


@pytest.mark.parametrize("name", BOX)
def test_perplexity_changes_by_less_than_a_hundredth(name: str) -> None:
    ids = AutoTokenizer.from_pretrained(name)(STORY, return_tensors="pt").input_ids
    with torch.no_grad():
        losses = [
            AutoModelForCausalLM.from_pretrained(name, quantization=kind)(ids, labels=ids).loss
            for kind in (None, "int8")
        ]
    assert (losses[1] - losses[0]).abs() < 0.01


def test_decoding_goes_through_the_prepared_step_and_equals_forward(model: Any) -> None:
    model.quantize()
    ids, scores = written(model, tokens(1, 5))
    assert is_prepared(model)
    for at, here in enumerate(scores):
        with torch.no_grad():
            whole = model(input_ids=ids[:, : 5 + at]).logits[:, -1]
        # inputs are quantised by the range of all tokens at once, so a longer input rounds a little differently
        assert (whole - here).norm() / whole.norm() < 0.1


def test_the_numbers_are_near_those_of_the_float_model(model: Any) -> None:
    with torch.no_grad():
        want = model(input_ids=tokens(2, 9)).logits
        got = model.quantize()(input_ids=tokens(2, 9)).logits
    assert 0 < (got - want).norm() / want.norm() < 0.1


@pytest.mark.parametrize("name", [*BOX, "triptych/shapes-fuyu"])
def test_it_takes_less_memory_and_has_as_many_parameters(name: str) -> None:
    floats = AutoModelForCausalLM.from_pretrained(name)
    short = AutoModelForCausalLM.from_pretrained(name, load_in_8bit=True)
    assert floats.quantization is None
    assert short.quantization == "int8"
    assert short.num_parameters() == floats.num_parameters()
    assert short.get_memory_footprint() < 0.6 * floats.get_memory_footprint()
    assert not any(type(layer) in (nn.Linear, Conv1D) for block in _blocks(short) for layer in block.modules())


def _blocks(model: Any) -> list[nn.Module]:
    return [each for each in model.modules() if type(each).__name__ in model._no_split_modules]


def test_what_is_saved_is_float_and_loads_as_any_model(model: Any, tmp_path: Path) -> None:
    model.quantize()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.quantization is None
    state = model.state_dict()
    assert list(state) == list(again.state_dict())
    assert all(value.dtype == torch.float32 for value in state.values())
    shorter = type(model).from_pretrained(tmp_path, quantization="int8")
    for one, other in zip(
        quantized_layers(model)[:-1], quantized_layers(shorter)[:-1], strict=True
    ):  # the head is tied
        assert (one.weight_and_bias()[0] - other.weight_and_bias()[0]).abs().max() < 1e-6


def test_a_state_dict_can_be_loaded_into_it(model: Any) -> None:
    source = FAMILIES[model.config.model_type.replace("openai-gpt", "openai_gpt")](seed=1)
    model.quantize()
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        want, got = (each(input_ids=tokens(1, 6)).logits for each in (source, model))
    assert (got - want).norm() / want.norm() < 0.1
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})
    with pytest.raises(RuntimeError, match="has shape"):
        model.load_state_dict({name: value[:1] for name, value in source.state_dict().items()})


def test_it_can_be_undone_and_trained_then(model: Any) -> None:
    with torch.no_grad():
        want = model(input_ids=tokens(2, 6)).logits
    model.quantize().dequantize()
    assert model.quantization is None
    out = model(input_ids=tokens(2, 6), labels=tokens(2, 6))
    assert (out.logits - want).norm() / want.norm() < 0.1
    out.loss.backward()
    head = model.get_output_embeddings().weight
    assert (head is model.get_input_embeddings().weight) == model.config.tie_word_embeddings
    assert head.grad is not None


def test_copies_and_pickles_write_the_same(model: Any) -> None:
    want = written(model.quantize(), tokens(2, 5))[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(written(other, tokens(2, 5))[0], want)


def test_a_float_layer_among_those_of_8_bits_decodes_as_forward_does() -> None:
    model = FAMILIES["gpt_neo"]().quantize()
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
def test_weights_that_are_no_numbers_are_refused(value: float) -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data[1, 2] = value
    with pytest.raises(ValueError, match="must be finite"):
        Int8Linear.of(layer)


def test_models_without_a_language_model_head_and_of_half_precision() -> None:
    ids = tokens(2, 6)
    for model in (FAMILIES["gpt_neo"](GPTNeoForSequenceClassification), FAMILIES["gpt_neo"]().bfloat16()):
        with torch.no_grad():
            want = model(ids).logits
            got = model.quantize()(ids).logits
        assert got.dtype == want.dtype
        assert (got - want).norm() / want.norm() < 0.1


def test_what_cannot_be_done_with_8_bits_says_what_to_do(model: Any) -> None:
    with pytest.raises(ValueError, match="must be one of int8"):
        model.quantize("int3")
    model.quantize()
    with pytest.raises(ValueError, match=r"dequantize\(\) first"):
        model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="for the CPU; got device meta"):
        model.to("meta")
    assert model.device.type == "cpu"  # nothing of it was moved
    model.get_input_embeddings().requires_grad_(True)
    with pytest.raises(ValueError, match="cannot be trained"):
        model(input_ids=tokens(1, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantization": "int4"}, "must be one of int8"),
        ({"quantization": "int8", "device_map": "meta"}, "is for models on the CPU"),
        ({"load_in_4bit": True}, "quantization='int8'"),
    ],
)
def test_loading_refuses_what_there_is_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTNeoForCausalLM.from_pretrained(BOX[0], **options)


def test_a_processor_without_kernels_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triptych.runtime.quantization._engine", lambda: "none")
    with pytest.raises(ValueError, match="no int8 kernels"):
        model.quantize()


def test_the_commands_take_it() -> None:
    run = CliRunner().invoke
    arguments = ["generate", "The sea", "-n", "4", "--greedy", "--json", "--quantization"]
    out = run(app, [*arguments, "int8"])
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["new_tokens"] == 4
    assert run(app, [*arguments, "int3"]).exit_code == 2
    assert run(app, [*arguments, "int8", "--device", "cuda"]).exit_code == 2
