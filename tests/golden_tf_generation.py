"""Write the golden file of generation in TensorFlow: tests/golden_tf_generation.py, run where Transformers 4.37.2 is.

The model is `golden/openai_gpt/generation_model`, which the reference's PyTorch class wrote; its TensorFlow and PyTorch
classes continue the same prompt. `tf_generation.json` holds for each case the ids of both, and what the reference's
transforms in TensorFlow make of given scores.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import tensorflow as tf
import torch
import transformers
from transformers import generation

HERE = Path(__file__).parent / "golden" / "openai_gpt"
# many tokens end a text, so that texts do end
ENDS = {"max_new_tokens": 10, "eos_token_id": list(range(3, 97, 9)), "pad_token_id": 0}
BEAMS = ENDS | {"num_beams": 3, "num_return_sequences": 3}
CASES = {
    "greedy": ENDS,
    "no_repeat": ENDS | {"no_repeat_ngram_size": 2},
    "bad_words": ENDS | {"bad_words_ids": [[11], [3, 4]], "eos_token_id": 7},
    "min_length": ENDS | {"min_length": 12, "eos_token_id": 63},
    "beams": BEAMS,
    "beams_short": BEAMS | {"length_penalty": -1.0},
    "beams_early": BEAMS | {"early_stopping": True},
    "beams_never": BEAMS | {"early_stopping": "never"},
    "beams_processed": BEAMS | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}
PROCESSORS = {
    "repetition": lambda: generation.TFRepetitionPenaltyLogitsProcessor(1.7),
    "no_repeats": lambda: generation.TFNoRepeatNGramLogitsProcessor(2),
    "bad_words": lambda: generation.TFNoBadWordsLogitsProcessor([[11], [3, 4], [2, 3, 6]], 7),
    "min_length": lambda: generation.TFMinLengthLogitsProcessor(6, 7),
    "forced_bos": lambda: generation.TFForcedBOSTokenLogitsProcessor(5),
    "forced_eos": lambda: generation.TFForcedEOSTokenLogitsProcessor(6, 7),
    "suppressed": lambda: generation.TFSuppressTokensLogitsProcessor([1, 2, 3]),
    "begin_suppressed": lambda: generation.TFSuppressTokensAtBeginLogitsProcessor([4, 5], 5),
    "temperature": lambda: generation.TFTemperatureLogitsWarper(0.6),
    "top_k": lambda: generation.TFTopKLogitsWarper(4),
    "top_p": lambda: generation.TFTopPLogitsWarper(0.7),
}


def transformed() -> dict[str, object]:
    """Given ids (3, 5) and scores (3, 12), and what each transform makes of the scores."""
    ids = np.array([[2, 3, 4, 2, 3], [1, 1, 1, 1, 1], [8, 9, 8, 3, 9]], np.int32)
    scores = np.random.default_rng(3).normal(size=(3, 12)).astype(np.float32) * 2
    made = {}
    for name, make in PROCESSORS.items():
        after = make()(tf.constant(ids), tf.constant(scores), 5).numpy()
        after[~np.isfinite(after) | (after < -1e8)] = -np.inf
        made[name] = [[None if np.isinf(v) else float(v) for v in row] for row in after]
    return {"ids": ids.tolist(), "scores": scores.tolist(), "after": made}


def main() -> None:
    """Run both classes of the reference on every case."""
    warnings.simplefilter("ignore")
    folder = str(HERE / "generation_model")
    models = {
        "tf": transformers.TFOpenAIGPTLMHeadModel.from_pretrained(folder, from_pt=True),
        "torch": transformers.OpenAIGPTLMHeadModel.from_pretrained(folder).eval(),
    }
    vocabulary = models["torch"].config.vocab_size
    prompts = np.random.default_rng(5).integers(10, vocabulary, (6, 4))
    cases: dict[str, object] = {}
    for name, options in CASES.items():
        cases[name] = {
            "options": options,
            # one row at a time: in a batch of the reference, rows keep each other going
            "tf": [models["tf"].generate(tf.constant(row[None]), **options).numpy().tolist() for row in prompts],
            "torch": [models["torch"].generate(torch.tensor(row[None]), **options).tolist() for row in prompts],
        }
    written = {"prompts": prompts.tolist(), "cases": cases, "transforms": transformed()}
    (HERE / "tf_generation.json").write_text(json.dumps(written) + "\n")


if __name__ == "__main__":
    main()
