"""Attention on a GPU: flash-attn (where it is installed) and compiled flex_attention give what eager gives.

`make check-cuda` runs this file too, on a machine that has one.
"""

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from decoding_models import FAMILIES
from gpt_neo_models import gap, tokens
from triptych.runtime import flex
from triptych.runtime.attention import AttentionMask, attend

DEVICE = os.environ.get("TRIPTYCH_DEVICE", "cuda")  # another one tries this file itself
IMPLEMENTATIONS = ["flash_attention_2", "flex_attention", "sdpa"]
PADDINGS = ["none", "left", "right"]


@pytest.fixture(autouse=True)
def exactly() -> Iterator[None]:
    """Nothing falls back with a warning."""
    torch.backends.cuda.matmul.allow_tf32 = False
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "flex_attention could not be compiled")
        yield


def needed(impl: str) -> None:
    if impl == "flash_attention_2":
        pytest.importorskip("flash_attn")


def padded(side: str, rows: int, length: int) -> Tensor | None:
    if side == "none":
        return None
    mask = torch.ones(rows, length, dtype=torch.long, device=DEVICE)
    for row in range(1, rows):
        gone = length * row // (rows + 1)
        mask[row, slice(gone) if side == "left" else slice(length - gone, None)] = 0
    return mask


def drawn(past: int, queries: int, head_dim: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(3, 4, length, head_dim, device=DEVICE, dtype=dtype, requires_grad=True)
        for length in (queries, past + queries, past + queries)
    ]


def results(impl: str, inputs: list[Tensor], mask: Tensor | None, window: int | None) -> list[Tensor]:
    """The output where a token asks, and the gradients of q, k and v."""
    q, k, v = inputs
    queries, keys = q.shape[2], k.shape[2]
    seen = AttentionMask.of(mask, len(q), queries, keys - queries, q.device)
    out, _ = attend(q, k, v, seen, impl=impl, scale=q.shape[3] ** -0.5, window=window)
    if mask is not None:
        out = out * mask[:, None, -queries:, None].to(out.dtype)
    return [x.float() for x in (out, *torch.autograd.grad(out.float().square().sum(), inputs))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", PADDINGS)
@pytest.mark.parametrize("window", [None, 1, 100, 256])
@pytest.mark.parametrize(("past", "queries"), [(0, 129), (0, 1000), (300, 200), (511, 1)])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_outputs_and_gradients_are_those_of_eager(
    impl: str, past: int, queries: int, window: int | None, side: str, dtype: torch.dtype
) -> None:
    needed(impl)
    mask = padded(side, 3, past + queries)
    for head_dim in (64, 128):
        inputs = drawn(past, queries, head_dim, dtype)
        exact = results("eager", [x.detach().float().requires_grad_() for x in inputs], mask, window)
        for got, want in zip(results(impl, inputs, mask, window), exact, strict=True):
            assert gap(got, want) <= (0.02 if dtype == torch.float16 else 0.1) * max(1.0, want.abs().max().item())


@pytest.mark.parametrize("lengths", [(200, 333, 500, 700, 1000)])
def test_kernels_serve_any_length_and_stay_few(lengths: tuple[int, ...]) -> None:
    before = flex._compiled.cache_info().currsize
    with torch.no_grad():
        for length in lengths:
            inputs = drawn(0, length, 64, torch.bfloat16)
            mask = AttentionMask.of(None, 3, length, 0, inputs[0].device)
            got, want = (
                attend(*inputs, mask, impl=impl, scale=0.125, window=64)[0] for impl in ("flex_attention", "eager")
            )
            assert gap(got.float(), want.float()) < 0.05
    assert not flex._failed
    assert DEVICE != "cuda" or flex._compiled.cache_info().currsize - before <= 1


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_families_write_likely_the_same_in_half_precision(impl: str, family: str, side: str) -> None:
    needed(impl)
    wide: dict[str, Any] = {"gpt_neo": {"hidden_size": 64, "num_heads": 2, "max_position_embeddings": 256}}.get(
        family, {}
    )
    model = FAMILIES[family](**wide, attn_implementation=impl).to(DEVICE, torch.bfloat16)
    length = 200 if wide else 12
    ids, mask = tokens(3, length).to(DEVICE), padded(side, 3, length)
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=8,
        eos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    places = {} if mask is None else {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    exact = FAMILIES[family](**wide, attn_implementation="eager").to(DEVICE)
    with torch.no_grad():
        want = exact(ids, attention_mask=mask, **places).logits[:, -1]
    assert gap(out.scores[0].float(), want) < 0.3
