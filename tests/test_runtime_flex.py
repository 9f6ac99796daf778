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
    """The kernel serves on the CPU too; gives the kinds that it was used for.

    Each length is compiled for: PyTorch's compiler for the CPU confuses sizes that vary.
    """
    used: list[Any] = []
    compiled, compiler = flex._compiled, torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compiler(function, dynamic=False))
    monkeypatch.setattr(flex, "_DEVICES", ("cpu",))
    monkeypatch.setattr(flex, "_compiled", lambda kind: used.append(kind) or compiled(kind))
    yield used
    compiled.cache_clear()


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
            assert not bool((part.any(1) & ~some[:, 0, i, j] & ~full[:, 0, i, j]).any())
            assert not bool((some & full).any())
            if mask.padding is None:  # else a block may be listed whose tokens are all behind the queries
                assert torch.equal(some[:, 0, i, j], part.any(1) & ~full[:, 0, i, j])


def test_the_blocks_of_a_local_layer_are_those_within_its_window():
    mask = AttentionMask.of(None, 1, 4096, 0, torch.device("cpu"))
    blocks = flex.block_mask(mask, 256, 4096)
    assert int((blocks.kv_num_blocks + blocks.full_kv_num_blocks).max()) == 3  # of 32


# -- the kernel -------------------------------------------------------------------------------------------------

LEFT = ([0] * 130 + [1] * 70, [1] * 200)
HOLES = ([1, 0, 0, 1] * 50, [0] * 200)


def left() -> AttentionMask:
    return AttentionMask.of(torch.tensor(LEFT), 2, 200, 0, torch.device("cpu"))


@pytest.mark.parametrize(
    ("past", "window", "attention_mask"),
    [(0, None, LEFT), (40, 20, HOLES), (0, 30, None)],
    ids=["left", "holes", "none"],
)
def test_the_compiled_kernel_gives_what_eager_gives(kernels, past, window, attention_mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 2, 200 - past, 8), torch.randn(2, 2, 200, 8), torch.randn(2, 2, 200, 8)
    given_mask = None if attention_mask is None else torch.tensor(attention_mask)
    mask = AttentionMask.of(given_mask, 2, 200 - past, past, q.device)
    gone = 0 if window is None else max(0, past - window + 1)
    for _ in range(2):  # another layer
        out, none = attend(q, k[:, :, gone:], v[:, :, gone:], mask, impl="flex_attention", scale=1.0, window=window)
    assert none is None
    assert len(kernels) == 2
    assert len(set(kernels)) == 1
    assert len(mask._made) == 1
    assert mask._dense == {}
    exact, _ = attend(q, k, v, mask, impl="eager", scale=1.0, window=window)
    assert gap(out, exact) <= TOLERANCE


def test_a_padded_prompt_is_read_by_the_kernel_and_continued_as_by_eager(kernels):
    ids, attention_mask = tokens(2, 150), torch.ones(2, 150, dtype=torch.long)
    attention_mask[0, :9] = 0  # so little that both rows are read together
    small = {"max_position_embeddings": 160, "hidden_size": 16, "num_heads": 2}
    greedy = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected, got = (
        make(**small, attn_implementation=impl).generate(ids, attention_mask=attention_mask, **greedy)
        for impl in ("eager", "flex_attention")
    )
    assert len(kernels) == 2  # layers, one of them local
    assert torch.equal(got, expected)


# -- what is left to sdpa ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["the CPU", "dropout", "one query", "few queries", "plain order", "alternatives"])
def test_what_the_kernel_cannot_do_or_saves_nothing_with_is_sdpa(kernels, monkeypatch, case):
    calls = []
    sdpa = flex.sdpa
    if case == "the CPU":
        monkeypatch.undo()
    monkeypatch.setattr(flex, "sdpa", lambda *args, **options: calls.append(1) or sdpa(*args, **options))
    queries = {"one query": 1, "few queries": 100}.get(case, 200)
    q = torch.randn(2, 2, queries, 8)
    k, v = (torch.randn(2, 2, 200, 8) for _ in range(2))
    given_mask = None if case == "plain order" else torch.tensor(LEFT)
    mask = AttentionMask.of(given_mask, 2, queries, 200 - queries, q.device)
    if case == "alternatives":
        mask = AttentionMask(queries, 200, q.device, mask.padding, shared=0)
    dropout = 0.5 if case == "dropout" else 0.0
    out, _ = attend(q, k, v, mask, impl="flex_attention", scale=1.0, dropout=dropout)
    assert (len(calls), kernels) == (1, [])
    assert bool(out.isfinite().all())


def test_a_kernel_that_cannot_be_compiled_is_sdpa_with_one_warning_in_the_process(kernels, monkeypatch):
    def broken(kind):
        raise RuntimeError("no compiler was found\nand much more")

    monkeypatch.setattr(flex, "_compiled", broken)
    q, k, v = (torch.randn(2, 2, 200, 8) for _ in range(3))

    def run(impl: str, dtype: torch.dtype) -> Tensor:
        return attend(q.to(dtype), k.to(dtype), v.to(dtype), left(), impl=impl, scale=1.0)[0]

    with pytest.warns(UserWarning, match=r"could not be compiled here, .* RuntimeError: no compiler was found$"):
        first = run("flex_attention", torch.float32)
    assert torch.equal(first, run("sdpa", torch.float32))
    for dtype in (torch.float32, torch.bfloat16):  # the same kind, and another: no more is said
        assert torch.equal(run("flex_attention", dtype), run("sdpa", dtype))


def test_a_backward_pass_that_cannot_be_compiled_is_found_before_the_forward_pass_needs_it(kernels):
    q, k, v = (torch.randn(2, 2, 200, 8, requires_grad=True) for _ in range(3))  # the CPU has none
    with pytest.warns(UserWarning, match="could not be compiled here, so sdpa is used instead"):
        first, _ = attend(q, k, v, left(), impl="flex_attention", scale=1.0)
    exact, _ = attend(q, k, v, left(), impl="eager", scale=1.0)
    grads = [torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (first, exact)]
    assert max(map(gap, *grads)) <= 1e-4


def test_memory_that_runs_out_is_not_taken_for_a_kernel_that_cannot_be_compiled(kernels, monkeypatch):
    def full(*args: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(flex, "_compiled", lambda kind: full)
    q, k, v = (torch.randn(2, 2, 200, 8) for _ in range(3))
    with pytest.raises(torch.OutOfMemoryError):
        attend(q, k, v, left(), impl="flex_attention", scale=1.0)
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
