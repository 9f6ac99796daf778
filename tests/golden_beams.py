"""Write the golden files of beam search: tests/golden_beams.py FOLDER, run where Transformers 4.37.2 is installed.

`beams.json` holds the cases, each with the ids, scores and beam indices that the reference gives. Beam indices are null
where they are of no use: those of groups count from the group, and beams with the same text have no order among each
other. `beams.safetensors` has the scores of the first steps of some cases. The models are those that
golden_generation.py and golden_openai_gpt.py wrote, and `beams_fuyu`, written here; the reference's Fuyu searches
without its cache.
"""

import itertools
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import FuyuConfig, FuyuForCausalLM, GPTNeoForCausalLM, OpenAIGPTLMHeadModel

ONE = [[5, 6, 7, 8]]
TWO = [[5, 6, 7, 8], [9, 3, 20, 14]]
PADDED = [[0, 0, 7, 8, 12], [9, 3, 20, 14, 31], [0, 0, 0, 0, 21]]

# name, prompt, options
SEARCHED = [
    ("plain", ONE, {"num_beams": 3, "max_new_tokens": 9}),
    ("several texts", TWO, {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 9}),
    ("fewer texts than beams", TWO, {"num_beams": 5, "num_return_sequences": 2, "max_new_tokens": 9}),
    ("one token", TWO, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 1}),
    ("many beams", TWO, {"num_beams": 12, "max_new_tokens": 9, "eos_token_id": 10}),
    ("left padding", PADDED, {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 10, "eos_token_id": 10}),
    ("eos early", TWO, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 20, "eos_token_id": 10}),
    ("eos at the first token", PADDED, {"num_beams": 2, "max_new_tokens": 20, "eos_token_id": [10, 75, 45, 18, 24, 1]}),
    ("several eos", TWO, {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 20, "eos_token_id": [4, 10, 8]}),
    *(
        (
            f"length_penalty {penalty}, early_stopping {early}",
            PADDED,
            {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 16, "eos_token_id": [10, 25],
             "length_penalty": penalty, "early_stopping": early},
        )
        for penalty, early in itertools.product((-1.0, 0.0, 0.5, 2.0), (True, False, "never"))
    ),
    ("min_length", TWO, {"num_beams": 3, "max_new_tokens": 15, "min_length": 10, "eos_token_id": [10, 75]}),
    ("min_new_tokens", PADDED, {"num_beams": 3, "max_new_tokens": 15, "min_new_tokens": 5, "eos_token_id": [10, 25]}),
    ("forced_eos", TWO, {"num_beams": 3, "max_new_tokens": 6, "forced_eos_token_id": 7, "eos_token_id": [7, 10]}),
    ("forced_eos that ends nothing", TWO, {"num_beams": 3, "max_new_tokens": 6, "forced_eos_token_id": 7}),
    ("repetition_penalty", TWO, {"num_beams": 3, "max_new_tokens": 15, "repetition_penalty": 1.4, "eos_token_id": 10}),
    ("no_repeat_ngram_size", PADDED, {"num_beams": 3, "max_new_tokens": 20, "no_repeat_ngram_size": 2,
                                      "eos_token_id": 13, "early_stopping": True}),
    ("bad_words_ids", TWO, {"num_beams": 3, "max_new_tokens": 9, "bad_words_ids": [[10], [1, 8], [1]]}),
    ("sequence_bias", TWO, {"num_beams": 3, "max_new_tokens": 9, "sequence_bias": [[[13], -3.5], [[10, 8], 5.0]]}),
    ("renormalize_logits", TWO, {"num_beams": 3, "max_new_tokens": 12, "repetition_penalty": 1.4, "eos_token_id": 10,
                                 "renormalize_logits": True}),
    ("exponential decay", TWO, {"num_beams": 3, "max_new_tokens": 20, "eos_token_id": 13,
                                "exponential_decay_length_penalty": [4, 1.3]}),
    ("max_length", TWO, {"num_beams": 3, "max_length": 9, "eos_token_id": 10, "early_stopping": "never"}),
    ("stopped at", TWO, {"num_beams": 3, "max_new_tokens": 20, "eos_token_id": 10, "stop_at": 9,
                         "num_return_sequences": 3}),
    ("allowed tokens", PADDED, {"num_beams": 3, "max_new_tokens": 9, "allowed": [3, 4, 9, 10, 22, 31],
                                "num_return_sequences": 3}),
    ("one allowed token", ONE, {"num_beams": 3, "max_new_tokens": 5, "allowed": [3], "num_return_sequences": 3}),
    ("no cache", PADDED, {"num_beams": 3, "max_new_tokens": 8, "use_cache": False, "eos_token_id": 10}),
]  # fmt: skip
GROUPED = [
    *(
        (
            f"{groups} groups of {beams} beams, penalty {penalty}",
            PADDED,
            {"num_beams": beams, "num_beam_groups": groups, "diversity_penalty": penalty, "num_return_sequences": beams,
             "max_new_tokens": 12, "eos_token_id": [10, 25]},
        )
        for groups, beams, penalty in ((2, 4, 0.5), (3, 6, 2.0), (4, 4, 1.0))
    ),
    ("groups, early", TWO, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5, "early_stopping": True,
                            "max_new_tokens": 12, "eos_token_id": 10, "repetition_penalty": 1.3}),
    ("groups, allowed tokens", TWO, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5,
                                     "max_new_tokens": 6, "allowed": [3, 4, 9, 10, 22, 31], "length_penalty": 2.0}),
]  # fmt: skip
CONSTRAINED = [
    ("a word", TWO, {"num_beams": 3, "max_new_tokens": 8, "force_words_ids": [[23]], "eos_token_id": 10}),
    ("a phrase", PADDED, {"num_beams": 4, "max_new_tokens": 9, "force_words_ids": [[23, 2, 29]], "eos_token_id": 10,
                          "num_return_sequences": 2}),
    ("a phrase that begins twice", ONE, {"num_beams": 4, "max_new_tokens": 9, "force_words_ids": [[10, 10, 23]]}),
    ("three words", TWO, {"num_beams": 6, "max_new_tokens": 10, "force_words_ids": [[23], [2, 29], [30]],
                          "eos_token_id": 10}),
    ("a choice", TWO, {"num_beams": 4, "max_new_tokens": 8, "force_words_ids": [[[23, 2], [29], [30, 4, 1]]]}),
    ("a choice and a word", PADDED, {"num_beams": 5, "max_new_tokens": 9, "eos_token_id": [10, 25],
                                     "force_words_ids": [[[23, 2], [4, 23]], [29]], "length_penalty": 0.0}),
    ("a word with rules", TWO, {"num_beams": 4, "max_new_tokens": 12, "force_words_ids": [[23]], "eos_token_id": 10,
                                "no_repeat_ngram_size": 2, "early_stopping": True, "repetition_penalty": 1.2}),
]  # fmt: skip
SAMPLED = [
    ("sampling", TWO, {"num_beams": 3, "max_new_tokens": 9, "top_k": 0, "num_return_sequences": 3}),
    ("top_k", PADDED, {"num_beams": 3, "max_new_tokens": 12, "top_k": 20, "eos_token_id": 10}),
    ("small top_k", TWO, {"num_beams": 2, "max_new_tokens": 9, "top_k": 1, "eos_token_id": [10, 8, 1]}),
    ("hot", TWO, {"num_beams": 4, "max_new_tokens": 9, "temperature": 2.0, "top_k": 0, "num_return_sequences": 2}),
    ("top_p", TWO, {"num_beams": 3, "max_new_tokens": 12, "top_p": 0.8, "eos_token_id": 10, "length_penalty": 2.0}),
    ("sampling, rules", PADDED, {"num_beams": 3, "max_new_tokens": 12, "temperature": 1.5, "typical_p": 0.9,
                                 "repetition_penalty": 1.3, "min_new_tokens": 4, "eos_token_id": 10,
                                 "early_stopping": True, "renormalize_logits": True}),
]  # fmt: skip
TRACED = ("fewer texts than beams", "left padding", "2 groups of 4 beams, penalty 0.5", "sampling")


class StopAt(transformers.StoppingCriteria):
    """Stops all rows at a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> bool:
        return input_ids.shape[1] >= self.length


def fuyu_model() -> FuyuForCausalLM:
    """A small Fuyu with weights large enough for clear choices."""
    config = FuyuConfig(vocab_size=97, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3,
                        max_position_embeddings=64, patch_size=2, eos_token_id=2)  # fmt: skip
    model = FuyuForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        std = 1.0 if "embed_tokens" in name else 0.3
        is_scale = weight.dim() == 1 and "norm" in name and name.endswith("weight")
        weight.data = (torch.randn(weight.shape, generator=generator) * std).half().float() * (not is_scale) + is_scale
    return model


def searched(model: torch.nn.Module, case: dict) -> dict:
    """What the reference gives for the case, and the scores of every step."""
    options = {"pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True} | case["options"]
    if "stop_at" in options:
        options["stopping_criteria"] = transformers.StoppingCriteriaList([StopAt(options.pop("stop_at"))])
    if "allowed" in options:
        allowed = options.pop("allowed")
        options["prefix_allowed_tokens_fn"] = lambda prompt, ids: allowed[: 3 + (prompt + len(ids)) % 4]
    if "sequence_bias" in options:
        options["sequence_bias"] = {tuple(ids): bias for ids, bias in options["sequence_bias"]}
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
        options["do_sample"] = True
    if model.config.model_type == "fuyu":
        options["use_cache"] = False
    ids = torch.tensor(case["prompt"])
    output = model.generate(ids, attention_mask=(ids != 0).long(), **options)
    # beams of the same text have no order among each other
    unsure = "num_beam_groups" in options or (case["seed"] is not None and case["name"] not in ("sampling", "hot"))
    useful = not unsure and output.beam_indices is not None
    return {
        "ids": output.sequences.tolist(),
        "sequences_scores": output.sequences_scores.tolist(),
        "beam_indices": output.beam_indices.tolist() if useful else None,
        "scores": output.scores,
    }


def main() -> None:
    """Write every file into the folder named on the command line."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    fuyu_model().save_pretrained(out / "beams_fuyu")
    models = {
        "generation_model": GPTNeoForCausalLM,
        "openai_gpt/generation_model": OpenAIGPTLMHeadModel,
        "beams_fuyu": FuyuForCausalLM,
    }
    cases, tensors = [], {}
    for folder, kind in models.items():
        model = kind.from_pretrained(out / folder).eval()
        tables = ((None, SEARCHED + GROUPED + CONSTRAINED), (0, SAMPLED), (1, SAMPLED))
        for seed, (name, prompt, options) in [(seed, row) for seed, table in tables for row in table]:
            # that release continues padded prompts of OpenAI GPT wrongly
            rows = [[8, 12], [3, 20]] if prompt == PADDED and kind is OpenAIGPTLMHeadModel else prompt
            case = {"model": folder, "name": name, "prompt": rows, "options": options, "seed": seed}
            given = searched(model, case)
            scores = given.pop("scores")
            if name in TRACED and seed != 1:
                tensors |= {f"{len(cases)}.{step}": value for step, value in enumerate(scores[:4])}
            cases.append(case | given)
    (out / "beams.json").write_text(json.dumps(cases) + "\n", encoding="utf-8")
    save_file(tensors, out / "beams.safetensors")
    for written in (out / "beams.safetensors", out / "beams_fuyu" / "model.safetensors"):
        written.chmod(0o644)


if __name__ == "__main__":
    main()
