"""Write the golden files of Fuyu: python tests/golden_fuyu.py FOLDER, run where Transformers 4.37.2 is installed.

One safetensors file per model and one `cases.json`. A file holds `weight.NAME` (float16, so that the files stay
small; the models ran in float32 on exactly these numbers) and, for every case run on that model,
`CASE/in.NAME`, `CASE/out.NAME` and `CASE/grad.NAME`; a case of generation has `CASE/out.sequences`. Weights are drawn
large enough for attention to be far from uniform. `facts.json` holds what is no tensor: names of weights, sizes, JSON
of configurations, shapes of tuples.
"""

import json
import math
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file

ALL = {"output_attentions": True, "output_hidden_states": True}
UNCACHED = {"use_cache": False}
SMALL = {
    "vocab_size": 41,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 16,
    "patch_size": 2,
}
CLASSES = ("FuyuForCausalLM", "PersimmonForCausalLM", "PersimmonModel")

# model name -> configuration
MODELS = {
    "images": SMALL | {"num_hidden_layers": 3},
    "arguments": SMALL | {"max_position_embeddings": 64},
    "no_norm": SMALL
    | {
        "hidden_size": 20,
        "num_attention_heads": 5,
        "qk_layernorm": False,
        "partial_rotary_factor": 1.0,
        "hidden_act": "gelu_new",
        "num_channels": 1,
        "patch_size": 3,
    },
    "quarter": SMALL
    | {
        "partial_rotary_factor": 0.25,
        "tie_word_embeddings": True,
        "layer_norm_eps": 1e-3,
        "hidden_act": "silu",
        "pad_token_id": 0,
        "rope_theta": 100.0,
    },
    "linear": SMALL | {"rope_scaling": {"type": "linear", "factor": 3.0}, "hidden_act": "relu"},
    "dynamic": SMALL
    | {"rope_scaling": {"type": "dynamic", "factor": 2.5}, "rope_theta": 100.0, "num_hidden_layers": 3},
}

CONFIGS = {
    "defaults": {},
    "small": SMALL,
    "odd": {
        "qk_layernorm": False,
        "hidden_dropout": 0.1,
        "use_cache": False,
        "pad_token_id": 0,
        "eos_token_id": [2, 3],
    },
    "scaled": {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "torch_dtype": "float16", "image_size": 30},
    "text_config": SMALL | {"text_config": SMALL | {"model_type": "persimmon", "hidden_act": "gelu"}},
    "short_text_config": {"text_config": {"model_type": "persimmon"}, "architectures": ["FuyuForCausalLM"]},
    "unknown_keys": {"task": {"a": [1, {"b": None}]}, "tie_word_embeddings": True, "output_attentions": True},
    "generation": {"max_length": 50, "do_sample": True, "temperature": 0.9, "num_labels": 3},
}


def draw(model, seed):
    """Large random weights that float16 can hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        noise *= 1 / math.sqrt(weight.shape[1]) if weight.dim() == 2 else 0.2
        weight.data = (noise + (weight.dim() == 1 and "norm" in name and name.endswith("weight"))).half().float()


def flat(output):
    """The tensors of an output object under dotted names."""
    found = {}
    for name, value in output.items():
        if name == "past_key_values":
            for layer, (key, values) in enumerate(value):
                found[f"{name}.{layer}.key"], found[f"{name}.{layer}.value"] = key, values
        elif isinstance(value, tuple):
            found |= {f"{name}.{index}": item for index, item in enumerate(value)}
        else:
            found[name] = value
    return found


class Writer:
    """Collects what one file and the list of cases hold."""

    def __init__(self, folder):
        self.folder, self.cases, self.tensors = Path(folder), [], {}

    def model(self, file):
        """A new model each time, as the dynamic tables of the reference remember what they saw."""
        model = transformers.FuyuForCausalLM(transformers.FuyuConfig(**MODELS[file])).eval()
        draw(model, seed=sorted(MODELS).index(file))
        if file not in self.tensors:
            tied = model.config.tie_word_embeddings
            self.tensors[file] = {
                f"weight.{name}": weight.half()
                for name, weight in model.state_dict().items()
                if not (tied and name.endswith("lm_head.weight"))
            }
        return model

    def run(self, file, case, inputs, flags=None, gradients=False, part=None):
        """Run a model, or a part of it, or with flags of generation its `generate`."""
        model, flags = self.model(file), flags or {}
        module = model if part is None else model.get_submodule(part)
        given = {name: list(x) if name == "image_patches" and isinstance(x, tuple) else x for name, x in inputs.items()}
        layers = sorted({int(name.split(".")[1]) for name in given if name.startswith("past.")})
        if layers:
            given["past_key_values"] = tuple((given.pop(f"past.{i}.key"), given.pop(f"past.{i}.value")) for i in layers)
        if "max_new_tokens" in flags:
            output = {"sequences": module.generate(**given, **flags)}
        else:
            output = module(**given, **flags)
        kept = self.tensors[file]
        for name, value in inputs.items():
            rows = {f"{name}.{row}": x for row, x in enumerate(value)} if isinstance(value, tuple) else {name: value}
            for full, x in rows.items():
                x = x.to(torch.int16) if x.dtype == torch.int64 else x
                kept[f"{case}/in.{full}"] = x.detach().clone().contiguous()
        for name, value in flat(output).items():
            kept[f"{case}/out.{name}"] = value.detach().clone().contiguous()
        if gradients:
            output.loss.backward()
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    kept[f"{case}/grad.{name}"] = weight.grad.clone()
        self.cases.append({"file": file, "case": case, "config": MODELS[file], "flags": flags, "part": part})
        return output

    def write(self):
        for file, tensors in self.tensors.items():
            save_file(tensors, self.folder / f"{file}.safetensors")
        (self.folder / "cases.json").write_text(json.dumps(self.cases, indent=1) + "\n")


def ids(*shape, seed=0, low=3, high=41):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).half().float()


def batch(file, length, side="right", seed=0):
    """Two rows with images of four and three patches, the second row three tokens shorter and its patches turned."""
    config = MODELS[file]
    values = config["patch_size"] ** 2 * config.get("num_channels", 3)
    tokens, mask = ids(2, length, seed=seed), torch.ones(2, length, dtype=torch.long)
    places = torch.full((2, length), -1)
    start = 3 if side == "left" else 0
    mask[1, slice(0, 3) if side == "left" else slice(length - 3, None)] = 0
    places[0, 1:5], places[1, start + 2 : start + 5] = torch.arange(4), torch.tensor([2, 1, 0])
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "image_patches": (noise(4, values, seed=seed + 1), noise(3, values, seed=seed + 2)),
        "image_patches_indices": places,
    }


def labelled(given):
    not_text = (given["attention_mask"] == 0) | (given["image_patches_indices"] >= 0)
    not_text[:, 1:] |= given["attention_mask"][:, :-1] == 0  # what padding predicts is nobody's
    return given | {"labels": given["input_ids"].masked_fill(not_text, -100)}


def model_cases(w):
    """Each configuration: a batch with images and gradients, and text alone."""
    for seed, file in enumerate(sorted(set(MODELS) - {"arguments"})):
        gradients = file in ("images", "no_norm", "quarter")
        w.run(file, "images", labelled(batch(file, 12, seed=seed)), ALL if gradients else {}, gradients)
        tokens = ids(2, 9, seed=seed)
        w.run(file, "text", {"input_ids": tokens, "labels": tokens}, UNCACHED)
        left = batch(file, 10, "left", seed=seed)
        greedy = {"max_new_tokens": 12, "eos_token_id": 2, "pad_token_id": 0}
        if file != "dynamic":
            w.run(file, "greedy", left, greedy)
            continue
        for cached in (True, False):  # past the trained length cached keys have other angles than new ones
            w.run(file, f"greedy_cached_{cached}", left, greedy | {"use_cache": cached})
    for file in ("linear", "dynamic"):
        tokens = ids(1, 23, seed=9)  # past the 16 positions
        w.run(file, "long", {"input_ids": tokens, "labels": tokens}, gradients=file == "dynamic")
        w.run(file, "edge", {"input_ids": tokens[:, :16]})
        w.run(file, "past_the_edge", {"input_ids": tokens[:, :17]})


def argument_cases(w):
    """Every argument of `forward`, on one model."""
    file = "arguments"
    right, left = batch(file, 11, seed=20), batch(file, 11, "left", seed=21)
    tokens, places = right["input_ids"], right["image_patches_indices"]
    first, second = right["image_patches"]
    one = {"input_ids": tokens[:1], "image_patches_indices": places[:1]}
    w.run(file, "left", labelled(left), ALL)
    w.run(file, "one_tensor", one | {"image_patches": first[None]}, UNCACHED)
    w.run(file, "a_row_axis", right | {"image_patches": (first[None], second[None])}, UNCACHED)
    wide = torch.cat((places, torch.full((2, 10), -1)), 1)
    w.run(file, "wide_indices", right | {"image_patches_indices": wide}, UNCACHED)
    w.run(file, "short_indices", right | {"image_patches_indices": places[:, :6]}, UNCACHED)
    positions = torch.cat((torch.arange(11), torch.arange(11).flip(0))).view(2, 11)  # the reference has no others
    w.run(file, "positions", right | {"position_ids": positions}, UNCACHED)
    w.run(file, "positions_of_one_row", right | {"position_ids": positions[1:]}, UNCACHED)
    w.run(file, "embeds", {"inputs_embeds": noise(2, 11, 24, seed=4), "labels": tokens}, UNCACHED)
    w.run(file, "one_token", {"input_ids": tokens[:, :1]})
    with torch.no_grad():
        past = w.model(file)(**{name: list(x) if name == "image_patches" else x for name, x in left.items()})
    cached = {
        f"past.{i}.{name}": x
        for i, pair in enumerate(past.past_key_values)
        for name, x in zip(("key", "value"), pair, strict=True)
    }
    more, mask = ids(2, 4, seed=8), torch.cat((left["attention_mask"], torch.ones(2, 4, dtype=torch.long)), 1)
    w.run(file, "past", {"input_ids": more, "labels": more, **cached}, ALL)
    w.run(file, "past_and_mask", {"input_ids": more, "attention_mask": mask, **cached})
    w.run(file, "past_and_one_token", {"input_ids": more[:, :1], **cached})
    w.run(file, "decoder", {"input_ids": tokens, "labels": tokens}, ALL, part="language_model")
    w.run(
        file, "base", {"input_ids": tokens, "attention_mask": right["attention_mask"]}, ALL, part="language_model.model"
    )
    w.run(file, "greedy", left, {"max_new_tokens": 20, "eos_token_id": 2, "pad_token_id": 0})
    w.run(file, "greedy_text", {"input_ids": tokens}, {"max_new_tokens": 20, "eos_token_id": 2, "pad_token_id": 0})


def shapes(value):
    return [shapes(item) for item in value] if isinstance(value, tuple) else list(value.shape)


def facts():
    """State dict names, parameter counts, tuples' shapes and configurations' JSON."""
    found = {"state_dict": {}, "num_parameters": {}, "tuples": {}, "configs": {}}
    tokens = ids(2, 5)
    for name in CLASSES:
        config_class = getattr(transformers, name.partition("For")[0].removesuffix("Model") + "Config")
        for tied in (True, False):
            model = getattr(transformers, name)(config_class(**SMALL, tie_word_embeddings=tied)).eval()
            found["num_parameters"][f"{name} tied={tied}"] = {
                str(int(exclude)): model.num_parameters(exclude_embeddings=exclude) for exclude in (False, True)
            }
        found["state_dict"][name] = {key: list(value.shape) for key, value in model.state_dict().items()}
        given = {} if name.endswith("Model") else {"labels": tokens}
        found["tuples"][name] = {
            "everything": shapes(model(tokens, return_dict=False, **given, **ALL)),
            "no labels": shapes(model(tokens, return_dict=False, **ALL)),
            "bare": shapes(model(tokens, return_dict=False)),
        }
    for family in ("FuyuConfig", "PersimmonConfig"):
        for name, fields in CONFIGS.items():
            if family == "PersimmonConfig" and "text_config" in name:
                continue
            config = getattr(transformers, family)(**fields)
            kept = found["configs"][f"{family} {name}"] = {"fields": fields, "diff": config.to_json_string()}
            if name in ("odd", "unknown_keys"):
                kept["full"] = config.to_json_string(use_diff=False)
    return found


def main(folder):
    assert transformers.__version__ == "4.37.2", transformers.__version__
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    Path(folder).mkdir(parents=True, exist_ok=True)
    writer = Writer(folder)
    model_cases(writer)
    argument_cases(writer)
    writer.write()
    (writer.folder / "facts.json").write_text(json.dumps(facts(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
