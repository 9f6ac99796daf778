"""Record the watermark of a later Transformers (5.24), as 4.37 has none: python tests/golden_watermarking.py.

Writes tests/golden/watermarking.json: settings, ids and scores, the scores' change, and what the detector says.
"""

import json
from pathlib import Path

import torch
from transformers import GPTNeoConfig, WatermarkDetector, WatermarkingConfig, WatermarkLogitsProcessor

VOCABULARY = 300
SETTINGS = (
    {},
    {"greenlist_ratio": 0.5, "bias": 1.25, "hashing_key": 7},
    {"context_width": 3},
    {"seeding_scheme": "selfhash"},
    {"seeding_scheme": "selfhash", "context_width": 4, "greenlist_ratio": 0.4},
    {"seeding_scheme": "selfhash", "context_width": 2, "hashing_key": 999983},
)


def main() -> None:
    """Write the file."""
    torch.manual_seed(0)
    ids = torch.randint(1, VOCABULARY, (3, 24))
    ids[1, 12:] = ids[1, :12]  # repeats itself
    scores = torch.stack([torch.randperm(VOCABULARY) / 64 for _ in ids])  # no two are equal
    config = GPTNeoConfig(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0)
    cases = []
    for settings in SETTINGS:
        change = WatermarkLogitsProcessor(VOCABULARY, "cpu", **settings)(ids, scores.clone()) - scores
        case = {"settings": settings, "green": [(row.abs() > 0.1).nonzero().flatten().tolist() for row in change]}
        for once in (False, True):
            detector = WatermarkDetector(config, "cpu", WatermarkingConfig(**settings), ignore_repeated_ngrams=once)
            found = detector(ids, return_dict=True)
            case[f"once={once}"] = {name: value.tolist() for name, value in vars(found).items()}
        begun = torch.nn.functional.pad(ids, (1, 0))  # bos in front
        detector = WatermarkDetector(config, "cpu", WatermarkingConfig(**settings))
        case["with bos"] = detector(begun, return_dict=True).z_score.tolist()
        cases.append(case)
    facts = {"vocabulary": VOCABULARY, "ids": ids.tolist(), "scores": scores.tolist(), "cases": cases}
    path = Path(__file__).parent / "golden" / "watermarking.json"
    path.write_text(json.dumps(facts, separators=(",", ":")).replace('{"settings"', '\n{"settings"') + "\n")


if __name__ == "__main__":
    main()
