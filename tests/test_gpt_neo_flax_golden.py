"""GPT Neo in Flax gives what the reference's Flax classes give: see golden_gpt_neo_flax.py for the models and cases."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytest.importorskip("jax")
pytest.importorskip("flax")

import jax
import jax.numpy as jnp

from gpt_neo_flax_models import gap, made
from triptych import FlaxGPTNeoForCausalLM, GPTNeoConfig
from triptych.checkpoints.pretrained_flax import slots_of
from triptych.generation.configuration import GenerationConfig
from triptych.trees import leaves_of, tree_of

FOLDER = Path(__file__).parent / "golden"
CASES = json.loads((FOLDER / "gpt_neo" / "cases.json").read_text())
OUTPUTS = load_file(FOLDER / "gpt_neo_flax" / "outputs.safetensors")
GENERATED = json.loads((FOLDER / "gpt_neo_flax" / "generated.json").read_text())
MODELS = ("window3", "window1", "layers5", "wide")
TOLERANCE = 2e-5


@lru_cache
def model_of(file):
    config = next(case["config"] for case in CASES if case["file"] == file)
    model = made(FlaxGPTNeoForCausalLM, GPTNeoConfig(**config))
    stored = load_file(FOLDER / "gpt_neo" / f"{file}.safetensors")
    params = {
        slot.leaf: jnp.asarray(stored[f"weight.{name}"].T if slot.is_turned else stored[f"weight.{name}"], jnp.float32)
        for name, slot in slots_of(model.params_shape_tree).items()
    }
    model.params = tree_of(params)
    return model


def under(prefix):
    return {name.removeprefix(prefix): value for name, value in OUTPUTS.items() if name.startswith(prefix)}


@pytest.mark.parametrize("file", MODELS)
def test_every_output_equals_the_references_flax_class(file):
    model, golden = model_of(file), under(f"{file}/")
    ids, mask = golden["ids"], golden["mask"]
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    attended = mask != 0
    out = model(ids, mask, positions, output_hidden_states=True, output_attentions=True)
    assert gap(out.logits[attended], golden["logits"][attended]) <= TOLERANCE
    for number, value in enumerate(out.hidden_states):
        assert gap(value[attended], golden[f"hidden_states/{number}"][attended]) <= TOLERANCE
    for number, value in enumerate(out.attentions):
        theirs = golden[f"attentions/{number}"].transpose(0, 2, 1, 3)
        assert gap(value.transpose(0, 2, 1, 3)[attended], theirs[attended]) <= TOLERANCE


@pytest.mark.parametrize("file", MODELS)
def test_a_cache_gives_what_the_references_gives(file):
    model, golden = model_of(file), under(f"{file}/")
    ids, mask = golden["ids"], golden["mask"]
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    first = model(ids[:, :7], mask, positions[:, :7], past_key_values=model.init_cache(3, 12))
    then = model(ids[:, 7:], mask, positions[:, 7:], past_key_values=first.past_key_values)
    assert gap(then.logits, golden["cached"]) <= TOLERANCE
    assert gap(then.logits, golden["logits"][:, 7:]) <= TOLERANCE
    ours = {"/".join(leaf): value for leaf, value in leaves_of(then.past_key_values).items()}
    attended = mask != 0
    for name, value in under(f"{file}/cache/").items():
        assert gap(ours[name][attended], value[attended]) <= TOLERANCE


@pytest.mark.parametrize("name", [name for name in GENERATED if name != "ids"])
def test_generated_ids_and_scores_equal_the_references(name):
    """Greedy ids are of the reference's Flax class; beams of its PyTorch class, which searches as ours: see there."""
    model, case = model_of("window3"), GENERATED[name]
    model.generation_config = GenerationConfig()
    options = dict(case["options"])
    if "attention_mask" in options:
        options["attention_mask"] = np.array(options["attention_mask"])
    out = model.generate(np.array(GENERATED["ids"]), **options)
    length = len(case["sequences"][0])  # the reference's PyTorch cuts off where no text goes on
    assert out.sequences[:, :length].tolist() == case["sequences"]
    assert (np.asarray(out.sequences[:, length:]) == 0).all()
    if "scores" in case:
        assert gap(out.scores, np.array(case["scores"])) <= TOLERANCE


@pytest.mark.parametrize("name", ["saved", "sharded"])
def test_models_that_the_reference_saved_load(name):
    model = FlaxGPTNeoForCausalLM.from_pretrained(FOLDER / "gpt_neo_flax" / name)
    wanted = model_of("window1")
    exact = wanted.to_bf16(wanted.params) if name == "saved" else wanted.params
    assert jax.tree_util.tree_all(
        jax.tree_util.tree_map(lambda a, b: bool((a == b.astype(jnp.float32)).all()), model.params, exact)
    )
