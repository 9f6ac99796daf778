"""Write the golden file of the models in the box. Run with an interpreter that has Transformers 4.37.2:

    HF_HUB_OFFLINE=1 PYTHON_OF_THE_REFERENCE tests/golden_pretrained.py tests/golden

Writes pretrained.json: for each model its ids of some texts, the loss of a held-out one, and a greedy continuation.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BOX = Path(__file__).parents[1] / "src" / "triptych" / "pretrained"

# The second opens Black Beauty by Anna Sewell (1877), which no model in the box has learned from.
TEXTS = [
    "Once upon a time there was a little girl who",
    "The first place that I can well remember was a large pleasant meadow with a pond of clear water in it. Some shady "
    "trees leaned over it, and rushes and water-lilies grew at the deep end.",
    '"Don\'t!" cried Anne—she was 11 years old—“I won’t have it at any price.”\n\nThe café was CLOSED…',
    "  \ttabs, ½ a mile,\r\n100% ☃ snow  ",
]


def record(folder):
    """What the reference does with a model."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, held_out = (tokenizer(text, return_tensors="pt").input_ids for text in TEXTS[:2])
    with torch.no_grad():
        loss = model(held_out, labels=held_out).loss.item()
        ids = model.generate(prompt, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return {
        "ids": [tokenizer(text).input_ids for text in TEXTS],
        "loss": loss,
        "generated": ids[0].tolist(),
        "text": tokenizer.decode(ids[0]),
    }


if __name__ == "__main__":
    rows = {folder.parent.name: record(folder.parent) for folder in sorted(BOX.glob("*/config.json"))}
    file = Path(sys.argv[1]) / "pretrained.json"
    file.write_text(json.dumps({"texts": TEXTS, "models": rows}, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
