"""OpenAI GPT gives what the reference gives: see golden_openai_gpt.py for the models and cases."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.models.openai_gpt import modeling_torch
from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.models.openai_gpt.modeling_torch import OpenAIGPTLMHeadModel

FOLDER = Path(__file__).parent / "golden" / "openai_gpt"
CASES = json.loads((FOLDER / "cases.json").read_text())
FACTS = json.loads((FOLDER / "facts.json").read_text())
GENERATED = json.loads((FOLDER / "generation.json").read_text())["cases"]
FILES = {file: load_file(FOLDER / f"{file}.safetensors") for file in sorted({case["file"] for case in CASES})}
SIZES = {"vocab_size": 41, "n_positions": 32, "n_layer": 2, "n_embd": 12, "n_head": 3, "pad_token_id": 0}
TOLERANCE = 2e-5


def under(file: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names start with a prefix, which is taken off."""
    return {name.removeprefix(prefix): x for name, x in FILES[file].items() if name.startswith(prefix)}


def make_model(case: dict, implementation: str) -> Any:
    config = OpenAIGPTConfig(**case["config"], attn_implementation=implementation)
    model = getattr(modeling_torch, case["class"])(config).eval()
    weights = {name: x.float() for name, x in under(case["file"], f"{case['weights']}weight.").items()}
    if model.base_model is model:
        weights = {name.removeprefix("transformer."): x for name, x in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert model.base_model is model or not unexpected
    model.tie_weights()
    if case["prune"]:
        model.prune_heads({int(layer): heads for layer, heads in case["prune"].items()})
    return model


def make_inputs(case: dict) -> dict[str, Tensor]:
    stored = under(case["file"], f"{case['case']}/in.")
    return {name: x.long() if x.dtype == torch.int16 else x for name, x in stored.items()}


def named(output: Any) -> dict[str, Tensor]:
    """The tensors of an output object under the names of the files."""
    found = {}
    for name, value in output.items():
        if isinstance(value, tuple):
            found |= {f"{name}.{index}": item for index, item in enumerate(value)}
        else:
            found[name] = value
    return found


def at_tokens(name: str, value: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that belong to tokens; what padding gives is of no use to anyone and differs."""
    if mask is None or name == "mc_logits" or value.dim() < 2 or (name == "logits" and value.dim() == 2):
        return value
    return (value.transpose(1, 2) if name.startswith("attentions") else value)[mask != 0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['file']}-{case['case']}")
def test_every_output_and_gradient_equals_the_reference(case, implementation):
    model, inputs = make_model(case, implementation), make_inputs(case)
    output = model(**inputs, **case["flags"])
    ours, theirs = named(output), under(case["file"], f"{case['case']}/out.")
    assert list(ours) == [name for name in ours if name in theirs]
    assert ours.keys() == theirs.keys()
    mask = inputs.get("attention_mask")
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
        assert at_tokens(name, value - theirs[name], mask).abs().max().item() <= TOLERANCE, name
    assert model.config.problem_type == case["problem_type"]
    gradients = under(case["file"], f"{case['case']}/grad.")
    if gradients:
        (output.loss + output.get("mc_loss", 0)).backward()
        got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert got.keys() == gradients.keys()
        for name, gradient in got.items():
            assert (gradient - gradients[name]).abs().max().item() <= TOLERANCE, name


def test_the_golden_attention_is_far_from_uniform():
    """Else a wrong scale or mask would not show."""
    weights = under("heads5", "padded/out.attentions.")["0"][0, :, -1]
    assert weights.max(dim=-1).values.mean() > 3 / weights.shape[-1]


@pytest.mark.parametrize("name", FACTS["state_dict"])
def test_weights_have_the_published_names_and_shapes(name):
    model = getattr(modeling_torch, name)(OpenAIGPTConfig(**SIZES))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == FACTS["state_dict"][name]
    assert [model.num_parameters(), model.num_parameters(exclude_embeddings=True)] == FACTS["num_parameters"][name]


TUPLE_LABELS = {
    "OpenAIGPTLMHeadModel": {"labels": (2, 5)},
    "OpenAIGPTDoubleHeadsModel": {"labels": (2, 5), "mc_labels": (1,)},
    "OpenAIGPTForSequenceClassification": {"labels": (2,)},
}


def shapes(value: object) -> object:
    return [shapes(item) for item in value] if isinstance(value, tuple) else list(value.shape)


@pytest.mark.parametrize("name", FACTS["tuples"])
def test_tuples_hold_the_documented_items_in_the_documented_order(name):
    model = getattr(modeling_torch, name)(OpenAIGPTConfig(**SIZES)).eval()
    tokens = torch.ones(2, 5, dtype=torch.long)
    labels = {key: torch.zeros(shape, dtype=torch.long) for key, shape in TUPLE_LABELS.get(name, {}).items()}
    flags = {"output_attentions": True, "output_hidden_states": True}
    given = {
        "everything": model(tokens, return_dict=False, **labels, **flags),
        "no labels": model(tokens, return_dict=False, **flags),
        "bare": model(tokens, return_dict=False),
    }
    for kind, result in given.items():
        assert type(result) is tuple
        assert shapes(result) == FACTS["tuples"][name][kind], kind
    by_configuration = getattr(modeling_torch, name)(OpenAIGPTConfig(**SIZES, return_dict=False)).eval()
    assert shapes(by_configuration(tokens)) == FACTS["tuples"][name]["bare"]


@pytest.mark.parametrize("name", FACTS["configs"])
def test_configurations_are_written_as_the_reference_writes_them(name):
    golden = FACTS["configs"][name]
    config = OpenAIGPTConfig.from_dict(golden["fields"])
    for kind, use_diff in (("diff", True), ("full", False)):
        ours, theirs = json.loads(config.to_json_string(use_diff)), json.loads(golden[kind])
        theirs.pop("_name_or_path", None)
        assert ours == theirs, kind


@pytest.mark.parametrize("case", GENERATED, ids=[f"{case['name']}-{case['seed']}" for case in GENERATED])
def test_generated_ids_are_those_of_the_reference(case):
    """With a cache here, without one there; from a folder that the reference saved."""
    model = OpenAIGPTLMHeadModel.from_pretrained(FOLDER / "generation_model")
    options = {"pad_token_id": 0} | case["options"]
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
        options["do_sample"] = True
    assert model.generate(torch.tensor(case["prompt"]), **options).tolist() == case["ids"]
