"""Write the golden files of the decoding strategies. Run in an environment that holds Transformers 4.37.2:

    HF_HUB_OFFLINE=1 PYTHON_OF_THE_REFERENCE tests/golden_strategies.py tests/golden

Reads generation_model/; writes strategies/: assistant/ (a GPT Neo near that model), fuyu/ (a tiny Fuyu), cases.json
(calls and their ids) and scores.safetensors (their scores, attentions and hidden states).
"""

import copy
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import FuyuConfig, FuyuForCausalLM, GPTNeoForCausalLM

ONE = [[5, 6, 7, 8]]
TWO = [[5, 6, 7, 8], [9, 3, 60, 44]]
LONG = [list(range(3, 35))]
ECHO = [[5, 6, 7, 8, 9, 5, 6, 7, 60, 8, 9, 5, 6]]
PAD = {"pad_token_id": 0}
SEARCH = {"penalty_alpha": 0.6, "top_k": 4}
LOOK = {"prompt_lookup_num_tokens": 3}
RULES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5, "eos_token_id": [13, 28]}

# name, prompt, options, seed; "assistant" names a model, "negative" holds negative prompts
CASES = [
    ("contrastive", ONE, SEARCH | {"max_new_tokens": 30}, None),
    ("contrastive, batch", TWO, SEARCH | PAD | {"max_new_tokens": 30}, None),
    ("contrastive, long prompt", LONG, SEARCH | {"max_new_tokens": 30}, None),
    ("contrastive, many candidates", ONE, {"penalty_alpha": 0.9, "top_k": 20, "max_new_tokens": 20}, None),
    ("contrastive, all candidates", ONE, {"penalty_alpha": 0.3, "top_k": 97, "max_new_tokens": 12}, None),
    ("contrastive, only likeness", ONE, {"penalty_alpha": 1.0, "top_k": 5, "max_new_tokens": 12}, None),
    ("contrastive, top_k 50", ONE, {"penalty_alpha": 0.6, "max_new_tokens": 12}, None),
    ("contrastive, low memory", ONE, SEARCH | {"low_memory": True, "max_new_tokens": 30}, None),
    ("contrastive, eos", TWO, SEARCH | PAD | {"eos_token_id": [18, 83], "max_new_tokens": 20}, None),
    ("contrastive, rules", TWO, SEARCH | PAD | RULES | {"max_new_tokens": 25}, None),
    ("contrastive, guided", ONE, SEARCH | {"guidance_scale": 1.5, "max_new_tokens": 12}, None),
    ("top_k 1 is greedy", ONE, {"penalty_alpha": 0.6, "top_k": 1, "max_new_tokens": 8}, None),
    ("assisted", ONE, {"assistant": "assistant", "max_new_tokens": 30}, None),
    ("assisted by itself", LONG, {"assistant": "itself", "max_new_tokens": 30}, None),
    ("assisted, eos", ONE, {"assistant": "assistant", "eos_token_id": [86, 37], "max_new_tokens": 30}, None),
    ("assisted, rules", ECHO, RULES | {"assistant": "assistant", "max_new_tokens": 30}, None),
    ("lookup", ECHO, LOOK | {"max_new_tokens": 30}, None),
    ("lookup, far", ECHO, {"prompt_lookup_num_tokens": 10, "max_new_tokens": 40}, None),
    ("lookup, rules", ECHO, LOOK | RULES | {"max_new_tokens": 30}, None),
    *(("lookup, sampled", ECHO, LOOK | {"do_sample": True, "top_k": 0, "max_new_tokens": 30}, s) for s in range(4)),
    *(("lookup, warped", ECHO, LOOK | {"do_sample": True, "top_k": 4, "temperature": 0.6, "max_new_tokens": 30}, s)
      for s in range(4)),
    *(("assisted, sampled", ONE, {"assistant": "itself", "do_sample": True, "top_k": 5, "temperature": 0.7,
                                  "max_new_tokens": 24}, s) for s in range(4)),
    *(("assisted, sampled, other", ONE, {"assistant": "assistant", "do_sample": True, "top_k": 0, "max_new_tokens": 24},
       s) for s in range(4)),
    *(("assisted, warped", ONE, {"assistant": "assistant", "do_sample": True, "top_k": 9, "temperature": 1.4,
                                 "max_new_tokens": 24}, s) for s in range(4)),
    ("guided", ONE, {"guidance_scale": 1.5, "max_new_tokens": 30}, None),
    ("guided below 1", ONE, {"guidance_scale": 0.5, "max_new_tokens": 12}, None),
    ("guided, batch", TWO, PAD | {"guidance_scale": 2.5, "max_new_tokens": 20}, None),
    ("guided, no cache", TWO, PAD | {"guidance_scale": 2.5, "use_cache": False, "max_new_tokens": 10}, None),
    ("guided, negative", TWO, PAD | {"guidance_scale": 2.0, "negative": [[8, 7], [60, 2]], "max_new_tokens": 20}, None),
    ("guided, long negative", ONE, {"guidance_scale": 2.0, "negative": [[8, 7, 1, 50, 4, 9]], "max_new_tokens": 20},
     None),
    ("guided, rules", TWO, PAD | RULES | {"guidance_scale": 1.7, "max_new_tokens": 20}, None),
    *(("guided, sampled", TWO, PAD | {"guidance_scale": 1.5, "do_sample": True, "top_k": 6, "max_new_tokens": 20}, s)
      for s in range(3)),
]  # fmt: skip
TRACED = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True,
          "output_hidden_states": True}  # fmt: skip
FUYU = [
    ("contrastive", SEARCH | {"max_new_tokens": 10}, None),
    ("greedy", {"max_new_tokens": 10}, None),  # what drafts must leave as it is; the reference fails on them here
    ("guided", {"guidance_scale": 1.5, "max_new_tokens": 10}, None),
]


def near(model: GPTNeoForCausalLM) -> GPTNeoForCausalLM:
    """An assistant that is often right: the first two layers of the model."""
    config = copy.deepcopy(model.config)
    config.num_layers, config.attention_types = 2, [[["global", "local"], 1]]
    config.attention_layers = ["global", "local"]
    assistant = GPTNeoForCausalLM(config).eval()
    assistant.load_state_dict(model.state_dict(), strict=False)
    return assistant


def tiny_fuyu() -> FuyuForCausalLM:
    """A Fuyu with weights large enough for clear choices."""
    torch.manual_seed(4)
    sizes = {
        "vocab_size": 61,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 2,
        "initializer_range": 0.4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return FuyuForCausalLM(FuyuConfig(**sizes)).eval()


def call(model: torch.nn.Module, models: dict, prompt: list, options: dict, seed: int | None, **more: object) -> object:
    """What the reference generates."""
    options = dict(options)
    if "assistant" in options:
        name = options.pop("assistant")
        options["assistant_model"] = copy.deepcopy(model if name == "itself" else models[name])
    if "negative" in options:
        options["negative_prompt_ids"] = torch.tensor(options.pop("negative"))
    if seed is not None:
        torch.manual_seed(seed)
    return model.generate(torch.tensor(prompt), **options, **more)


def main() -> None:
    """Write every file into the folder named on the command line."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    model = GPTNeoForCausalLM.from_pretrained(out / "generation_model").eval()
    models = {"assistant": near(model)}
    models["assistant"].save_pretrained(out / "strategies" / "assistant")
    cases, tensors = [], {}
    for name, prompt, options, seed in CASES:
        output = call(model, models, prompt, options, seed, return_dict_in_generate=True, output_scores=True)
        key = str(len(cases))
        tensors[f"{key}.scores"] = torch.stack(output.scores)[-3:].contiguous()
        cases.append({"name": name, "prompt": prompt, "options": options, "seed": seed,
                      "ids": output.sequences.tolist()})  # fmt: skip
    for name, options in (("contrastive", SEARCH), ("assisted", {"assistant": "assistant"}), ("lookup", LOOK)):
        output = call(model, models, ECHO, options | {"max_new_tokens": 5}, None, **TRACED)
        for step in range(5):
            tensors[f"{name}.attentions.{step}"] = output.attentions[step][1].contiguous()
            tensors[f"{name}.hidden_states.{step}"] = output.hidden_states[step][-1].contiguous()
        tensors[f"{name}.key"] = output.past_key_values[1][0].contiguous()
    fuyu = tiny_fuyu()
    fuyu.save_pretrained(out / "strategies" / "fuyu")
    ids = torch.tensor([[4, 5, 6, 7, 8, 9, 10]])
    patches = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(5))
    places = torch.tensor([[-1, 0, 1, 2, -1, -1, -1]])
    tensors["patches"] = patches
    images = {"image_patches": [patches[0]], "image_patches_indices": places}
    fuyu_cases = [
        {"name": name, "options": options, "ids": call(fuyu, {}, ids.tolist(), options, seed, **images).tolist()}
        for name, options, seed in FUYU
    ]
    embeds = model.get_input_embeddings()(torch.tensor(TWO)).detach()
    past = model(torch.tensor(TWO), use_cache=True).past_key_values
    longer = [[*row, 17] for row in TWO]  # of several new tokens, the reference reads only the last
    record = {
        "cases": cases,
        "fuyu": {"ids": ids.tolist(), "places": places.tolist(), "cases": fuyu_cases},
        "embeds": model.generate(inputs_embeds=embeds, **SEARCH, **PAD, max_new_tokens=8).tolist(),
        "past": model.generate(torch.tensor(longer), past_key_values=past, **PAD, max_new_tokens=8).tolist(),
    }
    (out / "strategies" / "cases.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    save_file(tensors, out / "strategies" / "scores.safetensors")
    for written in (out / "strategies").rglob("*.safetensors"):
        written.chmod(0o644)


if __name__ == "__main__":
    main()
