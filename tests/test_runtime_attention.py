"""Attention: every implementation sees the same tokens, gives the same numbers, and stays finite."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gpt_neo_models import gap
from triptych.runtime.attention import AttentionMask, attend, check_implementation, merge_heads, split_heads

TOLERANCE = 2e-5


def visible_by_definition(queries: int, keys: int, window: int | None, padding: Tensor) -> Tensor:
    """(B, T, S), one comparison at a time."""
    seen = torch.zeros(len(padding), queries, keys, dtype=torch.bool)
    for row in range(len(padding)):
        for query in range(queries):
            place = keys - queries + query
            for key in range(keys):
                near = window is None or key > place - window
                seen[row, query, key] = key <= place and near and bool(padding[row, key])
    return seen


@st.composite
def problems(draw):
    batch, heads, size = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    past, queries = draw(st.integers(0, 6)), draw(st.integers(1, 6))
    window = draw(st.none() | st.integers(1, 14))
    row = st.lists(st.integers(0, 1), min_size=past + queries, max_size=past + queries)
    padding = draw(st.none() | st.lists(row, min_size=batch, max_size=batch))
    return batch, heads, size, past, queries, window, padding, draw(st.integers(0, 2**31))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_every_implementation_equals_the_definition(problem):
    batch, heads, size, past, queries, window, padding, seed = problem
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, queries, size, generator=generator)
    k, v = (torch.randn(batch, heads, past + queries, size, generator=generator) for _ in range(2))
    attention_mask = None if padding is None else torch.tensor(padding)
    tokens = torch.ones(batch, past + queries) if attention_mask is None else attention_mask
    seen = visible_by_definition(queries, past + queries, window, tokens)[:, None]
    scores = torch.einsum("bhtd,bhsd->bhts", q.double(), k.double()) * 0.7
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0.0)
    expected = (weights @ v.double()).float()
    for impl in ("eager", "sdpa"):
        mask = AttentionMask.of(attention_mask, batch, queries, past, q.device)
        out, none = attend(q, k, v, mask, impl=impl, scale=0.7, window=window)
        assert none is None
        assert gap(out, expected) <= TOLERANCE, impl
    mask = AttentionMask.of(attention_mask, batch, queries, past, q.device)
    _, got = attend(q, k, v, mask, impl="sdpa", scale=0.7, window=window, need_weights=True)
    assert gap(got, weights.float()) <= TOLERANCE


@pytest.mark.parametrize("window", [1, 5, 64, 100])
@pytest.mark.parametrize("past", [0, 3, 90])
@pytest.mark.parametrize("padded", [False, True])
def test_a_window_over_many_tokens_equals_eager_also_without_the_keys_that_it_hides(window, past, padded):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 4, requires_grad=True) for length in (150, past + 150, past + 150))
    attention_mask = torch.ones(2, past + 150)
    attention_mask[1, : past + 70] = 1 - int(padded)
    results = []
    for impl, gone in (("eager", 0), ("sdpa", 0), ("sdpa", max(0, past - window + 1)), ("eager", max(0, past - 99))):
        mask = AttentionMask.of(attention_mask, 2, 150, past, q.device)
        out, _ = attend(q, k[:, :, gone:], v[:, :, gone:], mask, impl=impl, scale=0.7, window=window)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for result in results[1:]:
        assert max(map(gap, result, results[0])) <= 1e-4
    assert gap(results[1][0], results[0][0]) <= TOLERANCE


@pytest.mark.parametrize("impl", ["eager", "sdpa"])
def test_a_row_that_may_see_nothing_gives_zeros_and_finite_gradients(impl):
    q, k, v = (torch.randn(2, 2, 5, 4, requires_grad=True) for _ in range(3))
    mask = AttentionMask.of(torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]), 2, 5, 0, q.device)
    out, _ = attend(q, k, v, mask, impl=impl, scale=1.0, window=2)
    assert out[0, :, :3].abs().max() == 0
    assert out[1].abs().max() == 0
    out.square().sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in (q, k, v))
    assert q.grad[1].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [None, 256])
def test_half_precision_is_finite_where_scores_pass_the_range_of_float16(dtype, impl, window):
    torch.manual_seed(0)
    length = 700
    q, k, v = (torch.randn(1, 2, length, 16) for _ in range(3))
    q, k, v = (q * 60).to(dtype), (k * 60).to(dtype), v.to(dtype)
    assert torch.matmul(q.float(), k.float().transpose(-1, -2)).abs().max() > torch.finfo(torch.float16).max
    attention_mask = torch.ones(1, length)
    attention_mask[:, :40] = 0
    for given_mask in (None, attention_mask):
        mask = AttentionMask.of(given_mask, 1, length, 0, q.device)
        out, _ = attend(q, k, v, mask, impl=impl, scale=1.0, window=window)
        exact, _ = attend(q.float(), k.float(), v.float(), mask, impl="eager", scale=1.0, window=window)
        assert out.dtype == dtype
        assert bool(out.isfinite().all())
        assert gap(out.float(), exact) < 0.05


def test_no_dense_mask_is_made_where_a_flag_or_a_slice_says_the_same():
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    for queries, window in ((6, None), (6, 6), (6, 100), (1, None), (1, 3)):
        mask = AttentionMask.of(torch.ones(1, 6), 1, queries, 6 - queries, q.device)
        attend(q[:, :, -queries:], k, v, mask, impl="sdpa", scale=1.0, window=window)
        assert mask._dense == {}


def test_a_window_makes_masks_of_its_own_size():
    q, k, v = (torch.randn(1, 2, 1000, 4) for _ in range(3))
    mask = AttentionMask.of(None, 1, 1000, 0, q.device)
    attend(q, k, v, mask, impl="sdpa", scale=1.0, window=20)
    assert all(made.numel() <= 64 * (64 + 20) for made in mask._dense.values())
    assert len(mask._dense) <= 4


def test_layers_of_a_kind_share_one_dense_mask():
    mask = AttentionMask.of(None, 1, 6, 0, torch.device("cpu"))
    assert mask.dense(3) is mask.dense(3)
    assert mask.dense(None) is mask.dense(6) is mask.dense(100)


def test_dropped_weights_are_dropped_in_both_implementations():
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4000, 4), torch.ones(1, 1, 4000, 4)
    mask = AttentionMask.of(None, 1, 1, 3999, q.device)
    for impl in ("eager", "sdpa"):
        out, _ = attend(q, k, v, mask, impl=impl, scale=1.0, dropout=0.5)
        assert 0.9 < out.mean() < 1.1
        assert out.mean() != 1.0


@pytest.mark.parametrize("shape", [(2, 6), (1, 5), (2, 5, 1), (5,)])
def test_an_attention_mask_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(batch, past \+ new tokens\) = \(2, 5\); got"):
        AttentionMask.of(torch.ones(shape), 2, 3, 2, torch.device("cpu"))


def test_an_unknown_implementation_is_refused_and_none_is_the_default():
    with pytest.raises(
        ValueError,
        match=r"attn_implementation must be one of eager, sdpa, flash_attention_2, flex_attention; got 'flash'",
    ):
        check_implementation("flash")
    assert check_implementation(None) == "sdpa"


def test_heads_are_split_and_merged_without_loss():
    x = torch.randn(2, 3, 12)
    assert split_heads(x, 4).shape == (2, 3, 3, 4)
    assert torch.equal(merge_heads(split_heads(x, 4)), x)
