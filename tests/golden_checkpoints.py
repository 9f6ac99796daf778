"""Writes the checkpoints in golden/checkpoints with the reference; run with an interpreter that has Transformers 4.37.

HF_HUB_OFFLINE=1 /path/to/reference/python tests/golden_checkpoints.py [TARGET]
"""

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

SHARDS = "20KB"


def main(target: Path) -> None:
    """One small model with random weights in every kind of file, and what it computes."""
    shutil.rmtree(target, ignore_errors=True)
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=61,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        intermediate_size=48,
        max_position_embeddings=32,
        window_size=5,
        bos_token_id=60,
        eos_token_id=60,
        initializer_range=0.2,  # larger than usual, so that every weight shows in the logits
    )
    model = GPTNeoForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(target / "safetensors")
    model.save_pretrained(target / "sharded_safetensors", max_shard_size=SHARDS)
    model.save_pretrained(target / "bin", safe_serialization=False)
    model.save_pretrained(target / "sharded_bin", safe_serialization=False, max_shard_size=SHARDS)
    model.save_pretrained(target / "variant", variant="fp16", max_shard_size=SHARDS)
    model.transformer.save_pretrained(target / "base")
    legacy = target / "legacy_bin"
    model.config.save_pretrained(legacy)
    torch.save(model.state_dict(), legacy / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    ids = torch.arange(40).remainder(61).view(2, 20)
    with torch.no_grad():
        logits = model(ids).logits
        model.half().save_pretrained(target / "fp16")
        half_logits = model.float()(ids).logits
    save_file({"input_ids": ids, "logits": logits, "fp16_logits": half_logits}, target / "expected.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "golden" / "checkpoints"))
