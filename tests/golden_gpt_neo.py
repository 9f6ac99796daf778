"""Write the golden files of GPT Neo: python tests/golden_gpt_neo.py FOLDER, run where Transformers 4.37.2 is installed.

One safetensors file per model and one `cases.json`. A file holds `weight.NAME` (float16, so that the files stay
small; the models ran in float32 on exactly these numbers) and, for every case run on that model,
`CASE/in.NAME`, `CASE/out.NAME` and `CASE/grad.NAME`. Weights are drawn large enough for attention to be far from
uniform. `facts.json` holds what is no tensor: names of weights, sizes, JSON of configurations, shapes of tuples.
"""

import json
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from safetensors.torch import save_file
from transformers.activations import ACT2FN

CLASSES = (
    "GPTNeoModel",
    "GPTNeoForCausalLM",
    "GPTNeoForSequenceClassification",
    "GPTNeoForTokenClassification",
    "GPTNeoForQuestionAnswering",
)
ALL = {"output_attentions": True, "output_hidden_states": True}
SMALL = {"vocab_size": 41, "max_position_embeddings": 32, "window_size": 3}
LONG_ROWS = (0, 1, 254, 255, 256, 257, 511, 512, 513, 1023, 2046, 2047)

# model name -> configuration
MODELS = {
    "window3": SMALL
    | {
        "hidden_size": 20,
        "num_layers": 4,
        "attention_types": [[["global", "local"], 2]],
        "num_heads": 5,
        "intermediate_size": 37,
    },
    "arguments": SMALL
    | {"hidden_size": 15, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 5},
    "window1": SMALL
    | {"hidden_size": 21, "num_layers": 1, "attention_types": [[["local"], 1]], "num_heads": 3, "window_size": 1},
    "layers5": SMALL
    | {
        "hidden_size": 14,
        "num_layers": 5,
        "num_heads": 7,
        "window_size": 5,
        "intermediate_size": 11,
        "attention_types": [[["global"], 1], [["local", "local"], 2]],
        "tie_word_embeddings": False,
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-3,
    },
    "wide": SMALL
    | {"hidden_size": 18, "num_layers": 2, "attention_types": [[["local"], 2]], "num_heads": 3, "window_size": 64},
    "acts": SMALL | {"hidden_size": 12, "num_layers": 1, "attention_types": [[["global"], 1]], "num_heads": 3},
    "heads": SMALL
    | {
        "hidden_size": 12,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 3,
        "pad_token_id": 0,
    },
    "published_window": {
        "vocab_size": 13,
        "max_position_embeddings": 2048,
        "hidden_size": 9,
        "num_layers": 3,
        "num_heads": 3,
        "attention_types": [[["local", "global", "local"], 1]],
        "window_size": 256,
    },
}

CONFIGS = {
    "defaults": {},
    "small": {"num_layers": 2, "attention_types": [[["global"], 1], [["local"], 1]], "hidden_size": 16, "num_heads": 2},
    "labels": {"num_labels": 3, "problem_type": "multi_label_classification", "classifier_dropout": 0.3},
    "named_labels": {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}},
    "no_special_tokens": {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0},
    "no_cache": {
        "use_cache": False,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "architectures": ["GPTNeoModel"],
    },
    "unknown_keys": {"summary_type": "cls_index", "gradient_checkpointing": True, "task": {"a": [1, {"b": None}]}},
    "generation": {"max_length": 50, "do_sample": True, "temperature": 0.9, "pruned_heads": {1: [0, 2]}},
    "aliases": {"num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 100},
}


def draw(model, seed):
    """Large random weights that float16 can hold exactly."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 2:
            noise *= 0.4 if name.split(".")[-2] in ("wte", "wpe") else 1 / math.sqrt(weight.shape[1])
        else:
            noise = noise * 0.2 + ("ln_" in name and name.endswith("weight"))
        weight.data = noise.half().float()


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

    def model(self, file, class_name="GPTNeoForCausalLM", seed=0, **changes):
        config = transformers.GPTNeoConfig(**(MODELS[file] | changes))
        model = getattr(transformers, class_name)(config).eval()
        draw(model, seed)
        return model

    def keep_weights(self, file, model, under=""):
        kept = self.tensors.setdefault(file, {})
        for name, weight in model.state_dict().items():
            if not name.endswith(("attn.attention.bias", "masked_bias")) and not (
                name == "lm_head.weight" and model.config.tie_word_embeddings
            ):
                kept[f"{under}weight.{name}"] = weight.half()

    def run(self, file, case, model, inputs, flags=None, changes=None, gradients=False, rows=None, weights=""):
        flags = flags or {}
        past = None
        given = dict(inputs)
        layers = sorted({int(name.split(".")[1]) for name in given if name.startswith("past.")})
        if layers:
            past = tuple((given.pop(f"past.{i}.key"), given.pop(f"past.{i}.value")) for i in layers)
            given["past_key_values"] = past
        model.zero_grad()
        output = model(**given, **flags)
        results = flat(output)
        kept = self.tensors.setdefault(file, {})
        for name, value in inputs.items():
            value = value.to(torch.int16) if value.dtype == torch.int64 else value
            kept[f"{case}/in.{name}"] = value.detach().clone().contiguous()
        for name, value in results.items():
            kept[f"{case}/out.{name}"] = (value if rows is None else value[:, list(rows)]).detach().clone().contiguous()
        if gradients:
            output.loss.backward()
            for name, weight in model.named_parameters():
                if weight.grad is not None:
                    kept[f"{case}/grad.{name}"] = weight.grad.clone()
        self.cases.append(
            {
                "file": file,
                "case": case,
                "class": type(model).__name__,
                "weights": weights,
                "config": MODELS[file] | (changes or {}),
                "flags": flags,
                "rows": list(rows) if rows else None,
                "problem_type": model.config.problem_type,
            }
        )
        return output

    def write(self):
        for file, tensors in self.tensors.items():
            save_file(tensors, self.folder / f"{file}.safetensors")
        (self.folder / "cases.json").write_text(json.dumps(self.cases, indent=1) + "\n")


def ids(*shape, seed=0, low=1, high=41):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def right_padded(batch, length, padding):
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1, length - padding :] = 0
    return mask


def language_model_cases(w):
    for seed, (file, length) in enumerate((("window3", 11), ("window1", 9), ("layers5", 13), ("wide", 8))):
        model = w.model(file, seed=seed)
        w.keep_weights(file, model)
        tokens, mask = ids(2, length, seed=seed), right_padded(2, length, 4)
        labels = tokens.masked_fill(mask == 0, -100)
        labels[0, 2:4] = -100
        padded = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        w.run(file, "padded", model, padded, ALL, gradients=True)
        w.run(file, "plain", model, {"input_ids": tokens, "labels": tokens}, {"output_hidden_states": True})


def argument_cases(w):
    """Every argument of `forward`, on one model."""
    file, uncached = "arguments", {"use_cache": False}
    model = w.model(file, seed=4)
    w.keep_weights(file, model)
    tokens, mask = ids(2, 11, seed=5), right_padded(2, 11, 3)
    generator = torch.Generator().manual_seed(3)
    some = torch.rand(2, 5, generator=generator)
    embeds = torch.randn(2, 11, 15, generator=generator).half().float()
    positions = ids(2, 11, seed=6, low=0, high=32)
    base = {"input_ids": tokens, "labels": tokens}
    for case, given in {
        "head_mask_of_heads": {"head_mask": torch.tensor([1.0, 0, 1, 0.5, 0])},
        "token_types": {"token_type_ids": ids(2, 11, seed=7)},
        "positions": {"position_ids": positions},
        "positions_of_one_row": {"position_ids": positions[:1]},
    }.items():
        w.run(file, case, model, base | given, uncached)
    w.run(file, "head_mask_of_layers", model, base | {"head_mask": some}, uncached | ALL, gradients=True)
    w.run(file, "embeds", model, {"inputs_embeds": embeds, "labels": tokens, "token_type_ids": tokens}, uncached)
    w.run(file, "one_token", model, {"input_ids": tokens[:, :1]})
    with torch.no_grad():
        past = model(tokens[:, :6]).past_key_values
    cached = {
        f"past.{i}.{name}": x for i, pair in enumerate(past) for name, x in zip(("key", "value"), pair, strict=True)
    }
    w.run(file, "past", model, {"input_ids": tokens[:, 6:], **cached}, ALL)
    w.run(file, "past_and_mask", model, {"input_ids": tokens[:, 6:], "attention_mask": mask, **cached}, uncached)
    w.run(file, "past_and_one_token", model, {"input_ids": tokens[:, 6:7], **cached}, uncached)
    w.run(file, "base", model.transformer, {"input_ids": tokens, "attention_mask": mask}, ALL)


def activation_cases(w):
    w.keep_weights("acts", w.model("acts", seed=9))
    for name in sorted(ACT2FN):
        model = w.model("acts", seed=9, activation_function=name)
        w.run(
            "acts", name, model, {"input_ids": ids(2, 5, seed=9)}, {"use_cache": False}, {"activation_function": name}
        )


def head_cases(w):
    """The classes with other heads; all weights apart from the head are shared."""
    file, tokens = "heads", ids(3, 7, seed=11)
    mask = right_padded(3, 7, 2)  # shorter than the window: elsewhere rows that see nothing give zeros here
    tokens = tokens.masked_fill(mask == 0, 0)
    gen = torch.Generator().manual_seed(12)
    sequence = {
        "regression_of_one": (1, torch.randn(3, generator=gen), {}),
        "regression_of_three": (3, torch.randn(3, 3, generator=gen), {"problem_type": "regression"}),
        "single_label": (3, torch.tensor([2, 0, 1]), {}),
        "multi_label": (3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]]), {}),
    }
    padded = {"input_ids": tokens, "attention_mask": mask}
    for case, (count, labels, more) in sequence.items():
        changes = {"num_labels": count} | more
        model = w.model(file, "GPTNeoForSequenceClassification", seed=count, **changes)
        if f"sequence{count}/weight.score.weight" not in w.tensors.get(file, {}):
            w.keep_weights(file, model, f"sequence{count}/")
        gradients = case == "single_label"
        w.run(
            file,
            case,
            model,
            padded | {"labels": labels},
            {"use_cache": False},
            changes,
            gradients,
            weights=f"sequence{count}/",
        )
    changes = {"num_labels": 4}
    model = w.model(file, "GPTNeoForTokenClassification", seed=20, **changes)
    w.keep_weights(file, model, "token/")
    labels = ids(3, 7, seed=13, low=0, high=4).masked_fill(mask == 0, -100)
    w.run(file, "tokens", model, padded | {"labels": labels}, ALL, changes, gradients=True, weights="token/")
    model = w.model(file, "GPTNeoForQuestionAnswering", seed=21)
    w.keep_weights(file, model, "spans/")
    spans = {"start_positions": torch.tensor([1, 0, 3]), "end_positions": torch.tensor([2, 3, 6])}
    w.run(file, "spans", model, padded | spans, ALL, gradients=True, weights="spans/")
    outside = {"start_positions": torch.tensor([1, 7, 30]), "end_positions": torch.tensor([[2], [3], [7]])}
    w.run(file, "spans_outside", model, padded | outside, weights="spans/")


def long_cases(w):
    file = "published_window"
    model = w.model(file, seed=30)
    w.keep_weights(file, model)
    for length in (255, 256, 257, 2048):
        rows = [row for row in LONG_ROWS if row < length] + ([length - 1] if length < 300 else [])
        tokens = ids(1, length, seed=length, low=0, high=13)
        w.run(file, f"length_{length}", model, {"input_ids": tokens}, {"use_cache": False}, rows=rows)


def shapes(value):
    return [shapes(item) for item in value] if isinstance(value, tuple) else list(value.shape)


def facts():
    """State dict names, parameter counts, tuples' shapes and configurations' JSON."""
    small = MODELS["heads"]
    found = {"state_dict": {}, "num_parameters": {}, "tuples": {}, "configs": {}, "activations": sorted(ACT2FN)}
    tokens = ids(2, 5)
    labels = {
        "GPTNeoForCausalLM": {"labels": tokens},
        "GPTNeoForSequenceClassification": {"labels": torch.tensor([0, 1])},
        "GPTNeoForTokenClassification": {"labels": tokens % 2},
        "GPTNeoForQuestionAnswering": {"start_positions": torch.tensor([0, 1]), "end_positions": torch.tensor([1, 1])},
    }
    for name in CLASSES:
        for tied in (True, False):
            model = getattr(transformers, name)(transformers.GPTNeoConfig(**small, tie_word_embeddings=tied)).eval()
            model.base_model.h[0].requires_grad_(False)
            found["num_parameters"][f"{name} tied={tied}"] = {
                f"{trainable}{exclude}": model.num_parameters(
                    only_trainable=bool(trainable), exclude_embeddings=bool(exclude)
                )
                for trainable in (0, 1)
                for exclude in (0, 1)
            }
        found["state_dict"][name] = {key: list(value.shape) for key, value in model.state_dict().items()}
        given = {"input_ids": tokens, "return_dict": False} | labels.get(name, {})
        found["tuples"][name] = {
            "everything": shapes(model(**given, **ALL)),
            "no labels": shapes(model(tokens, return_dict=False, **ALL)),
            "bare": shapes(model(tokens, return_dict=False)),
        }
    for name, fields in CONFIGS.items():
        config = transformers.GPTNeoConfig(**fields)
        found["configs"][name] = {
            "fields": fields,
            "diff": config.to_json_string(),
            "full": config.to_json_string(use_diff=False),
        }
    return found


def main(folder):
    assert transformers.__version__ == "4.37.2", transformers.__version__
    torch.set_num_threads(1)
    writer = Writer(folder)
    for cases in (language_model_cases, argument_cases, activation_cases, head_cases, long_cases):
        cases(writer)
    writer.write()
    (writer.folder / "facts.json").write_text(json.dumps(facts(), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
