"""What can be seen on a GPU only: `make check-cuda` runs this file, on a machine that has one.

It compares with the CPU in float32, where the tests of every machine have compared with the reference.
"""

import os
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from decoding_models import FAMILIES, decoder
from gpt_neo_models import tokens
from triptych import AutoModelForCausalLM, AutoTokenizer

DEVICE = os.environ.get("TRIPTYCH_DEVICE", "cuda")  # another one tries this file itself
NEW = {"max_new_tokens": 24, "eos_token_id": None}
CALLS: dict[str, dict[str, Any]] = {
    "one row": {"inputs": tokens(1, 5)} | NEW,
    "rows": {"inputs": tokens(4, 9)} | NEW,
    "an end": {"inputs": tokens(3, 5), "max_new_tokens": 24, "eos_token_id": [3, 7, 9], "pad_token_id": 0},
    "beams": {"inputs": tokens(2, 5), "num_beams": 4} | NEW,
    "contrastive": {"inputs": tokens(1, 5), "penalty_alpha": 0.6, "top_k": 3} | NEW,
    "lookup": {"inputs": tokens(1, 9), "prompt_lookup_num_tokens": 3} | NEW,
    "guided": {"inputs": tokens(2, 5), "guidance_scale": 1.5} | NEW,
}


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same model twice: on the CPU, and on the device."""
    return FAMILIES[request.param](), FAMILIES[request.param]().to(DEVICE)


@pytest.fixture(autouse=True)
def exactly() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def there(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in options.items()}


def is_replayed(model: Any) -> bool:
    prepared = decoder(model)._prepared
    return bool(prepared and prepared.decoders and not prepared.failed)


def test_there_is_a_gpu() -> None:
    assert DEVICE != "cuda" or torch.cuda.is_available(), "these checks are for a machine with a GPU"


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_the_gpu_writes_what_the_cpu_writes(pair: tuple[Any, Any], call: str, padded: bool) -> None:
    here, away = pair
    options = dict(CALLS[call])
    if padded:
        options["attention_mask"] = torch.ones_like(options["inputs"])
        options["attention_mask"][0, :2] = 0
    want = here.generate(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            assert torch.equal(away.generate(**there(options)).cpu(), want)
    if DEVICE == "cuda":
        assert is_replayed(away) == (call in ("one row", "rows", "an end", "beams"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_replayed_scores_of_half_precision_are_those_of_forward(pair: tuple[Any, Any], dtype: torch.dtype) -> None:
    model = pair[1].to(dtype)
    out = model.generate(**there(CALLS["rows"]), return_dict_in_generate=True, output_scores=True)
    with torch.no_grad():
        logits = model(input_ids=out.sequences).logits[:, 8:-1].float()
    assert (torch.stack(out.scores, dim=1) - logits).abs().max() < (0.02 if dtype == torch.float16 else 0.15)


def test_a_compiled_step_writes_the_same(pair: tuple[Any, Any]) -> None:
    here, away = pair
    away.prepare_decoding(compile=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Decoding goes on")
        assert torch.equal(away.generate(**there(CALLS["rows"])).cpu(), here.generate(**CALLS["rows"]))


def test_threads_write_at_once(pair: tuple[Any, Any]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    here, away = pair
    prompts = [tokens(2, 5, seed=seed) for seed in range(6)]
    want = [here.generate(ids, **NEW) for ids in prompts]
    with ThreadPoolExecutor(3) as pool:
        got = list(pool.map(lambda ids: away.generate(ids.to(DEVICE), **NEW).cpu(), prompts))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_changed_weights_are_seen(pair: tuple[Any, Any]) -> None:
    for model in pair:
        model.generate(tokens(2, 5).to(model.device), **NEW)
        for parameter in model.parameters():
            parameter.data.mul_(1.2)
    here, away = (model.generate(tokens(2, 5).to(model.device), **NEW).cpu() for model in pair)
    assert torch.equal(here, away)


def test_the_memory_is_given_back(pair: tuple[Any, Any]) -> None:
    model = pair[1]
    model.generate(**there(CALLS["rows"]))
    if DEVICE == "cuda":
        held = torch.cuda.memory_allocated()
        model.prepare_decoding()
        assert torch.cuda.memory_allocated() < held


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("name", ["tales-neo", "tales-gpt"])
def test_quantised_weights_read_as_well(name: str, kind: str) -> None:
    text = "Once upon a time there was a little girl who lived in a small house near the sea with her old grandfather."
    ids = AutoTokenizer.from_pretrained(f"triptych/{name}")(text, return_tensors="pt").input_ids
    want = AutoModelForCausalLM.from_pretrained(f"triptych/{name}")(ids, labels=ids).loss.item()
    options: dict[str, Any] = {"quantization": kind, "torch_dtype": torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(f"triptych/{name}", device_map={"": DEVICE}, **options)
    assert model.device.type == torch.device(DEVICE).type
    assert model(ids.to(DEVICE), labels=ids.to(DEVICE)).loss.item() == pytest.approx(want, abs=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(ids.to(DEVICE), max_new_tokens=8)
    if DEVICE == "cuda":
        assert is_replayed(model)
