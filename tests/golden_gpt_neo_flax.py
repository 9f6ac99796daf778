"""Write the golden files of GPT Neo in Flax: python tests/golden_gpt_neo_flax.py FOLDER, run where Transformers 4.37.2
is installed with Flax.

The weights are those of golden_gpt_neo.py's files, whose outputs in PyTorch are recorded there. Here stand what the
Flax classes give (`outputs.safetensors`, by "MODEL/NAME"), the ids that they generate (`generated.json`), and a model
as they save it: `saved/` whole, `sharded/` in shards.

Beams are those of the PyTorch class. The Flax class searches otherwise: texts that still run keep their whole sum where
PyTorch divides it by their length, rows that are done go on until all are, and any of the 2K best candidates may end
a text where PyTorch asks for the K best. One model is to give one text, so PyTorch's is taken.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

FOLDER = Path(__file__).parent / "golden" / "gpt_neo"
CASES = json.loads((FOLDER / "cases.json").read_text())
MODELS = ("window3", "window1", "layers5", "wide")
LEFT = [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]]
BEAMS = {"num_beams": 3, "max_new_tokens": 8}
GENERATED = {
    "greedy": {"max_new_tokens": 9},
    "greedy with an end": {"max_new_tokens": 9, "eos_token_id": 33},
    "greedy, left padding": {"max_new_tokens": 7, "attention_mask": LEFT},
    "greedy, rules": {"max_new_tokens": 9, "min_length": 9, "eos_token_id": 33, "forced_eos_token_id": 2},
    "greedy, suppressed": {"max_new_tokens": 6, "suppress_tokens": [1, 2, 3, 33, 20], "begin_suppress_tokens": [7, 8]},
    "beams": BEAMS,
    "beams, left padding": BEAMS | {"attention_mask": LEFT, "eos_token_id": 3},
    "beams, early": BEAMS | {"eos_token_id": 3, "early_stopping": True, "num_return_sequences": 3},
    "beams, never": BEAMS | {"eos_token_id": 3, "early_stopping": "never", "length_penalty": 2.0},
    "beams, short": BEAMS | {"eos_token_id": 3, "length_penalty": -1.5, "num_return_sequences": 2},
    "beams, long": BEAMS | {"eos_token_id": 3, "length_penalty": 2.0, "num_return_sequences": 3},
    "beams, several ends": BEAMS | {"eos_token_id": [20, 3, 33], "num_return_sequences": 3},
    "beams, at least": BEAMS | {"eos_token_id": 3, "min_length": 10},
    "five beams": {"num_beams": 5, "max_new_tokens": 5, "eos_token_id": 3, "num_return_sequences": 5},
}


def parameters(file):
    """The stored weights in Flax's names."""
    found = {}
    for name, value in load_file(FOLDER / f"{file}.safetensors").items():
        if name.startswith("weight."):
            *place, leaf = name.removeprefix("weight.").split(".")
            value = value.astype(np.float32)
            if leaf == "weight":
                kind = "embedding" if place[-1] in ("wte", "wpe") else "scale" if place[-1][:2] == "ln" else "kernel"
                found[(*place, kind)] = jnp.asarray(value.T if kind == "kernel" else value)
            else:
                found[(*place, leaf)] = jnp.asarray(value)
    return unflatten_dict(found)


def model_of(file):
    config = next(case["config"] for case in CASES if case["file"] == file)
    model = transformers.FlaxGPTNeoForCausalLM(transformers.GPTNeoConfig(**config), seed=0)
    model.params = parameters(file)
    return model


def run(file, kept):
    model = model_of(file)
    ids = jnp.asarray(np.random.default_rng(len(file)).integers(1, 41, (3, 12)))
    mask = jnp.asarray([[1] * 12, [0] * 5 + [1] * 7, [1] * 12])
    positions = jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
    out = model(ids, mask, positions, output_hidden_states=True, output_attentions=True)
    cache = model.init_cache(3, 12)
    first = model(ids[:, :7], mask, positions[:, :7], past_key_values=cache)
    then = model(ids[:, 7:], mask, positions[:, 7:], past_key_values=first.past_key_values)
    kept[f"{file}/ids"], kept[f"{file}/mask"] = ids.astype(jnp.int32), mask.astype(jnp.int32)
    kept[f"{file}/logits"] = out.logits
    kept[f"{file}/cached"] = then.logits
    for number, value in enumerate(out.hidden_states):
        kept[f"{file}/hidden_states/{number}"] = value
    for number, value in enumerate(out.attentions):
        kept[f"{file}/attentions/{number}"] = value
    for leaf, value in flatten_dict(then.past_key_values).items():
        if "1" not in leaf and "cache_index" not in leaf:
            kept[f"{file}/cache/{'/'.join(leaf)}"] = value


def torch_model_of(file):
    model = transformers.GPTNeoForCausalLM(model_of(file).config).eval()
    stored = load_file(FOLDER / f"{file}.safetensors")
    weights = {name.removeprefix("weight."): value for name, value in stored.items() if name.startswith("weight.")}
    state = {name: torch.tensor(value.astype(np.float32)) for name, value in weights.items()}
    assert model.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]  # the tied one
    return model


def greedy(model, ids, options):
    if "attention_mask" in options:
        options["attention_mask"] = jnp.asarray(options["attention_mask"])
    return {"sequences": model.generate(jnp.asarray(ids), **options).sequences.tolist()}


def beams(model, ids, options):
    if "attention_mask" in options:
        options["attention_mask"] = torch.tensor(options["attention_mask"])
    out = model.generate(torch.tensor(ids), return_dict_in_generate=True, output_scores=True, **options)
    return {"sequences": out.sequences.tolist(), "scores": out.sequences_scores.tolist()}


def generate(file):
    ids = np.random.default_rng(7).integers(1, 41, (3, 6))
    found = {"ids": ids.tolist()}
    models = {greedy: model_of(file), beams: torch_model_of(file)}
    for name, options in GENERATED.items():
        options = {"pad_token_id": 0, "eos_token_id": None} | options
        run = beams if "num_beams" in options else greedy
        model = models[run]
        model.generation_config = transformers.GenerationConfig(eos_token_id=options["eos_token_id"], pad_token_id=0)
        found[name] = {"options": options, **run(model, ids, dict(options))}
    return found


def main(folder):
    assert transformers.__version__ == "4.37.2", transformers.__version__
    folder = Path(folder)
    kept = {}
    for file in MODELS:
        run(file, kept)
    save_file({name: np.asarray(value) for name, value in kept.items()}, folder / "outputs.safetensors")
    generated = generate("window3")
    (folder / "generated.json").write_text(json.dumps(generated) + "\n")
    model = model_of("window1")
    model.save_pretrained(folder / "saved", params=model.to_bf16(model.params))
    model.save_pretrained(folder / "sharded", max_shard_size="3KB")


if __name__ == "__main__":
    main(sys.argv[1])
