"""Write the golden files of GPT Neo in Flax: python tests/golden_gpt_neo_flax.py FOLDER, run where Transformers 4.37.2
is installed with Flax.

The weights are those of golden_gpt_neo.py's files, whose outputs in PyTorch are recorded there. Here stand what the
Flax classes give (`outputs.safetensors`, by "MODEL/NAME"), the ids that they generate (`generated.json`), and a model
as they save it: `saved/` whole, `sharded/` in shards.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}

import jax.numpy as jnp
import numpy as np
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
    "beams with an end": BEAMS | {"eos_token_id": 33},
    "beams, left padding": BEAMS | {"attention_mask": LEFT, "eos_token_id": 20},
    "beams, early": BEAMS | {"eos_token_id": 33, "early_stopping": True},
    "beams, never": BEAMS | {"eos_token_id": 33, "early_stopping": "never"},
    "beams, short": BEAMS | {"eos_token_id": 20, "length_penalty": -1.5},
    "beams, long": BEAMS | {"eos_token_id": 20, "length_penalty": 2.0},
    "beams, several": BEAMS | {"eos_token_id": 33, "num_return_sequences": 3},
    "beams, at least": BEAMS | {"eos_token_id": 20, "min_length": 10},
    "five beams": {"num_beams": 5, "max_new_tokens": 5, "eos_token_id": 20},
}
ENDS = (7, 37)


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


def generate(file):
    model = model_of(file)
    ids = jnp.asarray(np.random.default_rng(7).integers(1, 41, (3, 6)))
    found = {"ids": ids.tolist()}
    cases = {name: dict(options) for name, options in GENERATED.items()}
    cases |= {f"beams that end at {end}": BEAMS | {"eos_token_id": end} for end in ENDS}
    for name, options in cases.items():
        given = {"pad_token_id": 0, "eos_token_id": None} | options
        if "attention_mask" in given:
            given["attention_mask"] = jnp.asarray(given["attention_mask"])
        model.generation_config = transformers.GenerationConfig(eos_token_id=given["eos_token_id"], pad_token_id=0)
        out = model.generate(ids, **given)
        found[name] = {
            "options": {"pad_token_id": 0, "eos_token_id": None} | options,
            "sequences": out.sequences.tolist(),
            "scores": np.asarray(out.scores).tolist() if "scores" in out else None,
        }
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
