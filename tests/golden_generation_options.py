"""Write the golden files of options alone and together, on three families. Run where Transformers 4.37.2 is:

    HF_HUB_OFFLINE=1 PYTHON_OF_THE_REFERENCE tests/golden_generation_options.py tests/golden

Reads generation_model/; writes generation_options/: openai_gpt/ and fuyu/ (tiny random models), cases.json (calls and
their ids), scores.safetensors (each call's last scores, and the scores of the tokens it chose), and two files of
settings.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    FuyuConfig,
    FuyuForCausalLM,
    GenerationConfig,
    GPTNeoForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    generation as reference,
)

from golden_generation import CASES, ONE, PADDED, SAMPLED, TWO

PAD = {"pad_token_id": 0}
END = {"eos_token_id": 44, "pad_token_id": 0}
ENDS = {"eos_token_id": [13, 28, 44, 80], "pad_token_id": 0}
RULES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "bad_words_ids": [[44], [7, 8], [75, 16]]}
BIAS = {"sequence_bias": [[[13], -3.5], [[7, 8, 41], 50.0], [[41, 3], 9.0], [[16], 2.0]]}
BEAMS = {"num_beams": 4, "max_new_tokens": 9}
GROUPS = BEAMS | {"num_beam_groups": 2, "diversity_penalty": 1.5}
DRAWN = BEAMS | {"do_sample": True, "num_beams": 3}
SHORT = {"max_new_tokens": 9}

# name, prompt, options, seeds; "prefix" stands for a prefix_allowed_tokens_fn
PAIRS = [
    ("repetition, n-grams, bad words", TWO, SHORT | PAD | RULES, (None, 0)),
    ("bias, bad words", TWO, SHORT | PAD | BIAS | {"bad_words_ids": [[16, 44]]}, (None, 0)),
    ("bias, repetition", ONE, SHORT | BIAS | {"repetition_penalty": 1.6}, (None, 0)),
    ("bias, normalised", ONE, SHORT | BIAS | {"renormalize_logits": True}, (None, 0)),
    ("shortest text, rising end", TWO, SHORT | ENDS | {"min_new_tokens": 4,
     "exponential_decay_length_penalty": [5, 1.5]}, (None, 0)),
    ("two minima", TWO, {"max_length": 14, "min_length": 9, "min_new_tokens": 3} | ENDS, (None, 0)),
    ("forced ends, suppressed beginning", [[5]], {"max_new_tokens": 7, "forced_bos_token_id": 9,
     "forced_eos_token_id": 10, "begin_suppress_tokens": [75, 16, 44]}, (None, 0)),
    ("forced places, suppressed", ONE, {"max_new_tokens": 7, "forced_decoder_ids": [[5, 7], [7, 9]],
     "begin_suppress_tokens": [3, 4, 75], "suppress_tokens": [44, 10]}, (None, 0)),
    ("prefix", TWO, SHORT | PAD | {"prefix": "even"}, (None, 0)),
    ("prefix, bad words", TWO, SHORT | PAD | {"prefix": "even", "bad_words_ids": [[44], [16]]}, (None, 0)),
    ("normalised warpers", TWO, SHORT | PAD | {"temperature": 0.7, "top_p": 0.8, "typical_p": 0.9,
     "renormalize_logits": True}, (0, 1)),
    ("cutoffs, bias", TWO, SHORT | PAD | BIAS | {"epsilon_cutoff": 0.01, "eta_cutoff": 0.01}, (0, 1)),
    ("remove_invalid_values, warpers", ONE, SHORT | {"remove_invalid_values": True, "top_k": 9}, (0, 1)),
    ("sequences, rules", TWO, SHORT | PAD | RULES | {"num_return_sequences": 2, "top_k": 8}, (0, 1)),
    ("beams", TWO, BEAMS | PAD, (None,)),
    ("beams, rules, forced end", TWO, BEAMS | PAD | RULES | {"forced_eos_token_id": 3}, (None,)),
    ("beams, bias, shortest text", TWO, BEAMS | ENDS | BIAS | {"min_new_tokens": 4}, (None,)),
    ("beams, suppressed, forced places", TWO, BEAMS | PAD | {"suppress_tokens": [44], "begin_suppress_tokens": [75],
     "forced_decoder_ids": [[6, 7]]}, (None,)),
    ("beams, rising end", TWO, BEAMS | END | {"exponential_decay_length_penalty": [2, 1.2],
     "num_return_sequences": 2}, (None,)),
    ("beams, short texts", TWO, BEAMS | END | {"length_penalty": -1.0, "num_return_sequences": 4}, (None,)),
    ("beams, long texts, early", TWO, BEAMS | ENDS | {"length_penalty": 2.0, "early_stopping": True}, (None,)),
    ("beams, never early", TWO, BEAMS | ENDS | {"length_penalty": 0.5, "early_stopping": "never",
     "num_return_sequences": 3}, (None,)),
    ("beams, normalised, bias", TWO, BEAMS | PAD | BIAS | {"renormalize_logits": True}, (None,)),
    ("beams, n-grams of one", ONE, BEAMS | {"no_repeat_ngram_size": 1, "remove_invalid_values": True}, (None,)),
    ("beams, prefix", TWO, BEAMS | PAD | {"prefix": "even", "repetition_penalty": 1.2}, (None,)),
    ("beams, minimum", TWO, {"num_beams": 3, "max_length": 12, "min_length": 9} | ENDS, (None,)),
    ("drawn beams, top_k", TWO, DRAWN | PAD | {"top_k": 5}, (0, 1, 2)),
    ("drawn beams, top_k 1", ONE, DRAWN | {"top_k": 1}, (0, 1)),
    ("drawn beams, top_k 1, ends", TWO, DRAWN | ENDS | {"top_k": 1}, (0, 1)),
    ("drawn beams, top_p", TWO, DRAWN | ENDS | {"top_p": 0.1, "top_k": 0}, (0, 1)),
    ("drawn beams, typical_p", TWO, DRAWN | PAD | {"typical_p": 0.1, "top_k": 0}, (0, 1)),
    ("drawn beams, cutoffs", TWO, DRAWN | PAD | {"epsilon_cutoff": 0.3, "eta_cutoff": 0.3}, (0, 1)),
    ("drawn beams, all warpers", TWO, DRAWN | ENDS | {"temperature": 1.7, "top_k": 20, "top_p": 0.9,
     "renormalize_logits": True, "num_return_sequences": 2}, (0, 1)),
    ("drawn beams, rules", TWO, DRAWN | PAD | RULES | {"top_k": 12, "length_penalty": 0.0}, (0, 1)),
    ("groups, minimum", TWO, GROUPS | END | {"min_length": 9}, (None,)),
    ("groups, rules", TWO, GROUPS | PAD | RULES, (None,)),
    ("groups of one, bias", TWO, BEAMS | ENDS | BIAS | {"num_beam_groups": 4, "diversity_penalty": 0.4,
     "num_return_sequences": 4}, (None,)),
    ("groups, prefix", TWO, GROUPS | PAD | {"prefix": "even", "num_return_sequences": 3}, (None,)),
    ("groups, normalised, forced end", TWO, GROUPS | PAD | {"renormalize_logits": True, "forced_eos_token_id": 3},
     (None,)),
]  # fmt: skip
# Where the reference reads padding as padding.
PADDED_PAIRS = [
    ("padded, rules", PADDED, SHORT | PAD | RULES, (None, 0)),
    ("padded, beams, rules", PADDED, BEAMS | ENDS | RULES, (None,)),
    ("padded, drawn beams", PADDED, DRAWN | ENDS | {"top_k": 6}, (0, 1)),
    ("padded, groups", PADDED, GROUPS | ENDS | {"min_new_tokens": 3}, (None,)),
]

# A value for each option that a file may hold; groups of beams do not sample.
SETTINGS = {
    "max_length": 31, "max_new_tokens": 9, "min_length": 2, "min_new_tokens": 3, "early_stopping": "never",
    "max_time": 2.5, "do_sample": True, "num_beams": 6, "penalty_alpha": 0.4, "use_cache": False,
    "temperature": 0.7, "top_k": 11, "top_p": 0.8, "typical_p": 0.6, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02,
    "repetition_penalty": 1.1, "encoder_repetition_penalty": 1.2, "length_penalty": 0.9,
    "no_repeat_ngram_size": 3, "bad_words_ids": [[3], [4, 5]], "force_words_ids": [[6, 7]], "renormalize_logits": True,
    "constraints": None, "forced_bos_token_id": 1, "forced_eos_token_id": [2, 3], "remove_invalid_values": True,
    "exponential_decay_length_penalty": [5, 1.5], "suppress_tokens": [8], "begin_suppress_tokens": [9],
    "forced_decoder_ids": [[1, 4]], "sequence_bias": [[[5, 6], -1.5]], "guidance_scale": 1.4, "low_memory": True,
    "num_return_sequences": 2, "output_attentions": True, "output_hidden_states": True, "output_scores": True,
    "return_dict_in_generate": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [2, 4],
    "encoder_no_repeat_ngram_size": 2, "decoder_start_token_id": 5, "num_assistant_tokens": 7,
    "num_assistant_tokens_schedule": "constant",
}  # fmt: skip
GROUPED = {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.3, "prompt_lookup_num_tokens": 4}


def large(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with weights large enough for clear choices."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = "norm" in name or "ln_" in name
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(noise * 0.1 + 1 if is_scale and name.endswith("weight") else noise * 0.3)
    return model.eval()


def openai_gpt() -> torch.nn.Module:
    """A tiny OpenAI GPT."""
    sizes = {"vocab_size": 97, "n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3}
    return large(OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes, bos_token_id=1, eos_token_id=2)), 1)


def fuyu() -> torch.nn.Module:
    """A tiny Fuyu."""
    sizes = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
             "num_attention_heads": 3, "max_position_embeddings": 64, "patch_size": 2}  # fmt: skip
    return large(FuyuForCausalLM(FuyuConfig(**sizes, text_config={"model_type": "persimmon", **sizes})), 2)


def even(row: int, ids: torch.Tensor) -> list[int]:
    """Even tokens after odd ones of even rows, and so on: what "prefix" stands for."""
    return list(range((int(ids[-1]) + row) % 2, 97, 2))


def run(model: torch.nn.Module, prompt: list[list[int]], options: dict, seed: int | None) -> object:
    """What the reference generates, as an output object."""
    options = dict(options)
    if "sequence_bias" in options:
        options["sequence_bias"] = {tuple(ids): bias for ids, bias in options["sequence_bias"]}
    if options.pop("prefix", None):
        options["prefix_allowed_tokens_fn"] = even
    if seed is not None:
        torch.manual_seed(seed)
        options["do_sample"] = True
    if isinstance(model, FuyuForCausalLM) and options.get("num_beams", 1) > 1:
        options["use_cache"] = False  # the reference cannot reorder its cache
    return model.generate(torch.tensor(prompt), return_dict_in_generate=True, output_scores=True, **options)


def hamming() -> dict[str, torch.Tensor]:
    """The transform of diverse groups on its own: the second of three groups of two beams, for two prompts."""
    torch.manual_seed(4)
    scores, chosen = torch.randn(4, 9), torch.tensor([3, 3, 8, 1, 2, 3, 5, 6, 7, 0, 0, 0])
    ids = torch.zeros(4, 2, dtype=torch.long)
    out = reference.HammingDiversityLogitsProcessor(0.7, 6, 3)(ids, scores.clone(), chosen, 2)
    return {"hamming.scores": scores, "hamming.chosen": chosen, "hamming.out": out}


def main() -> None:
    """Write every file into a folder of the folder named on the command line."""
    golden = Path(sys.argv[1])
    out = golden / "generation_options"
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    models = {"gpt_neo": GPTNeoForCausalLM.from_pretrained(golden / "generation_model").eval()}
    for name, make in (("openai_gpt", openai_gpt), ("fuyu", fuyu)):
        models[name] = make()
        models[name].save_pretrained(out / name)
        (out / name / "model.safetensors").chmod(0o644)
    alone = [(name, prompt, options, (None, 0)) for name, prompt, options in CASES if prompt is not PADDED]
    alone += [(name, prompt, options, (0,)) for name, prompt, options in SAMPLED if prompt is not PADDED]
    tables = {"gpt_neo": PAIRS + PADDED_PAIRS, "openai_gpt": alone + PAIRS, "fuyu": alone + PAIRS}
    cases, tensors = [], hamming()
    for family, table in tables.items():
        for name, prompt, options, seeds in table:
            for seed in seeds:
                output = run(models[family], prompt, options, seed)
                index = len(cases)
                cases.append({"family": family, "name": name, "prompt": prompt, "options": options, "seed": seed,
                              "ids": output.sequences.tolist(), "steps": len(output.scores)})  # fmt: skip
                tensors[f"{index}.last"] = output.scores[-1].contiguous()
                if "num_beam_groups" not in options:  # the reference mixes up the rows of groups
                    tensors[f"{index}.chosen"] = (
                        models[family]
                        .compute_transition_scores(
                            output.sequences, output.scores, output.get("beam_indices"), bool(index % 2)
                        )
                        .contiguous()
                    )
                if "sequences_scores" in output:
                    tensors[f"{index}.sequences"] = output.sequences_scores.contiguous()
    GenerationConfig(**SETTINGS).save_pretrained(out, "settings.json")
    GenerationConfig(**GROUPED).save_pretrained(out, "grouped.json")
    (out / "cases.json").write_text(
        json.dumps({"cases": cases, "settings": SETTINGS, "grouped": GROUPED}) + "\n", encoding="utf-8"
    )
    save_file(tensors, out / "scores.safetensors")
    (out / "scores.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
