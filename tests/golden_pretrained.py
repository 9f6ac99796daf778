"""Write the golden file of the models in the box. Run with an interpreter that has Transformers 4.37.2:

    HF_HUB_OFFLINE=1 PYTHON_OF_THE_REFERENCE tests/golden_pretrained.py tests/golden

Writes pretrained.json: for each model that writes, its ids of some texts, the loss of a held-out one, and a greedy
continuation; for the one that looks at pictures, the ids of a question and a greedy answer.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FuyuForCausalLM

BOX = Path(__file__).parents[1] / "src" / "triptych" / "pretrained"

# The second opens Black Beauty by Anna Sewell (1877), which no model in the box has learned from.
TEXTS = [
    "Once upon a time there was a little girl who",
    "The first place that I can well remember was a large pleasant meadow with a pond of clear water in it. Some shady "
    "trees leaned over it, and rushes and water-lilies grew at the deep end.",
    '"Don\'t!" cried Anne—she was 11 years old—“I won’t have it at any price.”\n\nThe café was CLOSED…',
    "  \ttabs, ½ a mile,\r\n100% ☃ snow  ",
]
PROMPTS = ["Generate a coco-style caption.\n", "Find: red square\n"]


def picture():
    """A red square on white, as the model of the box sees it without shrinking: (96, 128, 3) levels."""
    levels = np.full((96, 128, 3), 255, np.uint8)
    levels[16:46, 20:50] = (220, 40, 40)
    return levels


def record_looking(folder):
    """What the reference's model answers about `picture`; ids and patches are put together here."""
    model = FuyuForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    patches = (picture() / 127.5 - 1).reshape(6, 16, 8, 16, 3).transpose(0, 2, 1, 3, 4).reshape(1, 48, 768)
    one_row = tokenizer.convert_tokens_to_ids(["|SPEAKER|"] * 8 + ["|NEWLINE|"])
    places = np.concatenate([np.append(np.arange(8) + 8 * row, -1) for row in range(6)])
    answers = []
    for prompt in PROMPTS:
        text = tokenizer(prompt, add_special_tokens=False).input_ids
        begin, answer = tokenizer.convert_tokens_to_ids(["<s>", "<0x04>"])
        ids = torch.tensor([[*one_row * 6, begin, *text, answer]])
        indices = torch.full_like(ids, -1)
        indices[0, : len(places)] = torch.from_numpy(places)
        inputs = {"image_patches": [torch.from_numpy(patches).float()], "image_patches_indices": indices}
        with torch.no_grad():
            logits = model(ids, **inputs).logits[0, -1]
            out = model.generate(ids, **inputs, max_new_tokens=30, do_sample=False)
        answers.append({"ids": ids[0].tolist(), "generated": out[0].tolist(), "largest_logit": logits.max().item()})
    return {"prompts": PROMPTS, "answers": answers}


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
    found = {"texts": TEXTS, "models": {folder.name: record(folder) for folder in sorted(BOX.glob("tales-*"))}}
    found["shapes-fuyu"] = record_looking(BOX / "shapes-fuyu")
    file = Path(sys.argv[1]) / "pretrained.json"
    file.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
