"""`flex_attention`: its blocks say what the mask says, its kernel gives what eager gives, and all else is sdpa."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from gpt_neo_models import gap, make, tokens
from triptych.runtime import flex
from triptych.runtime.attention import AttentionMask, attend, check_implementation

TOLERANCE = 2e-5
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # within torch.compile


@pytest.fixture(autouse=True)
def nothing_has_failed(monkeypatch):
    monkeypatch.setattr(flex, "_failed", set())


@pytest.fixture
def kernels(monkeypatch):
    """The kinds that the kernel was used for."""
    used: list[Any] = []
    compiled = flex._compiled
    monkeypatch.setattr(flex, "_compiled", lambda kind: used.append(kind) or compiled(kind))
    return used


# -- the blocks -------------------------------------------------------------------------------------------------


def listed(count: Tensor, numbers: Tensor) -> Tensor:
    """The blocks that a list names: (B, 1, I, J)."""
    blocks = torch.zeros(numbers.shape, dtype=torch.bool)
    for place in torch.cartesian_prod(*map(torch.arange, count.shape)):
        at = tuple(place.tolist())
        chosen = numbers[at][: count[at]].tolist()
        assert len(set(chosen)) == len(chosen)
        blocks[at][chosen] = True
    return blocks


@st.composite
def masks(draw):
    rows, past, queries = draw(st.integers(1, 2)), draw(st.integers(0, 9)), draw(st.integers(1, 17))
    bits = st.lists(st.booleans(), min_size=past + queries, max_size=past + queries)
    runs = st.integers(0, past + queries).map(lambda cut: [place >= cut for place in range(past + queries)])
    attention_mask = draw(st.none() | st.lists(bits | runs, min_size=rows, max_size=rows))
    window = draw(st.none() | st.integers(1, 20))
    return rows, past, queries, window, attention_mask, 0 if window is None else max(0, past - window + 1)


@settings(max_examples=150, deadline=None)
@given(masks())
def test_blocks_and_rule_say_what_the_mask_says(problem):
    rows, past, queries, window, attention_mask, gone = problem
    size, keys = 4, past + queries - gone
    given_mask = None if attention_mask is None else torch.tensor(attention_mask)
    mask = AttentionMask.of(given_mask, rows, queries, past, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "_BLOCK", size)
        blocks = flex.block_mask(mask, window, keys)
    assert blocks.shape == (1 if mask.padding is None else rows, 1, queries, keys)
    seen = mask.dense(window, gone)
    index = torch.meshgrid(torch.arange(len(seen)), torch.arange(queries), torch.arange(keys), indexing="ij")
    assert torch.equal(blocks.mask_mod(index[0], 0, *index[1:])[:, None], seen)
    some = listed(blocks.kv_num_blocks, blocks.kv_indices)
    full = listed(blocks.full_kv_num_blocks, blocks.full_kv_indices)
    for i in range(some.shape[2]):
        for j in range(some.shape[3]):
            part = seen[:, 0, i * size : (i + 1) * size, j * size : (j + 1) * size].flatten(1)
            whole = part.shape[1] == size * size
            assert torch.equal(full[:, 0, i, j], part.all(1) & whole)
            assert torch.equal(some[:, 0, i, j], part.any(1) & ~full[:, 0, i, j])


def test_the_blocks_of_a_local_layer_are_those_within_its_window():
    mask = AttentionMask.of(None, 1, 4096, 0, torch.device("cpu"))
    blocks = flex.block_mask(mask, 256, 4096)
    assert int((blocks.kv_num_blocks + blocks.full_kv_num_blocks).max()) == 3  # of 32


# -- the kernel -------------------------------------------------------------------------------------------------

LEFT = ([0] * 130 + [1] * 70, [1] * 200)
HOLES = ([1, 0, 0, 1] * 50, [0] * 200)


@pytest.mark.parametrize(
    ("past", "window", "attention_mask"),
    [(0, None, LEFT), (40, None, LEFT), (0, None, HOLES), (0, 20, LEFT), (40, 1, HOLES), (40, 150, LEFT)],
)
def test_the_compiled_kernel_gives_what_eager_gives(kernels, monkeypatch, past, window, attention_mask):
    monkeypatch.setattr(flex, "_serves", lambda *what: True)  # also windows, which a CPU leaves to sdpa
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 200 - past, 8), torch.randn(2, 2, 200, 8), torch.randn(2, 2, 200, 8)
    mask = AttentionMask.of(torch.tensor(attention_mask), 2, 200 - past, past, q.device)
    gone = 0 if window is None else max(0, past - window + 1)
    out, none = attend(q, k[:, :, gone:], v[:, :, gone:], mask, impl="flex_attention", scale=0.7, window=window)
    assert none is None
    assert len(kernels) == 1
    assert mask._dense == {}
    exact, _ = attend(q, k, v, mask, impl="eager", scale=0.7, window=window)
    assert gap(out, exact) <= TOLERANCE


def test_a_padded_prompt_is_read_by_the_kernel_and_continued_as_by_eager(kernels):
    ids, attention_mask = tokens(2, 150), torch.ones(2, 150, dtype=torch.long)
    attention_mask[0, :90] = 0
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected, got = (
        make(max_position_embeddings=160, attn_implementation=impl).generate(
            ids, attention_mask=attention_mask, **greedy
        )
        for impl in ("eager", "flex_attention")
    )
    assert kernels
    assert torch.equal(got, expected)


def test_layers_share_their_blocks_and_a_kind_its_kernel(kernels):
    q, k, v = (torch.randn(2, 2, 200, 8) for _ in range(3))
    mask = AttentionMask.of(torch.tensor(LEFT), 2, 200, 0, q.device)
    for _ in range(2):
        attend(q, k, v, mask, impl="flex_attention", scale=1.0)
    assert len(mask._made) == 1
    assert len(set(kernels)) == 1
    assert flex._compiled(kernels[0]) is flex._compiled(kernels[1])


# -- what is left to sdpa ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["gradient", "dropout", "one query", "few queries", "plain order", "alternatives"])
def test_what_the_kernel_cannot_do_or_saves_nothing_with_is_sdpa(kernels, monkeypatch, case):
    calls = []
    sdpa = flex.sdpa
    monkeypatch.setattr(flex, "sdpa", lambda *args, **options: calls.append(1) or sdpa(*args, **options))
    queries = {"one query": 1, "few queries": 100}.get(case, 200)
    q = torch.randn(2, 2, queries, 8, requires_grad=case == "gradient")
    k, v = (torch.randn(2, 2, 200, 8) for _ in range(2))
    given_mask = None if case == "plain order" else torch.tensor(LEFT)
    mask = AttentionMask.of(given_mask, 2, queries, 200 - queries, q.device)
    if case == "alternatives":
        mask = AttentionMask(queries, 200, q.device, mask.padding, shared=0)
    dropout = 0.5 if case == "dropout" else 0.0
    out, _ = attend(q, k, v, mask, impl="flex_attention", scale=1.0, dropout=dropout)
    assert (len(calls), kernels) == (1, [])
    assert bool(out.isfinite().all())
    if case == "gradient":
        out.sum().backward()


def test_a_kernel_that_cannot_be_compiled_is_sdpa_with_one_warning_in_the_process(monkeypatch):
    def broken(kind):
        raise RuntimeError("no compiler was found\nand much more")

    monkeypatch.setattr(flex, "_compiled", broken)
    q, k, v = (torch.randn(2, 2, 200, 8) for _ in range(3))

    def run(impl: str, dtype: torch.dtype) -> Tensor:
        mask = AttentionMask.of(torch.tensor(LEFT), 2, 200, 0, q.device)
        return attend(q.to(dtype), k.to(dtype), v.to(dtype), mask, impl=impl, scale=1.0)[0]

    with pytest.warns(UserWarning, match=r"could not be compiled here, .* RuntimeError: no compiler was found$"):
        first = run("flex_attention", torch.float32)
    assert torch.equal(first, run("sdpa", torch.float32))
    for dtype in (torch.float32, torch.bfloat16):  # the same kind, and another: no more is said
        assert torch.equal(run("flex_attention", dtype), run("sdpa", dtype))


def test_memory_that_runs_out_is_not_taken_for_a_kernel_that_cannot_be_compiled(monkeypatch):
    def full(*args: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flex, "_compiled", lambda kind: full)
    q, k, v = (torch.randn(2, 2, 200, 8) for _ in range(3))
    with pytest.raises(torch.OutOfMemoryError):
        attend(q, k, v, AttentionMask.of(torch.tensor(LEFT), 2, 200, 0, q.device), impl="flex_attention", scale=1.0)
    assert not flex._failed


# -- choosing it ------------------------------------------------------------------------------------------------


def test_a_pytorch_without_it_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs PyTorch 2\.6 or newer, .*; this is "):
        check_implementation("flex_attention")


def test_nobody_who_does_not_choose_it_loads_a_compiler():
    code = (
        "import sys, torch; before = set(sys.modules); from triptych import GPTNeoConfig, GPTNeoForCausalLM;"
        "config = GPTNeoConfig(vocab_size=9, hidden_size=8, num_layers=2, num_heads=2, max_position_embeddings=300,"
        "  attention_types=[[['global', 'local'], 1]], window_size=20, attn_implementation={0!r});"
        "GPTNeoForCausalLM(config).eval()(torch.ones(1, 200, dtype=torch.long));"
        "print(*{{'sympy', 'torch._dynamo', 'torch._inductor', 'flash_attn', 'torch.nn.attention.flex_attention'}}"
        "  & set(sys.modules) - before)"
    )
    for impl in ("sdpa", "flex_attention"):  # which has nothing to compile here: a CPU's windows are sdpa's
        run = subprocess.run([sys.executable, "-c", code.format(impl)], capture_output=True, text=True, check=True)
        assert run.stdout.split() == []
