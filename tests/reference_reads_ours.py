"""Checks by hand that the reference reads what this package saves, and computes the same from it.

.venv/bin/python tests/reference_reads_ours.py write FOLDER
HF_HUB_OFFLINE=1 /path/to/reference/python tests/reference_reads_ours.py read FOLDER
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CASES = {
    "safetensors": {},
    "sharded_safetensors": {"max_shard_size": "20KB"},
    "bin": {"safe_serialization": False},
    "sharded_bin": {"safe_serialization": False, "max_shard_size": "20KB"},
    "variant": {"variant": "fp16"},
    "sharded_variant": {"variant": "fp16", "max_shard_size": "20KB"},
    "half": {},
}


def write(folder: Path) -> None:
    """Save one model in every way, and what it computes."""
    from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

    golden = Path(__file__).parent / "golden" / "checkpoints"
    ids = load_file(golden / "expected.safetensors")["input_ids"]
    model = GPTNeoForCausalLM.from_pretrained(golden / "safetensors")
    for case, options in CASES.items():
        model = model.half() if case == "half" else model
        model.save_pretrained(folder / case, **options)
        with torch.no_grad():
            logits = model.float()(ids).logits
        save_file({"input_ids": ids, "logits": logits}, folder / case / "expected")


def read(folder: Path) -> None:
    """Load each with the reference; exits with an error if logits differ by more than 2e-5."""
    from transformers import GPTNeoForCausalLM

    for case, options in CASES.items():
        expected = load_file(folder / case / "expected")
        model, info = GPTNeoForCausalLM.from_pretrained(
            folder / case, variant=options.get("variant"), output_loading_info=True
        )
        with torch.no_grad():
            difference = float((model(expected["input_ids"]).logits - expected["logits"]).abs().max())
        clean = not any(info.values())
        print(f"{case:20} largest difference {difference:.1e}, {'nothing missing or unexpected' if clean else info}")
        if difference > 2e-5 or not clean:
            sys.exit(f"{case}: the reference reads something else than was saved")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
