"""Fuyu and its decoder give what the reference gives: see golden_fuyu.py for the models and cases."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import triptych
from triptych.models.fuyu.configuration import FuyuConfig
from triptych.models.fuyu.modeling_torch import FuyuForCausalLM
from triptych.models.persimmon.configuration import PersimmonConfig
from triptych.runtime.cache import KeyValueCache

FOLDER = Path(__file__).parent / "golden" / "fuyu"
CASES = json.loads((FOLDER / "cases.json").read_text())
FACTS = json.loads((FOLDER / "facts.json").read_text())
FILES = {file: load_file(FOLDER / f"{file}.safetensors") for file in sorted({case["file"] for case in CASES})}
FORWARD = [case for case in CASES if "max_new_tokens" not in case["flags"]]
GREEDY = [case for case in CASES if "max_new_tokens" in case["flags"]]
SMALL = FACTS["configs"]["FuyuConfig small"]["fields"]
TOLERANCE = 2e-5
torch.set_num_threads(1)  # these models are too small to share out


def name_of(case: dict) -> str:
    return f"{case['file']}-{case['case']}"


def under(file: str, prefix: str) -> dict[str, Tensor]:
    """The tensors of a file whose names start with a prefix, which is taken off."""
    return {name.removeprefix(prefix): x for name, x in FILES[file].items() if name.startswith(prefix)}


def make_model(case: dict, implementation: str = "sdpa") -> FuyuForCausalLM:
    model = FuyuForCausalLM(FuyuConfig(**case["config"], attn_implementation=implementation)).eval()
    weights = {name: x.float() for name, x in under(case["file"], "weight.").items()}
    if case["config"].get("tie_word_embeddings"):
        weights["language_model.lm_head.weight"] = weights["language_model.model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model


def make_inputs(case: dict) -> dict:
    stored = under(case["file"], f"{case['case']}/in.")
    inputs = {name: x.long() if x.dtype == torch.int16 else x for name, x in stored.items()}
    rows = sorted(name for name in inputs if name.startswith("image_patches."))
    if rows:
        inputs["image_patches"] = [inputs.pop(name) for name in rows]
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
    if mask is None or value.dim() < 2:
        return value
    if name.split(".")[0] in ("attentions", "past_key_values"):
        value = value.transpose(1, 2)
    return value[mask[:, -value.shape[1] :] != 0]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("case", FORWARD, ids=name_of)
def test_every_output_and_gradient_equals_the_reference(case, implementation):
    model, inputs = make_model(case, implementation), make_inputs(case)
    output = (model.get_submodule(case["part"]) if case["part"] else model)(**inputs, **case["flags"])
    ours, theirs = named(output), under(case["file"], f"{case['case']}/out.")
    assert ours.keys() == theirs.keys()
    mask = inputs.get("attention_mask")
    for name, value in ours.items():
        assert value.shape == theirs[name].shape
        assert at_tokens(name, value - theirs[name], mask).abs().max().item() <= TOLERANCE, name
    gradients = under(case["file"], f"{case['case']}/grad.")
    if gradients:
        output.loss.backward()
        got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        assert got.keys() == gradients.keys()
        for name, gradient in got.items():
            assert (gradient - gradients[name]).abs().max().item() <= TOLERANCE, name


@pytest.mark.parametrize("case", GREEDY, ids=name_of)
def test_greedy_generation_gives_the_ids_of_the_reference(case):
    """With and without a cache; with dynamic scaling the two differ past the trained length, there as here."""
    theirs = FILES[case["file"]][f"{case['case']}/out.sequences"].tolist()
    for use_cache in [case["flags"]["use_cache"]] if "use_cache" in case["flags"] else [True, False]:
        ids = make_model(case).generate(**make_inputs(case), **(case["flags"] | {"use_cache": use_cache}))
        assert ids.tolist() == theirs


def test_the_golden_attention_is_far_from_uniform():
    """Else a wrong scale would not show."""
    weights = under("images", "images/out.attentions.")["0"][0, :, -1]
    assert weights.max(dim=-1).values.mean() > 3 / weights.shape[-1]


def test_the_golden_models_write_more_than_one_token_over_and_over():
    for case in GREEDY:
        new = FILES[case["file"]][f"{case['case']}/out.sequences"][:, -case["flags"]["max_new_tokens"] :]
        assert len(set(new.flatten().tolist())) > 3


def make(name: str, **fields: object) -> triptych.PreTrainedModel:
    family = name.partition("For")[0].removesuffix("Model")
    return getattr(triptych, name)(getattr(triptych, f"{family}Config")(**(SMALL | fields))).eval()


@pytest.mark.parametrize("name", FACTS["state_dict"])
def test_weights_have_the_published_names_and_shapes(name):
    assert {key: list(value.shape) for key, value in make(name).state_dict().items()} == FACTS["state_dict"][name]


@pytest.mark.parametrize("name", FACTS["num_parameters"])
def test_num_parameters_counts_as_the_reference_does(name):
    class_name, tied = name.split(" tied=")
    model = make(class_name, tie_word_embeddings=tied == "True")
    counts = {str(int(each)): model.num_parameters(exclude_embeddings=each) for each in (False, True)}
    assert counts == FACTS["num_parameters"][name]


def shapes(value: object) -> object:
    return [shapes(item) for item in value] if isinstance(value, tuple) else list(value.shape)


@pytest.mark.parametrize("name", FACTS["tuples"])
def test_tuples_hold_the_documented_items_in_the_documented_order(name):
    model, tokens = make(name), torch.zeros(2, 5, dtype=torch.long)
    labels = {} if name.endswith("Model") else {"labels": tokens}
    flags = {"output_attentions": True, "output_hidden_states": True}
    given = {
        "everything": model(tokens, return_dict=False, **labels, **flags),
        "no labels": model(tokens, return_dict=False, **flags),
        "bare": model(tokens, return_dict=False),
    }
    for kind, result in given.items():
        assert type(result) is tuple
        assert shapes(result) == FACTS["tuples"][name][kind], kind
    assert shapes(make(name, return_dict=False)(tokens)) == FACTS["tuples"][name]["bare"]


def test_the_cache_in_an_output_is_the_documented_tuple_of_pairs():
    cache = make("FuyuForCausalLM")(torch.zeros(2, 5, dtype=torch.long)).past_key_values
    assert isinstance(cache, tuple)
    assert isinstance(cache, KeyValueCache)
    assert [[tuple(x.shape) for x in pair] for pair in cache] == [[(2, 3, 5, 8)] * 2] * 2


@pytest.mark.parametrize("name", FACTS["configs"])
def test_configurations_are_written_as_the_reference_writes_them(name):
    facts = FACTS["configs"][name]
    config = {"FuyuConfig": FuyuConfig, "PersimmonConfig": PersimmonConfig}[name.split()[0]](**facts["fields"])
    assert json.loads(config.to_json_string()) == json.loads(facts["diff"])
    assert config.to_json_string().strip() == facts["diff"].strip()
    if "full" in facts:
        full = json.loads(facts["full"])
        # where it came from is never written
        full.pop("_name_or_path")
        full.get("text_config", {}).pop("_name_or_path", None)
        assert config.to_dict() == config.from_dict(full).to_dict()
        assert json.loads(config.to_json_string(use_diff=False)) == full
    assert type(config).from_dict(json.loads(facts["diff"])) == config
