"""GPT Neo gives what the reference gives: see golden_gpt_neo.py for the models and cases."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.activations_torch import ACTIVATIONS
from triptych.models.gpt_neo import modeling_torch
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.runtime.cache import KeyValueCache

FOLDER = Path(__file__).parent / "golden" / "gpt_neo"
CASES = json.loads((FOLDER / "cases.json").read_text())
FACTS = json.loads((FOLDER / "facts.json").read_text())
FILES = {file: load_file(FOLDER / f"{file}.safetensors") for file in sorted({case["file"] for case in CASES})}
HEADS_CONFIG = next(case["config"] for case in CASES if case["case"] == "spans")
TOLERANCE = 2e-5
torch.set_num_threads(1)  # these models are too small to share out


def under(file: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names start with a prefix, which is taken off."""
    return {name.removeprefix(prefix): x for name, x in FILES[file].items() if name.startswith(prefix)}


def make_model(case: dict, implementation: str) -> modeling_torch.GPTNeoPreTrainedModel:
    config = GPTNeoConfig(**case["config"], attn_implementation=implementation)
    model = getattr(modeling_torch, case["class"])(config).eval()
    weights = {name: x.float() for name, x in under(case["file"], f"{case['weights']}weight.").items()}
    if model.base_model is model:
        weights = {name.removeprefix("transformer."): x for name, x in weights.items()}
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


def make_inputs(case: dict) -> dict:
    stored = under(case["file"], f"{case['case']}/in.")
    inputs = {name: x.long() if x.dtype == torch.int16 else x for name, x in stored.items()}
    layers = sorted({int(name.split(".")[1]) for name in inputs if name.startswith("past.")})
    if layers:
        pairs = tuple((inputs.pop(f"past.{i}.key"), inputs.pop(f"past.{i}.value")) for i in layers)
        inputs["past_key_values"] = pairs
    return inputs


def named(output: dict) -> dict[str, Tensor]:
    """The tensors of an output object under the names of the files."""
    found = {}
    for name, value in output.items():
        if name == "past_key_values":
            for layer, (keys, values) in enumerate(value):
                found |= {f"{name}.{layer}.key": keys, f"{name}.{layer}.value": values}
        elif isinstance(value, tuple):
            found |= {f"{name}.{index}": item for index, item in enumerate(value)}
        else:
            found[name] = value
    return found


def at_tokens(name: str, value: Tensor, mask: Tensor | None) -> Tensor:
    """The rows that belong to tokens; what padding gives is of no use to anyone and differs."""
    kind = name.split(".")[0]
    if mask is None or value.dim() < 2 or (kind == "logits" and value.dim() == 2):
        return value
    if kind in ("attentions", "past_key_values"):
        value = value.transpose(1, 2)
    return value[mask[:, -value.shape[1] :] != 0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['file']}-{case['case']}")
def test_every_output_and_gradient_equals_the_reference(case, implementation):
    model, inputs = make_model(case, implementation), make_inputs(case)
    output = model(**inputs, **case["flags"])
    ours, theirs = named(output), under(case["file"], f"{case['case']}/out.")
    assert ours.keys() == theirs.keys()
    mask = inputs.get("attention_mask")
    for name, value in ours.items():
        value = value if case["rows"] is None else value[:, case["rows"]]
        assert value.shape == theirs[name].shape
        difference = at_tokens(name, value - theirs[name], mask).abs().max().item()
        assert difference <= TOLERANCE, name
    assert model.config.problem_type == case["problem_type"]
    gradients = under(case["file"], f"{case['case']}/grad.")
    if gradients:
        output.loss.backward()
        got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert got.keys() == gradients.keys()
        for name, gradient in got.items():
            assert (gradient - gradients[name]).abs().max().item() <= TOLERANCE, name


def test_the_golden_attention_is_far_from_uniform():
    """Else a wrong scale or window would not show."""
    weights = under("window3", "padded/out.attentions.")["0"][0, :, -1]
    assert weights.max(dim=-1).values.mean() > 3 / weights.shape[-1]


def test_every_activation_of_the_reference_is_known():
    assert set(FACTS["activations"]) <= set(ACTIVATIONS)


@pytest.mark.parametrize("name", FACTS["state_dict"])
def test_weights_have_the_published_names_and_shapes(name):
    model = getattr(modeling_torch, name)(GPTNeoConfig(**HEADS_CONFIG))
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == FACTS["state_dict"][name]


@pytest.mark.parametrize("name", FACTS["num_parameters"])
def test_num_parameters_counts_as_the_reference_does(name):
    class_name, tied = name.split(" tied=")
    config = GPTNeoConfig(**HEADS_CONFIG, tie_word_embeddings=tied == "True")
    model = getattr(modeling_torch, class_name)(config)
    model.base_model.h[0].requires_grad_(False)
    counts = {
        f"{trainable}{exclude}": model.num_parameters(only_trainable=bool(trainable), exclude_embeddings=bool(exclude))
        for trainable in (0, 1)
        for exclude in (0, 1)
    }
    assert counts == FACTS["num_parameters"][name]


TUPLE_LABELS = {
    "GPTNeoForCausalLM": {"labels": (2, 5)},
    "GPTNeoForSequenceClassification": {"labels": (2,)},
    "GPTNeoForTokenClassification": {"labels": (2, 5)},
    "GPTNeoForQuestionAnswering": {"start_positions": (2,), "end_positions": (2,)},
}


def shapes(value: object) -> object:
    return [shapes(item) for item in value] if isinstance(value, tuple) else list(value.shape)


@pytest.mark.parametrize("name", FACTS["tuples"])
def test_tuples_hold_the_documented_items_in_the_documented_order(name):
    model = getattr(modeling_torch, name)(GPTNeoConfig(**HEADS_CONFIG)).eval()
    tokens = torch.zeros(2, 5, dtype=torch.long)
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
    by_configuration = getattr(modeling_torch, name)(GPTNeoConfig(**HEADS_CONFIG, return_dict=False)).eval()
    assert shapes(by_configuration(tokens)) == FACTS["tuples"][name]["bare"]


def test_the_cache_in_an_output_is_the_documented_tuple_of_pairs():
    case = next(case for case in CASES if (case["file"], case["case"]) == ("window3", "plain"))
    cache = make_model(case, "sdpa")(**make_inputs(case)).past_key_values
    assert isinstance(cache, tuple)
    assert isinstance(cache, KeyValueCache)
    assert len(cache) == 4
    assert [tuple(x.shape) for x in cache[0]] == [(2, 5, 11, 4)] * 2
    assert cache.length == 11
