"""Write the golden files of OpenAI GPT: tests/golden_openai_gpt.py FOLDER, run where Transformers 4.37.2 is installed.

The files are laid out as golden_gpt_neo.py says. `generation.json` holds the ids of the generation cases that
golden_generation.py lists, without padded prompts, which that release continues wrongly; `generation_model` is the
model that wrote them, as saved by the reference.
"""

import json
import math
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from golden_generation import CASES, PADDED, SAMPLED, run
from golden_gpt_neo import ALL, flat, ids, right_padded, shapes

CLASSES = ("OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel", "OpenAIGPTForSequenceClassification")
SMALL = {"vocab_size": 41, "n_positions": 32, "n_layer": 2}
# model name -> configuration
MODELS = {
    "heads5": SMALL | {"n_embd": 20, "n_layer": 3, "n_head": 5},
    "arguments": SMALL | {"n_embd": 15, "n_head": 3},
    "untied": SMALL
    | {"n_embd": 14, "n_head": 7, "afn": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False},
    "acts": SMALL | {"n_embd": 12, "n_layer": 1, "n_head": 3},
    "double": SMALL | {"n_embd": 12, "n_head": 3},
    "sequence": SMALL | {"n_embd": 12, "n_head": 3, "pad_token_id": 0},
}
PUBLISHED = {
    "afn": "gelu",
    "architectures": ["OpenAIGPTLMHeadModel"],
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "openai-gpt",
    "n_ctx": 512,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 512,
    "n_special": 0,
    "predict_special_tokens": True,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 40478,
}
CONFIGS = {
    "defaults": {},
    "published": PUBLISHED,
    "aliases": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "summary": {
        "summary_type": "mean",
        "summary_use_proj": False,
        "summary_activation": "tanh",
        "summary_proj_to_labels": False,
        "summary_first_dropout": 0.3,
    },
    "labels": {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}},
    "tokens": {"pad_token_id": 0, "eos_token_id": 3, "torch_dtype": "float16", "pruned_heads": {1: [0, 2]}},
}


def draw(model, seed):
    """Large random weights that float16 can hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 2:
            inputs = weight.shape[1] if "summary" in name or "score" in name or "lm_head" in name else weight.shape[0]
            noise *= 0.4 if "_embed" in name else (2.5 if "c_attn" in name else 1.2) / math.sqrt(inputs)
        else:
            noise = noise * 0.2 + ("ln_" in name and name.endswith("weight"))
        weight.data = noise.half().float()


class Writer:
    """Collects what the files and the list of cases hold."""

    def __init__(self, folder):
        self.folder, self.cases, self.tensors = Path(folder), [], {}

    def model(self, file, class_name="OpenAIGPTLMHeadModel", seed=0, under="", **changes):
        """A model whose weights are kept under the name `under`, once."""
        model = getattr(transformers, class_name)(transformers.OpenAIGPTConfig(**(MODELS[file] | changes))).eval()
        draw(model, seed)
        kept = self.tensors.setdefault(file, {})
        for name, weight in model.state_dict().items():
            if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
                kept.setdefault(f"{under}weight.{name}", weight.half())
        return model

    def run(self, file, case, model, inputs, flags=None, changes=None, gradients=False, under="", prune=None):
        if prune:
            model.prune_heads(prune)
        model.zero_grad()
        output = model(**inputs, **(flags or {}))
        kept = self.tensors[file]
        for name, value in inputs.items():
            value = value.to(torch.int16) if value.dtype == torch.int64 else value
            kept[f"{case}/in.{name}"] = value.detach().clone().contiguous()
        for name, value in flat(output).items():
            kept[f"{case}/out.{name}"] = value.detach().clone().contiguous()
        if gradients:
            (output.loss + output.get("mc_loss", 0)).backward()
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    kept[f"{case}/grad.{name}"] = weight.grad.clone()
        self.cases.append(
            {
                "file": file,
                "case": case,
                "class": type(model).__name__,
                "weights": under,
                "config": MODELS[file] | (changes or {}),
                "flags": flags or {},
                "prune": prune,
                "problem_type": model.config.problem_type,
            }
        )

    def write(self):
        for file, tensors in self.tensors.items():
            save_file(tensors, self.folder / f"{file}.safetensors")
            (self.folder / f"{file}.safetensors").chmod(0o644)
        (self.folder / "cases.json").write_text(json.dumps(self.cases, indent=1) + "\n")


def language_model_cases(w):
    for seed, (file, length) in enumerate((("heads5", 11), ("untied", 13))):
        model = w.model(file, seed=seed)
        tokens, mask = ids(2, length, seed=seed), right_padded(2, length, 4)
        labels = tokens.masked_fill(mask == 0, -100)
        labels[0, 2:4] = -100
        padded = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        w.run(file, "padded", model, padded, ALL, gradients=True)
        w.run(file, "plain", model, {"input_ids": tokens, "labels": tokens}, {"output_hidden_states": True})
    full = {"input_ids": ids(1, 32, seed=2)}
    w.run("untied", "full_length", w.model("untied", seed=1), full)


def argument_cases(w):
    """Every argument of `forward`, on one model."""
    file = "arguments"
    model = w.model(file, seed=4)
    tokens, mask = ids(2, 11, seed=5), right_padded(2, 11, 3)
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(2, 3, generator=generator)
    embeds = torch.randn(2, 11, 15, generator=generator).half().float()
    positions = ids(2, 11, seed=6, low=0, high=32)
    base = {"input_ids": tokens, "labels": tokens}
    for case, given in {
        "head_mask_of_heads": {"head_mask": torch.tensor([1.0, 0, 0.5])},
        "token_types": {"token_type_ids": ids(2, 11, seed=7)},
        "positions": {"position_ids": positions},
        "positions_of_one_row": {"position_ids": positions[:1]},
    }.items():
        w.run(file, case, model, base | given)
    left = mask.flip(1)
    counted = {"attention_mask": left, "position_ids": (left.cumsum(-1) - 1).clamp(min=0)}
    w.run(file, "left_padded", model, {"input_ids": tokens} | counted, ALL)
    w.run(file, "head_mask_of_layers", model, base | {"head_mask": some, "attention_mask": mask}, ALL, gradients=True)
    w.run(file, "embeds", model, {"inputs_embeds": embeds, "labels": tokens, "token_type_ids": tokens})
    w.run(file, "one_token", model, {"input_ids": tokens[:, :1]})
    w.run(file, "base", model.transformer, {"input_ids": tokens, "attention_mask": mask}, ALL)
    w.run(file, "two_batch_axes", model, {"input_ids": tokens.view(1, 2, 11), "labels": tokens.view(1, 2, 11)}, ALL)
    w.run(file, "one_row", model.transformer, {"input_ids": tokens[0]}, ALL)
    w.run(file, "pruned", model, base, ALL, gradients=True, prune={0: [1], 1: [0, 2]})


def activation_cases(w):
    for name in ("gelu", "relu", "silu", "swish"):
        model = w.model("acts", seed=9, afn=name)
        w.run("acts", name, model, {"input_ids": ids(2, 5, seed=9)}, changes={"afn": name})


def double_cases(w):
    file, name, tokens = "double", "OpenAIGPTDoubleHeadsModel", ids(2, 3, 7, seed=20)
    labels = tokens.clone()
    labels[0, 1, 3:] = -100
    labels[1, 2, :2] = -100
    places = torch.tensor([[0, 6, 3], [2, 2, 5]])
    right = {"labels": labels, "mc_labels": torch.tensor([2, 0])}
    model = w.model(file, name, seed=21, under="labels/")
    w.run(file, "choices", model, {"input_ids": tokens, "mc_token_ids": places} | right, ALL, None, True, "labels/")
    more = {"token_type_ids": ids(2, 3, 7, seed=22), "position_ids": ids(1, 7, seed=23, low=0, high=32)}
    w.run(file, "choices_last", model, {"input_ids": tokens} | more, under="labels/")
    ignored = {"input_ids": tokens, "mc_labels": torch.tensor([1, -100])}
    w.run(file, "choices_ignored", model, ignored, under="labels/")
    one = {"input_ids": tokens[0], "labels": labels[0], "mc_labels": torch.tensor([1])}
    w.run(
        file,
        "one_example",
        model,
        one | {"attention_mask": right_padded(3, 7, 3), "mc_token_ids": places[1]},
        ALL,
        under="labels/",
    )
    embeds = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(24)).half().float()
    w.run(file, "embeds", model, {"inputs_embeds": embeds, "mc_labels": torch.tensor([0])}, under="labels/")
    for kind in ("last", "first", "mean"):  # with one batch axis only: with two, that release pools over the choices
        changes = {"summary_type": kind}
        model = w.model(file, name, 21, "labels/", **changes)
        w.run(file, f"summary_{kind}", model, one, None, changes, kind == "mean", "labels/")
    for kind in ("tanh", "relu", "gelu"):
        changes = {"summary_activation": kind}
        w.run(
            file,
            kind,
            w.model(file, name, 21, "labels/", **changes),
            {"input_ids": tokens},
            None,
            changes,
            under="labels/",
        )
    changes = {"summary_use_proj": False, "summary_activation": "tanh"}
    given = {"input_ids": tokens, "mc_token_ids": places}
    w.run(file, "no_projection", w.model(file, name, 21, "bare/", **changes), given, None, changes, under="bare/")
    changes = {"summary_proj_to_labels": False, "num_labels": 5}
    given["mc_labels"] = torch.arange(6)
    w.run(file, "hidden_projection", w.model(file, name, 25, "wide/", **changes), given, None, changes, under="wide/")


def sequence_cases(w):
    file, name, tokens = "sequence", "OpenAIGPTForSequenceClassification", ids(3, 7, seed=11)
    mask = right_padded(3, 7, 2)
    padded = {"input_ids": tokens.masked_fill(mask == 0, 0), "attention_mask": mask}
    generator = torch.Generator().manual_seed(12)
    for case, (count, labels, more) in {
        "regression_of_one": (1, torch.randn(3, generator=generator), {}),
        "regression_of_three": (3, torch.randn(3, 3, generator=generator), {"problem_type": "regression"}),
        "single_label": (3, torch.tensor([2, 0, 1]), {}),
        "multi_label": (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]]), {}),
    }.items():
        changes, under = {"num_labels": count} | more, f"labels{count}/"
        model = w.model(file, name, count, under, **changes)
        flags, gradients = (ALL, True) if case == "single_label" else (None, False)
        w.run(file, case, model, padded | {"labels": labels}, flags, changes, gradients, under)
    changes = {"pad_token_id": None, "num_labels": 3}
    w.run(
        file,
        "one_row_unpadded",
        w.model(file, name, 3, "labels3/", **changes),
        {"input_ids": tokens[:1]},
        None,
        changes,
        under="labels3/",
    )


def facts():
    """State dict names, parameter counts, tuples' shapes and configurations' JSON."""
    small = MODELS["sequence"]
    found = {"state_dict": {}, "num_parameters": {}, "tuples": {}, "configs": {}}
    tokens = ids(2, 5)
    labels = {
        "OpenAIGPTLMHeadModel": {"labels": tokens},
        "OpenAIGPTDoubleHeadsModel": {"labels": tokens, "mc_labels": torch.tensor([0])},
        "OpenAIGPTForSequenceClassification": {"labels": torch.tensor([0, 1])},
    }
    for name in CLASSES:
        model = getattr(transformers, name)(transformers.OpenAIGPTConfig(**small)).eval()
        found["state_dict"][name] = {key: list(value.shape) for key, value in model.state_dict().items()}
        found["num_parameters"][name] = [model.num_parameters(), model.num_parameters(exclude_embeddings=True)]
        given = {"input_ids": tokens, "return_dict": False} | labels.get(name, {})
        found["tuples"][name] = {
            "everything": shapes(model(**given, **ALL)),
            "no labels": shapes(model(tokens, return_dict=False, **ALL)),
            "bare": shapes(model(tokens, return_dict=False)),
        }
    for name, fields in CONFIGS.items():
        config = transformers.OpenAIGPTConfig.from_dict(fields)
        found["configs"][name] = {
            "fields": fields,
            "diff": config.to_json_string(),
            "full": config.to_json_string(use_diff=False),
        }
    return found


def generation(folder):
    """Save a small model and the ids that it generates."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "n_embd": 30, "n_layer": 2, "n_head": 3, "n_positions": 64}
    config = transformers.OpenAIGPTConfig(**sizes, bos_token_id=1, eos_token_id=2, initializer_range=0.3)
    model = transformers.OpenAIGPTLMHeadModel(config).eval()
    model.save_pretrained(folder / "generation_model")
    (folder / "generation_model" / "model.safetensors").chmod(0o644)
    cases = [
        {"name": name, "prompt": prompt, "options": options, "seed": seed, "ids": run(model, prompt, options, seed)}
        for seeds, table in (((None, 0), CASES), ((0, 1), SAMPLED))
        for name, prompt, options in table
        if prompt is not PADDED
        for seed in seeds
    ]
    (folder / "generation.json").write_text(json.dumps({"cases": cases}) + "\n")


def main(folder):
    assert transformers.__version__ == "4.37.2", transformers.__version__
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    writer = Writer(folder)
    writer.folder.mkdir(parents=True, exist_ok=True)
    for cases in (language_model_cases, argument_cases, activation_cases, double_cases, sequence_cases):
        cases(writer)
    writer.write()
    (writer.folder / "facts.json").write_text(json.dumps(facts(), indent=1) + "\n")
    generation(writer.folder)


if __name__ == "__main__":
    main(sys.argv[1])
