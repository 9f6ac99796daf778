"""CTranslate2 as an engine. It has no GPT Neo, so it runs a GPT-2 of the same shape with random weights."""

import json
from pathlib import Path
from typing import Any

from serve import Clock, serve

generators: dict[str, Any] = {}


def versions() -> dict[str, Any]:
    """CTranslate2's."""
    import ctranslate2

    return {"library": f"ctranslate2 {ctranslate2.__version__}"}


def make(folder: str) -> dict[str, Any]:
    """Write a random GPT-2 with the help of Transformers, and convert it; the ids that Transformers writes with it."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from transformers import GPT2Config, GPT2LMHeadModel

    source = Path(folder) / "gpt2"
    source.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    model.save_pretrained(source)
    words = {f"t{number}": number for number in range(50256)} | {"<|endoftext|>": 50256}
    (source / "vocab.json").write_text(json.dumps(words))
    (source / "merges.txt").write_text("#version: 0.2\n")
    special = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"} | special))
    TransformersConverter(str(source)).convert(str(Path(folder) / "ctranslate2"), force=True)
    return {}


def expected(folder: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """What Transformers writes with the same weights."""
    import torch
    from transformers import GPT2LMHeadModel

    model, ids = GPT2LMHeadModel.from_pretrained(Path(folder) / "gpt2"), torch.tensor(prompts)
    stop = {"max_new_tokens": new, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    return {"ids": model.generate(ids, attention_mask=torch.ones_like(ids), **stop)[:, ids.shape[1] :].tolist()}


def load(name: str, family: str, folder: str, threads: int, quantization: str) -> dict[str, Any]:
    """Load the converted model."""
    import ctranslate2

    place = str(Path(folder) / "ctranslate2")
    generators[name] = ctranslate2.Generator(place, compute_type=quantization, inter_threads=1, intra_threads=threads)
    return {}


def decode(name: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
    """Continue prompts of one length greedily by `new` tokens."""
    clock = Clock()
    options = {"max_length": new, "min_length": new, "beam_size": 1, "sampling_topk": 1, "end_token": []}
    tokens = [[f"t{number}" for number in row] for row in prompts]
    out = generators[name].generate_batch(tokens, include_prompt_in_result=False, callback=clock, **options)
    return clock.seconds() | {"ids": [row.sequences_ids[0] for row in out]}


if __name__ == "__main__":
    serve({operation.__name__: operation for operation in (versions, make, expected, load, decode)})
