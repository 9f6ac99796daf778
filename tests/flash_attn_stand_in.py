"""What the package flash-attn documents, in plain PyTorch on any device, for the tests: its layout, window and ends.

Scores, softmax and sums are in float32. `calls` holds the window and the numbers of queries and keys of each call.
"""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.runtime import flash

calls: list[dict[str, Any]] = []


def flash_attn_func(
    q: Tensor,  # (B, T, H, D)
    k: Tensor,  # (B, S, H, D)
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert q.dim() == k.dim() == v.dim() == 4
    calls.append({"rows": None, "window": window_size, "queries": q.shape[1], "keys": k.shape[1]})
    how = (dropout_p, softmax_scale, causal, window_size)
    return torch.stack([_row(*row, *how) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,  # (all queries, H, D)
    k: Tensor,  # (all keys, H, D)
    v: Tensor,
    cu_seqlens_q: Tensor,  # (B + 1,)
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    assert q.dim() == k.dim() == v.dim() == 3
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert cu_seqlens_q.is_contiguous()
    assert cu_seqlens_k.is_contiguous()
    rows = len(cu_seqlens_q) - 1
    assert len(cu_seqlens_k) == rows + 1
    query_ends, key_ends = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert (query_ends[0], query_ends[-1], key_ends[0], key_ends[-1]) == (0, len(q), 0, len(k))
    assert type(max_seqlen_q) is type(max_seqlen_k) is int
    assert max_seqlen_q == max(query_ends[i + 1] - query_ends[i] for i in range(rows))
    assert max_seqlen_k == max(key_ends[i + 1] - key_ends[i] for i in range(rows))
    calls.append({"rows": rows, "window": window_size, "queries": len(q), "keys": len(k)})
    outs = []
    for i in range(rows):
        queries, keys = slice(*query_ends[i : i + 2]), slice(*key_ends[i : i + 2])
        outs.append(_row(q[queries], k[keys], v[keys], dropout_p, softmax_scale, causal, window_size))
    return torch.cat(outs)


@torch.autocast("cpu", enabled=False)
def _row(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None, causal: bool, window: tuple[int, int]
) -> Tensor:
    """One row: (T, H, D) and (S, H, D) -> (T, H, D); the last query stands at the last key."""
    assert q.dtype == k.dtype == v.dtype
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[1:] == k.shape[1:] == v.shape[1:]
    left, right = window
    if causal:
        right = 0
    place = torch.arange(len(q))[:, None] + len(k) - len(q)
    key = torch.arange(len(k))[None]
    seen = torch.ones(len(q), len(k), dtype=torch.bool)
    if left >= 0:
        seen &= key >= place - left
    if right >= 0:
        seen &= key <= place + right
    q, k, v, dtype = q.float(), k.float(), v.float(), q.dtype
    scores = torch.einsum("thd,shd->hts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores.masked_fill(~seen, torch.finfo(torch.float32).min)
    weights = scores.softmax(dim=-1).masked_fill(~seen, 0.0)
    weights = torch.nn.functional.dropout(weights, dropout)
    return torch.einsum("hts,shd->thd", weights, v).to(dtype)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The package is here, and runs with any device and dtype; gives its calls."""
    package: Any = ModuleType("flash_attn")
    package.flash_attn_func, package.flash_attn_varlen_func = flash_attn_func, flash_attn_varlen_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(flash, "check_can_run", lambda *what: None)
    calls.clear()
    return calls
