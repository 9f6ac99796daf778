"""Prompts of uneven lengths: `generate` computes little of their padding, and gives what it gives with all of it."""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor, nn

import fuyu_models
import gpt_neo_models
from decoding_models import FAMILIES, decoder
from triptych.errors import GenerationWarning, TokenIdError
from triptych.generation import feed_torch, prefill_torch
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

TOLERANCE = 2e-5
NEVER: dict[str, Any] = {"eos_token_id": None, "pad_token_id": 0}  # no end
TOLD: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}


@pytest.fixture(autouse=True)
def quick_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Calls that cost one token's work, so that a few short rows are worth a group of their own."""
    monkeypatch.setattr(prefill_torch, "READING_ON_CPU", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GenerationWarning)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def neo() -> GPTNeoForCausalLM:
    return gpt_neo_models.make()


def padded(*lengths: int, more: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """A left-padded batch, each row behind `more` padding still."""
    width = max(lengths) + more
    ids = gpt_neo_models.tokens(len(lengths), width, seed)
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    return {"input_ids": ids * mask, "attention_mask": mask}


class Calls:
    """Counts what a model is fed: (rows, tokens) of each call."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        inner = model.next_token_logits

        def counted(ids: Tensor | None, **inputs: Any) -> Any:
            self.shapes.append(tuple((inputs["inputs_embeds"] if ids is None else ids).shape[:2]))
            return inner(ids, **inputs)

        monkeypatch.setattr(model, "next_token_logits", counted)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Calls]:
    return lambda model: Calls(model, monkeypatch)


def both_ways(model: Any, **inputs: Any) -> tuple[Any, Any]:
    """What `generate` gives in groups, and what with all padding."""
    in_groups, outs = feed_torch.in_groups, []
    try:
        for one in (in_groups, lambda *_: None):
            feed_torch.in_groups = one
            torch.manual_seed(0)
            outs.append(model.generate(**inputs))
    finally:
        feed_torch.in_groups = in_groups
    return outs[0], outs[1]


def assert_alike(ours: Any, whole: Any) -> None:
    """The same ids, and scores as close as rounding."""
    assert ours.sequences.tolist() == whole.sequences.tolist()
    assert len(ours.scores) == len(whole.scores)
    for mine, theirs in zip(ours.scores, whole.scores, strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=TOLERANCE)


# -- the plan --------------------------------------------------------------------------------------------------------


def work(groups: list[list[int]], lengths: list[int], call: int) -> int:
    return sum(len(rows) * max(lengths[row] for row in rows) + call for rows in groups)


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(0, 40))
def test_no_grouping_of_neighbours_takes_less_work_than_the_plan(lengths: list[int], call: int) -> None:
    groups = prefill_torch.plan(lengths, call)
    assert sorted(itertools.chain(*groups)) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    every = [
        [order[start:stop] for start, stop in itertools.pairwise([0, *cuts, len(order)])]
        for many in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), many)
    ]
    assert work(groups, lengths, call) == min(work(one, lengths, call) for one in every)
    assert all(lengths[rows[0]] == max(lengths[row] for row in rows) for rows in groups)


def test_a_call_costs_more_where_weights_are_read_slowly_or_kernels_are_launched_slowly() -> None:
    lengths = [512, 400, 40, 32]
    assert [len(prefill_torch.plan(lengths, prefill_torch.cost_of_call("cuda", size))) for size in (768, 4096)] == [
        1,
        2,
    ]
    assert len(prefill_torch.plan(lengths, prefill_torch.cost_of_call("cpu", 768))) == 4


# -- how much is computed --------------------------------------------------------------------------------------------


def test_rows_of_like_length_are_fed_together_without_padding(model: Any, calls: Callable[[Any], Calls]) -> None:
    fed = calls(model)
    model.generate(**padded(3, 12, 3, 12), max_new_tokens=3, **NEVER)
    assert fed.shapes == [(2, 12), (2, 3), (4, 1), (4, 1)]


def test_padding_that_all_rows_share_is_not_computed(model: Any, calls: Callable[[Any], Calls]) -> None:
    fed = calls(model)
    model.generate(**padded(4, 4, more=6), max_new_tokens=2, **NEVER)
    assert fed.shapes == [(2, 4), (2, 1)]


@pytest.mark.parametrize("lengths", [(9, 9), (9, 8)], ids=str)
def test_a_batch_that_is_even_enough_is_one_call(
    neo: GPTNeoForCausalLM, calls: Callable[[Any], Calls], lengths: tuple[int, int]
) -> None:
    fed = calls(neo)
    neo.generate(**padded(*lengths), max_new_tokens=1, **NEVER)
    assert fed.shapes == [(2, 9)]


def test_the_cache_has_its_final_place_and_size_from_the_start(
    neo: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = padded(3, 12, 5) | {"max_new_tokens": 6, **NEVER, **TOLD}
    whole = both_ways(neo, **inputs)[1].past_key_values
    read, in_groups = [], feed_torch.in_groups
    monkeypatch.setattr(feed_torch, "in_groups", lambda *given: read.append(in_groups(*given)) or read[0])
    ours = neo.generate(**inputs).past_key_values
    assert [key.data_ptr() for key, _ in ours] == [key.data_ptr() for key, _ in read[0].cache]
    for (key, value), pair in zip(ours, whole, strict=True):
        assert [key.shape, value.shape] == [x.shape for x in pair]
        assert key.untyped_storage().nbytes() == pair[0].untyped_storage().nbytes() == 3 * 17 * 12 * 4
        assert not key[0, :, :9].any()  # no padding is in it
        assert not value[2, :, :7].any()


# -- what comes out --------------------------------------------------------------------------------------------------

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, some end": {"eos_token_id": list(range(1, 31, 4))},
    "greedy, no cache": {"use_cache": False},
    "sample": {"do_sample": True, "num_return_sequences": 3},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "beam sample": {"num_beams": 3, "do_sample": True},
    "group beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.6},
    "constrained beam": {"num_beams": 3, "force_words_ids": [[8, 4]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 4},
    "contrastive, low memory": {"penalty_alpha": 0.5, "top_k": 4, "low_memory": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "prompt lookup, sample": {"prompt_lookup_num_tokens": 3, "do_sample": True},
    "guided": {"guidance_scale": 1.5},
    "guided by a padded prompt": {
        "guidance_scale": 1.5,
        "negative_prompt_ids": padded(2, 5, 9, 2, seed=1)["input_ids"],
        "negative_prompt_attention_mask": padded(2, 5, 9, 2)["attention_mask"],
    },
    "guided beam": {"guidance_scale": 1.5, "num_beams": 2},
    "guided contrastive": {"guidance_scale": 1.5, "penalty_alpha": 0.5, "top_k": 3},
    "rules": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_what_it_gives_with_all_padding(model: Any, name: str) -> None:
    inputs = padded(3, 12, 3, 7) | {"max_new_tokens": 6, **NEVER, **TOLD} | STRATEGIES[name]
    assert_alike(*both_ways(model, **inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_drafts_of_an_assistant_are_checked_as_with_all_padding(family: str) -> None:
    model, assistant = FAMILIES[family](), FAMILIES[family](seed=1)
    assert_alike(*both_ways(model, **padded(3, 12, 3, 7), assistant_model=assistant, max_new_tokens=8, **NEVER, **TOLD))


FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=25, **FEW)
@given(st.lists(st.integers(1, 14), min_size=1, max_size=5), st.integers(0, 3), st.integers(0, 99), st.integers(0, 12))
def test_a_batch_gives_what_each_row_gives_alone(
    model: Any, lengths: list[int], more: int, seed: int, call: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill_torch, "READING_ON_CPU", call)
        inputs = padded(*lengths, more=more, seed=seed)
        together = model.generate(**inputs, max_new_tokens=5, **NEVER, **TOLD)
    scores = torch.stack(together.scores)
    for row, length in enumerate(lengths):
        alone = model.generate(inputs["input_ids"][row : row + 1, -length:], max_new_tokens=5, **NEVER, **TOLD)
        assert together.sequences[row, -5:].tolist() == alone.sequences[0, -5:].tolist()
        torch.testing.assert_close(scores[:, row], torch.stack(alone.scores)[:, 0], atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_local_layers_keep_the_last_tokens_of_each_row(implementation: str) -> None:
    """They hold 131 tokens here; a group may be longer than that, shorter, or shorter than the window."""
    model = gpt_neo_models.make(max_position_embeddings=200, attn_implementation=implementation)
    inputs = padded(150, 2, 139, 40, 131, 150) | {"max_new_tokens": 30, **NEVER}
    ours, whole = both_ways(model, **inputs)  # no output object: the cache is windowed
    assert ours.tolist() == whole.tolist()
    ours, whole = both_ways(model, **inputs, num_beams=2)
    assert ours.tolist() == whole.tolist()


@pytest.mark.parametrize(
    "mask",
    [
        [[1, 1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1, 1]],
        [[0, 0, 0, 0, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0, 1, 1]],
    ],
    ids=["right", "both sides", "holes"],
)
def test_padding_elsewhere_is_what_it_was(model: Any, mask: list[list[int]]) -> None:
    ids = gpt_neo_models.tokens(2, 8)
    assert_alike(*both_ways(model, input_ids=ids, attention_mask=torch.tensor(mask), max_new_tokens=4, **NEVER, **TOLD))


def test_positions_of_the_users_own_are_kept(model: Any) -> None:
    inputs = padded(2, 9, 4)
    positions = (inputs["attention_mask"].cumsum(-1) + 3).clamp(max=17)
    assert_alike(*both_ways(model, **inputs, position_ids=positions, max_new_tokens=4, **NEVER, **TOLD))


def test_embeddings_are_fed_in_groups_too(model: Any, calls: Callable[[Any], Calls]) -> None:
    inputs = padded(2, 9, 4)
    with torch.no_grad():
        embeds = model.get_input_embeddings()(inputs["input_ids"])
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"], "max_new_tokens": 4}
    assert_alike(*both_ways(model, **given, bos_token_id=1, **NEVER, **TOLD))
    fed = calls(model)
    model.generate(**given, bos_token_id=1, **NEVER)
    assert fed.shapes[:3] == [(1, 9), (1, 4), (1, 2)]


def test_rotations_that_grow_with_a_rows_length_are_its_own() -> None:
    model = fuyu_models.make(**fuyu_models.DYNAMIC)
    assert_alike(*both_ways(model, **padded(3, 16, 9, 7), max_new_tokens=6, **NEVER, **TOLD))


def test_prompts_with_images_are_fed_in_groups(calls: Callable[[Any], Calls]) -> None:
    model = fuyu_models.make()
    rows = [fuyu_models.row(*shape) for shape in ((4, 3), (9, 5), (1, 2), (0, 4))]
    inputs = fuyu_models.batch(rows)
    assert_alike(*both_ways(model, **inputs, max_new_tokens=5, **NEVER, **TOLD))
    fed = calls(decoder(model))
    together = model.generate(**inputs, max_new_tokens=5, **NEVER)
    assert fed.shapes[:3] == [(1, 15), (1, 8), (2, 5)]
    for row, one in enumerate(rows):
        alone = model.generate(**fuyu_models.alone(one), max_new_tokens=5, **NEVER)
        assert together[row, -5:].tolist() == alone[0, -5:].tolist()


def test_a_bad_input_is_told_of_by_its_row_in_the_batch() -> None:
    inputs = fuyu_models.batch([fuyu_models.row(9, 5), fuyu_models.row(1, 2), fuyu_models.row(4, 3)])
    inputs["image_patches"][2] = inputs["image_patches"][2][:3]
    with pytest.raises(ValueError, match="row 2 has 3 patches and the index 3"):
        fuyu_models.make().generate(**inputs, max_new_tokens=2, **NEVER)
    types = torch.zeros(3, 9, dtype=torch.long)
    types[2, 8] = 31
    with pytest.raises(TokenIdError, match=r"got 31 at \[2, 8\]"):
        gpt_neo_models.make().generate(**padded(9, 9, 2), token_type_ids=types, max_new_tokens=2, **NEVER)


# -- who may see it --------------------------------------------------------------------------------------------------


class Doubled(nn.Linear):
    """A layer of the user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def own_layer(model: GPTNeoForCausalLM) -> None:
    model.transformer.h[0].mlp.c_fc = Doubled(12, 48)  # type: ignore[union-attr, assignment, operator]


WATCHERS: dict[str, Callable[[GPTNeoForCausalLM], Any]] = {
    "a hook within": lambda model: model.transformer.h[1].mlp.register_forward_hook(lambda *_: None),
    "a hook before": lambda model: model.transformer.h[1].register_forward_pre_hook(lambda *_: None),
    "a wrapped forward": lambda model: setattr(model.lm_head, "forward", model.lm_head.forward),
    "training": lambda model: model.train(),
    "a layer of the user's own": own_layer,
}


@pytest.mark.parametrize("name", WATCHERS)
def test_who_watches_or_changes_a_module_sees_the_whole_batch(name: str, calls: Callable[[Any], Calls]) -> None:
    model = gpt_neo_models.make()
    WATCHERS[name](model)
    fed = calls(model)
    model.generate(**padded(2, 12), max_new_tokens=1, **NEVER)
    assert fed.shapes == [(2, 12)]


def test_a_subclass_with_the_published_forward_is_fed_in_groups(calls: Callable[[Any], Calls]) -> None:
    class Own(GPTNeoForCausalLM):
        pass

    model = gpt_neo_models.make(Own)
    fed = calls(model)
    model.generate(**padded(2, 12), max_new_tokens=1, **NEVER)
    assert fed.shapes == [(1, 12), (1, 2)]


@pytest.mark.parametrize("name", ["output_attentions", "output_hidden_states"])
def test_what_is_given_out_has_the_shape_of_the_padded_prompt(neo: GPTNeoForCausalLM, name: str) -> None:
    ours, whole = both_ways(neo, **padded(2, 12), max_new_tokens=3, **NEVER, **TOLD, **{name: True})
    for mine, theirs in zip(ours[name.removeprefix("output_")], whole[name.removeprefix("output_")], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_inference_mode_and_half_precision_are_fed_in_groups(calls: Callable[[Any], Calls]) -> None:
    model = gpt_neo_models.make().to(torch.bfloat16)
    fed = calls(model)
    with torch.inference_mode():
        out = model.generate(**padded(3, 12, 3), max_new_tokens=4, **NEVER, **TOLD)
    assert fed.shapes[:2] == [(1, 12), (2, 3)]
    assert torch.stack(out.scores).isfinite().all()
