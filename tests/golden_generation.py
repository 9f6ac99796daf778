"""Write the golden files of generation. Run with the interpreter of an environment that holds Transformers 4.37.2:

    HF_HUB_OFFLINE=1 PYTHON_OF_THE_REFERENCE tests/golden_generation.py tests/golden

Writes generation_model/ (a tiny random GPT Neo), generation.json (cases and their ids, streamed pieces, the
configuration's dict), generation_config.json and generation_tensors.safetensors (transforms, output objects).
"""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import GenerationConfig, GPTNeoConfig, GPTNeoForCausalLM, TextStreamer, generation as reference

ONE = [[5, 6, 7, 8]]
TWO = [[5, 6, 7, 8], [9, 3, 60, 44]]
PADDED = [[0, 0, 7, 8, 12], [9, 3, 60, 44, 31], [0, 0, 0, 0, 71]]
LONG = [list(range(3, 35))]

# name, prompt, options; every case runs greedily and, where it may, sampled with three seeds
CASES = [
    ("plain", ONE, {"max_new_tokens": 20}),
    ("long prompt", LONG, {"max_new_tokens": 32}),
    ("two rows", TWO, {"max_new_tokens": 20, "pad_token_id": 0}),
    ("max_length", ONE, {"max_length": 11}),
    ("eos", TWO, {"max_new_tokens": 20, "eos_token_id": 13, "pad_token_id": 0}),
    ("several eos", TWO, {"max_new_tokens": 30, "eos_token_id": [44, 80, 28], "pad_token_id": 96}),
    ("left padded", PADDED, {"max_new_tokens": 12, "pad_token_id": 0}),
    ("left padded, several eos", PADDED, {"max_new_tokens": 24, "pad_token_id": 0, "eos_token_id": [13, 28]}),
    ("no cache", PADDED, {"max_new_tokens": 10, "pad_token_id": 0, "use_cache": False}),
    ("repetition_penalty", TWO, {"max_new_tokens": 20, "repetition_penalty": 1.7, "pad_token_id": 0}),
    ("repetition_penalty below 1", ONE, {"max_new_tokens": 20, "repetition_penalty": 0.6}),
    ("encoder_repetition_penalty", TWO, {"max_new_tokens": 9, "encoder_repetition_penalty": 4.0, "pad_token_id": 0}),
    ("no_repeat_ngram_size 1", TWO, {"max_new_tokens": 30, "no_repeat_ngram_size": 1, "pad_token_id": 0}),
    ("no_repeat_ngram_size 2", TWO, {"max_new_tokens": 40, "no_repeat_ngram_size": 2, "pad_token_id": 0}),
    ("no_repeat_ngram_size 3", ONE, {"max_new_tokens": 50, "no_repeat_ngram_size": 3}),
    ("min_length", TWO, {"max_new_tokens": 20, "min_length": 12, "eos_token_id": 13, "pad_token_id": 0}),
    ("min_new_tokens", TWO, {"max_new_tokens": 20, "min_new_tokens": 9, "eos_token_id": [13, 28], "pad_token_id": 0}),
    ("bad_words_ids", TWO, {"max_new_tokens": 20, "bad_words_ids": [[13], [94, 28], [7, 8, 44]], "pad_token_id": 0}),
    ("suppress_tokens", ONE, {"max_new_tokens": 12, "suppress_tokens": [13, 28, 44]}),
    ("begin_suppress_tokens", ONE, {"max_new_tokens": 12, "begin_suppress_tokens": [13, 44]}),
    ("forced ends", [[5]], {"max_new_tokens": 7, "forced_bos_token_id": 9, "forced_eos_token_id": [10]}),
    ("forced_decoder_ids", ONE, {"max_new_tokens": 7, "forced_decoder_ids": [[5, 7], [6, None], [7, 9]]}),
    ("sequence_bias", TWO, {"max_new_tokens": 12, "sequence_bias": [[[13], -3.5], [[7, 8, 41], 50.0], [[41, 3], 9.0]],
                            "pad_token_id": 0}),
    ("exponential decay", TWO, {"max_new_tokens": 30, "exponential_decay_length_penalty": [4, 1.3], "pad_token_id": 0}),
    ("remove_invalid_values", ONE, {"max_new_tokens": 12, "remove_invalid_values": True}),
    ("renormalize_logits", ONE, {"max_new_tokens": 12, "renormalize_logits": True}),
    ("rules together", PADDED, {"max_new_tokens": 25, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2,
                                "min_new_tokens": 5, "eos_token_id": [13, 28], "bad_words_ids": [[44], [82, 13]],
                                "pad_token_id": 0}),
]  # fmt: skip
SAMPLED = [
    ("top_k off", ONE, {"max_new_tokens": 20, "top_k": 0}),
    ("top_k 3", TWO, {"max_new_tokens": 20, "top_k": 3, "pad_token_id": 0}),
    ("top_k above the vocabulary", ONE, {"max_new_tokens": 20, "top_k": 500}),
    ("temperature", ONE, {"max_new_tokens": 20, "temperature": 0.5}),
    ("hot", TWO, {"max_new_tokens": 20, "temperature": 3.0, "top_k": 0, "pad_token_id": 0}),
    ("top_p", ONE, {"max_new_tokens": 20, "top_p": 0.6}),
    ("top_p alone", TWO, {"max_new_tokens": 20, "top_p": 0.8, "top_k": 0, "pad_token_id": 0}),
    ("top_p after few top_k", TWO, {"max_new_tokens": 20, "top_p": 0.9, "top_k": 6, "pad_token_id": 0}),
    ("typical_p", ONE, {"max_new_tokens": 20, "typical_p": 0.4, "top_k": 0}),
    ("epsilon_cutoff", ONE, {"max_new_tokens": 20, "epsilon_cutoff": 0.02, "top_k": 0}),
    ("eta_cutoff", ONE, {"max_new_tokens": 20, "eta_cutoff": 0.05, "top_k": 0}),
    ("num_return_sequences", TWO, {"max_new_tokens": 12, "num_return_sequences": 3, "pad_token_id": 0}),
    ("num_return_sequences, padded", PADDED, {"max_new_tokens": 12, "num_return_sequences": 2, "pad_token_id": 0,
                                              "eos_token_id": [13, 28, 7]}),
    ("num_return_sequences, no cache", PADDED, {"max_new_tokens": 6, "num_return_sequences": 2, "pad_token_id": 0,
                                                "use_cache": False}),
    ("all warpers", PADDED, {"max_new_tokens": 25, "temperature": 0.8, "top_k": 30, "top_p": 0.95, "typical_p": 0.9,
                             "epsilon_cutoff": 0.001, "eta_cutoff": 0.002, "renormalize_logits": True,
                             "pad_token_id": 0}),
    ("mixture", PADDED, {"max_new_tokens": 25, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3,
                         "no_repeat_ngram_size": 2, "min_new_tokens": 4, "eos_token_id": [13, 28],
                         "num_return_sequences": 2, "pad_token_id": 0}),
]  # fmt: skip

CONFIG = {"max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "top_k": 10, "eos_token_id": [2, 3],
          "note": "kept", "suppress_tokens": [4], "generation_kwargs": {"x": 1}}  # fmt: skip

PIECES = ["Once", " upon", " a", " time", ",", "\n", "\n", " the", " f", "ox", "es", " said", ": “", "你", "好", " x",
          "naï", "ve", " caf", "é", "\n", "end", ".", " 東", "京", " A", "-", "b", " "]  # fmt: skip


def tiny_model() -> GPTNeoForCausalLM:
    """A GPT Neo whose window is shorter than every text, with weights large enough for clear choices."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=97,
        hidden_size=28,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        num_heads=4,
        window_size=3,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,
    )
    return GPTNeoForCausalLM(config).eval()


def run(model: GPTNeoForCausalLM, prompt: list[list[int]], options: dict, seed: int | None) -> list[list[int]]:
    """The ids that the reference generates."""
    options = dict(options)
    if "sequence_bias" in options:
        options["sequence_bias"] = {tuple(ids): bias for ids, bias in options["sequence_bias"]}
    if seed is not None:
        torch.manual_seed(seed)
        options["do_sample"] = True
    return model.generate(torch.tensor(prompt), **options).tolist()


def transform_cases() -> tuple[dict[str, torch.Tensor], list[list]]:
    """Every transform on the same ids and scores, which hold ties; a constructor's arguments as JSON."""
    torch.manual_seed(1)
    ids = torch.randint(0, 40, (4, 12))
    ids[0, 8:] = torch.tensor([5, 6, 5, 6])
    scores = torch.randn(4, 97) * 3
    scores[1, 10:20] = scores[1, 3]
    scores[2, 50:] = -float("inf")
    scores[3] = scores[3].round()
    tensors = {"ids": ids, "scores": scores}
    listed = [
        ["TemperatureLogitsWarper", [0.7]],
        *([["TopKLogitsWarper", [k]] for k in (1, 5, 40, 500)]),
        ["TopKLogitsWarper", [2, -9.0, 7]],
        *([["TopPLogitsWarper", [p]] for p in (0.0, 0.1, 0.5, 0.9, 0.999)]),
        ["TopPLogitsWarper", [0.3, -9.0, 4]],
        *([["TypicalLogitsWarper", [p]] for p in (0.1, 0.5, 0.95)]),
        ["TypicalLogitsWarper", [0.2, -9.0, 5]],
        *([["EpsilonLogitsWarper", [p]] for p in (0.001, 0.05, 0.9)]),
        ["EpsilonLogitsWarper", [0.5, -9.0, 3]],
        *([["EtaLogitsWarper", [p]] for p in (0.001, 0.05, 0.9)]),
        ["RepetitionPenaltyLogitsProcessor", [1.5]],
        *([["NoRepeatNGramLogitsProcessor", [n]] for n in (1, 2, 3, 12, 13)]),
        ["MinLengthLogitsProcessor", [13, 4]],
        ["MinLengthLogitsProcessor", [12, 4]],
        ["MinNewTokensLengthLogitsProcessor", [9, 4, [3, 5]]],
        ["MinNewTokensLengthLogitsProcessor", [9, 3, [3, 5]]],
        ["NoBadWordsLogitsProcessor", [[[4], [6, 7], [6, 8, 9], [5, 6, 5, 6, 11], [3]], [3]]],
        ["ForcedBOSTokenLogitsProcessor", [6]],
        ["ForcedEOSTokenLogitsProcessor", [13, [6, 7]]],
        ["SuppressTokensLogitsProcessor", [[6, 7]]],
        ["SuppressTokensAtBeginLogitsProcessor", [[6, 7], 12]],
        ["SuppressTokensAtBeginLogitsProcessor", [[6, 7], 11]],
        ["ForceTokensLogitsProcessor", [[[12, 3], [13, 4]]]],
        ["ExponentialDecayLengthPenalty", [[3, 1.2], [6, 7], 5]],
        ["ExponentialDecayLengthPenalty", [[7, 1.2], 6, 5]],
        ["InfNanRemoveLogitsProcessor", []],
        ["LogitNormalization", []],
    ]
    for index, (name, arguments) in enumerate(listed):
        tensors[f"transform.{index}"] = getattr(reference, name)(*arguments)(ids, scores.clone()).contiguous()
    return tensors, listed


class Bytes:
    """A tokenizer whose tokens are the bytes of PIECES' words, every other word cut in the middle of its bytes."""

    def __init__(self) -> None:
        self.tokens: list[bytes] = []
        for index, piece in enumerate(PIECES):
            data = piece.encode()
            cut = len(data) // 2 if index % 2 else 0
            self.tokens += [part for part in (data[:cut], data[cut:]) if part]

    def decode(self, ids: list[int], **kwargs: object) -> str:
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


class Recorder(TextStreamer):
    """Keeps the pieces instead of printing them."""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.__dict__.setdefault("pieces", []).append(text)


def streamed() -> dict[str, object]:
    """What the reference's streamer hands on, token by token."""
    tokenizer = Bytes()
    recorder = Recorder(tokenizer)
    for index in range(len(tokenizer.tokens)):
        recorder.put(torch.tensor([index]))
    recorder.end()
    return {"tokens": [list(token) for token in tokenizer.tokens], "pieces": recorder.pieces}


def main() -> None:
    """Write every file into the folder named on the command line."""
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    model = tiny_model()
    model.save_pretrained(out / "generation_model")
    cases = [
        {"name": name, "prompt": prompt, "options": options, "seed": seed, "ids": run(model, prompt, options, seed)}
        for seeds, table in (((None, 0, 1, 2), CASES), ((0, 1, 2), SAMPLED))
        for name, prompt, options in table
        for seed in seeds
    ]
    embeds = model.get_input_embeddings()(torch.tensor(TWO)).detach()
    tensors, listed = transform_cases()
    torch.manual_seed(3)
    options = {"max_new_tokens": 3, "pad_token_id": 0, "do_sample": True, "top_k": 5, "return_dict_in_generate": True}
    traces = {"output_scores": True, "output_attentions": True, "output_hidden_states": True}
    output = model.generate(torch.tensor(PADDED), **options, **traces)
    tensors["output.sequences"] = output.sequences
    for step in range(3):
        tensors[f"output.scores.{step}"] = output.scores[step]
        tensors[f"output.attentions.{step}"] = output.attentions[step][1].contiguous()
        tensors[f"output.hidden_states.{step}"] = output.hidden_states[step][-1].contiguous()
    GenerationConfig(**CONFIG).save_pretrained(out, "generation_config.json")
    record = {
        "cases": cases,
        "embeds": {
            "prompt": TWO,
            "ids": model.generate(inputs_embeds=embeds, max_new_tokens=6, pad_token_id=0).tolist(),
        },
        "no prompt": model.generate(max_new_tokens=6).tolist(),
        "transforms": listed,
        "streamed": streamed(),
        "config": CONFIG,
        "config dict": GenerationConfig(**CONFIG).to_dict(),
        "default dict": GenerationConfig().to_dict(),
    }
    (out / "generation.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    save_file(tensors, out / "generation_tensors.safetensors")
    for written in (out / "generation_tensors.safetensors", out / "generation_model" / "model.safetensors"):
        written.chmod(0o644)


if __name__ == "__main__":
    main()
