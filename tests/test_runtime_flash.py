"""`flash_attention_2`: what eager gives, through a stand-in for the package; and clear errors where it cannot run."""

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings, strategies as st

from decoding_models import FAMILIES
from flash_attn_stand_in import flash_attn
from fuyu_models import batch, row
from gpt_neo_models import gap, make, tokens
from triptych import AutoModelForCausalLM, GPTNeoForCausalLM
from triptych.runtime import flash
from triptych.runtime.attention import AttentionMask, attend, check_implementation

__all__ = ["flash_attn"]  # a fixture

TOLERANCE = 2e-5
WINDOWS = {"a window shorter than the prompt": 3, "a window longer than all": 30}


def chosen(model: Any, impl: str) -> Any:
    """A copy of the model, with another implementation."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = impl
    return model


def padding(side: str, lengths: tuple[int, ...], longest: int) -> torch.Tensor:
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for index, length in enumerate(lengths):
        mask[index, slice(longest - length, None) if side == "left" else slice(length)] = 1
    return mask


# -- the function -----------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    rows, past, queries = draw(st.integers(1, 3)), draw(st.integers(0, 5)), draw(st.integers(1, 6))
    window = draw(st.none() | st.integers(1, 12))
    bits = st.lists(st.booleans(), min_size=past + queries, max_size=past + queries)
    ends = st.tuples(st.integers(0, past + queries), st.booleans()).map(
        lambda cut: [(place >= cut[0]) == cut[1] for place in range(past + queries)]
    )
    attention_mask = draw(st.none() | st.lists(st.one_of(bits, ends), min_size=rows, max_size=rows))
    gone = draw(st.integers(0, past)) if window is not None else 0
    return (
        rows,
        past,
        queries,
        window,
        attention_mask,
        min(gone, max(0, past - (window or 0) + 1)),
        draw(st.integers(0, 99)),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems())
def test_flash_gives_what_eager_gives_with_zeros_at_padding(flash_attn, problem):
    rows, past, queries, window, attention_mask, gone, seed = problem
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(rows, 2, queries, 4, generator=generator)
    k, v = (torch.randn(rows, 2, past + queries, 4, generator=generator) for _ in range(2))
    given_mask = None if attention_mask is None else torch.tensor(attention_mask)
    mask = AttentionMask.of(given_mask, rows, queries, past, q.device)
    exact, _ = attend(q, k, v, mask, impl="eager", scale=0.7, window=window)
    out, none = attend(q, k[:, :, gone:], v[:, :, gone:], mask, impl="flash_attention_2", scale=0.7, window=window)
    assert none is None
    if given_mask is not None:
        exact, out = exact.clone(), out.clone()
        padded = ~given_mask[:, -queries:]
        padded[:, -1] = False  # `generate` goes on from there
        given_zeros = out.transpose(1, 2)[padded]
        assert not given_zeros.any() or gap(out, exact) <= TOLERANCE  # sdpa, which fills them
        exact.transpose(1, 2)[padded] = out.transpose(1, 2)[padded] = 0
    assert gap(out, exact) <= TOLERANCE


def test_the_window_is_really_passed_and_padding_left_out(flash_attn):
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    whole = AttentionMask.of(None, 2, 9, 0, q.device)
    for window, expected in ((None, (-1, -1)), (3, (2, 0)), (1, (0, 0)), (9, (-1, -1))):
        flash_attn.clear()
        attend(q, k, v, whole, impl="flash_attention_2", scale=1.0, window=window)
        assert flash_attn == [{"rows": None, "window": expected, "queries": 9, "keys": 9}]
    flash_attn.clear()
    padded = AttentionMask.of(padding("left", (9, 4), 9), 2, 9, 0, q.device)
    attend(q, k, v, padded, impl="flash_attention_2", scale=1.0, window=3)
    assert flash_attn == [{"rows": 2, "window": (2, 0), "queries": 13, "keys": 13}]
    assert padded._dense == {}


def test_layers_share_what_is_known_of_the_padding(flash_attn, monkeypatch):
    q, k, v = (torch.randn(2, 2, 9, 4) for _ in range(3))
    mask = AttentionMask.of(padding("left", (9, 4), 9), 2, 9, 0, q.device)
    attend(q, k, v, mask, impl="flash_attention_2", scale=1.0)
    monkeypatch.setattr(flash._Packing, "of", None)
    attend(q, k, v, mask, impl="flash_attention_2", scale=1.0, window=3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_gradients_flow_as_through_eager_and_not_from_padding(flash_attn, side):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 4, requires_grad=True) for _ in range(3))
    attention_mask = padding(side, (9, 4), 9)
    results = []
    for impl in ("eager", "flash_attention_2"):
        mask = AttentionMask.of(attention_mask, 2, 9, 0, q.device)
        out, _ = attend(q, k, v, mask, impl=impl, scale=0.7, window=3)
        loss = (out.transpose(1, 2)[attention_mask.bool()] ** 2).sum()
        results.append((loss, *torch.autograd.grad(loss, (q, k, v))))
    assert max(map(gap, *results)) <= 1e-4


def test_dropped_weights_are_dropped(flash_attn):
    torch.manual_seed(0)
    q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 4000, 4), torch.ones(1, 1, 4000, 4)
    mask = AttentionMask.of(None, 1, 1, 3999, q.device)
    out, _ = attend(q, k, v, mask, impl="flash_attention_2", scale=1.0, dropout=0.5)
    assert 0.9 < out.mean() < 1.1
    assert out.mean() != 1.0


def test_weights_and_head_masks_come_from_eager(flash_attn):
    q, k, v = (torch.randn(1, 2, 5, 4) for _ in range(3))
    mask = AttentionMask.of(None, 1, 5, 0, q.device)
    _, weights = attend(q, k, v, mask, impl="flash_attention_2", scale=1.0, need_weights=True)
    assert weights.shape == (1, 2, 5, 5)
    out, _ = attend(q, k, v, mask, impl="flash_attention_2", scale=1.0, head_mask=torch.tensor([0.0, 1.0]))
    assert not out[:, 0].any()
    assert flash_attn == []


def test_under_autocast_everything_is_of_its_dtype(flash_attn):
    q, k, v = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4).bfloat16()
    mask = AttentionMask.of(None, 1, 5, 0, q.device)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = attend(q, k, v, mask, impl="flash_attention_2", scale=1.0)
    assert out.dtype == torch.bfloat16


# -- the families -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The batch is padded on the right")  # the test wants to
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_every_family_gives_what_eager_gives(flash_attn, family, window, side):
    published = FAMILIES[family](**({"window_size": window} if family == "gpt_neo" else {}))
    ids, more = tokens(3, 9), tokens(3, 2, seed=1)
    longer = F.pad(padding(side, (9, 4, 7), 9) if side != "none" else torch.ones_like(ids), (0, 2), value=1)
    places = (longer.cumsum(-1) - 1).clamp(min=0)
    now = {"attention_mask": longer[:, :9], "position_ids": places[:, :9]}
    then = {"attention_mask": longer, "position_ids": places[:, 9:]}
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    results = []
    with torch.no_grad():
        for impl in ("eager", "flash_attention_2"):
            model = chosen(published, impl)
            logits = [model(ids, **now).logits[longer[:, :9].bool()]]
            if family != "openai_gpt":  # whose documented forward takes no past
                past = model(ids, use_cache=True, **now).past_key_values
                logits.append(model(more, past_key_values=past, **then).logits)
            written = [
                model.generate(ids, attention_mask=longer[:, :9], **greedy, **strategy)
                for strategy in ({}, {"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 3})
            ]
            results.append((logits, written))
    assert flash_attn
    (exact, expected), (got, made) = results
    assert max(map(gap, got, exact)) <= TOLERANCE
    assert all(torch.equal(one, other) for one, other in zip(expected, made, strict=True))


def test_fuyu_reads_pictures_through_it(flash_attn):
    model = FAMILIES["fuyu"]()
    inputs = batch([row(5, 3), row(2, 4, seed=1)])
    kept = inputs["attention_mask"].bool()
    with torch.no_grad():
        exact, got = (chosen(model, impl)(**inputs).logits[kept] for impl in ("eager", "flash_attention_2"))
    assert flash_attn
    assert gap(got, exact) <= TOLERANCE


def test_training_gives_the_loss_and_gradients_of_eager(flash_attn):
    published = make(attention_dropout=0.0, resid_dropout=0.0, embed_dropout=0.0).train()
    ids, attention_mask = tokens(2, 9), padding("right", (9, 5), 9)
    labels = ids.masked_fill(attention_mask == 0, -100)
    found = []
    for impl in ("eager", "flash_attention_2"):
        model = chosen(published, impl)
        loss = model(ids, attention_mask=attention_mask, labels=labels).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert max(map(gap, *found)) <= 1e-4


# -- choosing it ------------------------------------------------------------------------------------------------


def test_it_is_chosen_in_every_documented_way(flash_attn, tmp_path):
    make().save_pretrained(tmp_path)
    ways = [
        GPTNeoForCausalLM.from_pretrained(tmp_path, attn_implementation="flash_attention_2"),
        GPTNeoForCausalLM.from_pretrained(tmp_path, use_flash_attention_2=True),
        AutoModelForCausalLM.from_pretrained(tmp_path, use_flash_attention_2=True),
        AutoModelForCausalLM.from_config(make().config, use_flash_attention_2=True),
        make(attn_implementation="flash_attention_2"),
    ]
    assert [model.config._attn_implementation for model in ways] == ["flash_attention_2"] * len(ways)


def test_without_the_package_a_model_is_not_made_and_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    make().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    rule = r"needs the package flash-attn, 2\.3 or newer; .*pip install flash-attn --no-build-isolation"
    for ask in (
        lambda: make(attn_implementation="flash_attention_2"),
        lambda: GPTNeoForCausalLM.from_pretrained(tmp_path, use_flash_attention_2=True),
        lambda: check_implementation("flash_attention_2"),
    ):
        with pytest.raises(ImportError, match=rule):
            ask()


def test_a_package_that_is_older_or_another_is_refused(monkeypatch):
    package: Any = ModuleType("flash_attn")
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    with pytest.raises(ImportError, match="importing it failed: cannot import name 'flash_attn_func'"):
        check_implementation("flash_attention_2")
    package.flash_attn_func = package.flash_attn_varlen_func = lambda q, k, v, causal=False: q
    with pytest.raises(ImportError, match="the one that is installed is older"):
        check_implementation("flash_attention_2")


def test_a_device_dtype_or_head_that_it_has_no_kernel_for_is_named():
    cuda = torch.device("cuda:0")
    with pytest.raises(ValueError, match=r"on CUDA devices; the model is on cpu, and this machine has "):
        flash.check_can_run(torch.device("cpu"), torch.float16, 64)
    with pytest.raises(ValueError, match=r"in float16 and bfloat16; the model computes in float32\."):
        flash.check_can_run(cuda, torch.float32, 64)
    with pytest.raises(ValueError, match=r"heads of at most 256 numbers; the model's have 512\."):
        flash.check_can_run(cuda, torch.float16, 512)
    flash.check_can_run(cuda, torch.bfloat16, 256)


def test_on_a_cpu_the_first_forward_names_the_machine_and_the_remedy(flash_attn, monkeypatch):
    model = make(attn_implementation="flash_attention_2")
    monkeypatch.setattr(flash, "check_can_run", CHECK)
    with pytest.raises(ValueError, match=r'the model is on cpu, .* or choose attn_implementation="sdpa"'):
        model(tokens())


CHECK = flash.check_can_run
