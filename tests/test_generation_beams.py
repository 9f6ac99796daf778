"""Beam search: the reference's ids and scores, what the scores mean, and a cache whose rows stay where they are."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

import triptych
from fuyu_models import SMALL as FUYU_SMALL, alone, make as make_fuyu, row as fuyu_row
from triptych import (
    FuyuForCausalLM,
    GPTNeoForCausalLM,
    OpenAIGPTLMHeadModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from triptych.generation.feed_torch import Feed, inverse, settled
from triptych.generation.outputs import GenerateBeamDecoderOnlyOutput
from triptych.runtime.cache import KeyValueCache

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "beams.json").read_text())
KINDS = {
    "generation_model": GPTNeoForCausalLM,
    "openai_gpt/generation_model": OpenAIGPTLMHeadModel,
    "beams_fuyu": FuyuForCausalLM,
}
PADDED = torch.tensor([[0, 0, 7, 8, 12], [9, 3, 20, 14, 31], [0, 0, 0, 0, 21]])
MASK = (PADDED != 0).long()
TRACED = {"return_dict_in_generate": True, "output_scores": True}


class StopAt(StoppingCriteria):
    """Stops all rows at a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        return input_ids.shape[1] >= self.length


class StopBehind(StoppingCriteria):
    """Ends the rows whose last token is a certain one."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids[:, -1] == self.token


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {folder: kind.from_pretrained(GOLDEN / folder).eval() for folder, kind in KINDS.items()}


@pytest.fixture(scope="module")
def model(models: dict[str, Any]) -> GPTNeoForCausalLM:
    return models["generation_model"]


def run(model: Any, case: dict[str, Any], **more: Any) -> GenerateBeamDecoderOnlyOutput:
    options = {"pad_token_id": 0} | TRACED | case["options"] | more
    if "stop_at" in options:
        options["stopping_criteria"] = StoppingCriteriaList([StopAt(options.pop("stop_at"))])
    if "allowed" in options:
        allowed = options.pop("allowed")
        options["prefix_allowed_tokens_fn"] = lambda prompt, ids: allowed[: 3 + (prompt + len(ids)) % 4]
    if "sequence_bias" in options:
        options["sequence_bias"] = {tuple(ids): bias for ids, bias in options["sequence_bias"]}
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
        options["do_sample"] = True
    ids = torch.tensor(case["prompt"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(ids, attention_mask=(ids != 0).long(), **options)


def transitions(output: GenerateBeamDecoderOnlyOutput, prompt: int) -> Tensor:
    """The score of each new token in the step's scores, 0 where there is none: (B * R, T)."""
    new, beams = output.sequences[:, prompt:], output.beam_indices
    values = torch.zeros(new.shape)
    for step in range(new.shape[1]):
        there = beams[:, step] >= 0
        values[there, step] = output.scores[step][beams[there, step], new[there, step]]
    return values


@pytest.mark.parametrize("index", range(len(CASES)), ids=lambda i: f"{CASES[i]['model'][:6]}-{CASES[i]['name']}-{i}")
def test_ids_scores_and_beams_are_those_of_the_reference(models: dict[str, Any], index: int) -> None:
    case = CASES[index]
    output = run(models[case["model"]], case)
    assert output.sequences.tolist() == case["ids"]
    expected = torch.tensor(case["sequences_scores"])
    assert torch.allclose(output.sequences_scores, expected, rtol=1e-5, atol=1e-4)
    if case["beam_indices"] is not None:
        assert output.beam_indices.tolist() == case["beam_indices"]


def test_the_scores_of_every_step_are_those_of_the_reference(models: dict[str, Any]) -> None:
    found: dict[int, dict[int, Tensor]] = {}
    for name, scores in load_file(GOLDEN / "beams.safetensors").items():
        index, step = map(int, name.split("."))
        found.setdefault(index, {})[step] = scores
    assert len(found) == 12
    for index, steps in found.items():
        output = run(models[CASES[index]["model"]], CASES[index])
        for step, scores in steps.items():
            assert torch.allclose(output.scores[step], scores, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("index", [i for i, case in enumerate(CASES) if case["seed"] in (None, 0)][::3])
def test_without_the_cache_beams_write_the_same(models: dict[str, Any], index: int) -> None:
    case = CASES[index]
    outputs = [run(models[case["model"]], case, use_cache=cached) for cached in (True, False)]
    assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()
    assert torch.allclose(outputs[0].sequences_scores, outputs[1].sequences_scores, rtol=1e-5, atol=1e-4)
    assert [output.past_key_values is None for output in outputs] == [False, True]


WAYS: dict[str, dict[str, Any]] = {
    "search": {"num_beams": 4, "num_return_sequences": 4},
    "sampling": {"num_beams": 4, "num_return_sequences": 4, "do_sample": True, "top_k": 0},
    "groups": {"num_beams": 4, "num_return_sequences": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "constraints": {"num_beams": 4, "num_return_sequences": 4, "force_words_ids": [[23, 2], [[29], [30, 1]]]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
def test_a_score_is_the_sum_of_the_tokens_scores_over_a_power_of_their_number(
    model: GPTNeoForCausalLM, way: str, penalty: float
) -> None:
    output = model.generate(
        PADDED, attention_mask=MASK, max_new_tokens=12, eos_token_id=10, pad_token_id=0, length_penalty=penalty,
        **WAYS[way], **TRACED,
    )  # fmt: skip
    lengths = (output.beam_indices >= 0).sum(dim=1)
    scores = transitions(output, 5).double().sum(dim=1) / lengths**penalty
    assert torch.allclose(scores.float(), output.sequences_scores, rtol=1e-5)
    told = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
    assert torch.allclose(told, transitions(output, 5)[:, : told.shape[1]])
    rows = output.sequences_scores.view(3, 4)
    assert (rows.diff(dim=1) <= 0).all()
    prompts = torch.arange(3).repeat_interleave(4)
    beams = output.beam_indices
    assert ((beams // 4 == prompts[:, None]) | (beams == -1)).all()


@pytest.mark.parametrize("way", ["search", "sampling", "constraints"])
def test_a_texts_score_is_what_a_forward_pass_says(model: GPTNeoForCausalLM, way: str) -> None:
    prompt = torch.tensor([[9, 3, 20, 14]])
    output = model.generate(prompt, max_new_tokens=10, eos_token_id=10, pad_token_id=0, length_penalty=1.5, **WAYS[way],
                            **TRACED)  # fmt: skip
    with torch.no_grad():
        logs = model(output.sequences).logits.log_softmax(dim=-1)
    told = logs[:, 3:-1].gather(2, output.sequences[:, 4:, None])[..., 0]
    written = output.beam_indices[:, : told.shape[1]] >= 0
    scores = told.where(written, 0.0).sum(dim=1) / written.sum(dim=1) ** 1.5
    assert torch.allclose(scores, output.sequences_scores, atol=1e-5)


options_of_beams = st.fixed_dictionaries(
    {
        "num_beams": st.sampled_from([2, 4, 6]),
        "max_new_tokens": st.integers(1, 9),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "length_penalty": st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
        "eos_token_id": st.lists(st.integers(1, 96), min_size=1, max_size=9),
    },
    optional={
        "num_return_sequences": st.integers(1, 2),
        "repetition_penalty": st.sampled_from([0.7, 1.5]),
        "min_new_tokens": st.integers(1, 4),
        "no_repeat_ngram_size": st.integers(1, 2),
        "forced_eos_token_id": st.integers(1, 96),
        "suppress_tokens": st.lists(st.integers(0, 96), max_size=60),
        "way": st.sampled_from(
            [
                {"num_beam_groups": 2, "diversity_penalty": 1.0},
                {"force_words_ids": [[7]]},
                {"force_words_ids": [[[7], [8]]]},
                {"do_sample": True, "temperature": 2.0},
            ]
        ),
    },
)


@pytest.mark.filterwarnings("ignore::triptych.errors.GenerationWarning")
@settings(max_examples=60, deadline=None)
@given(options_of_beams)
def test_a_batch_gives_what_each_row_gives_alone_and_the_best_text_first(
    model: GPTNeoForCausalLM, options: dict[str, Any]
) -> None:
    options = options | options.pop("way", {})
    if "min_new_tokens" in options:
        options["min_new_tokens"] = min(options["min_new_tokens"], options["max_new_tokens"])
    # what looks at the ids so far sees padding too, as documented, so no text may hold its id
    options["suppress_tokens"] = [0, *options.get("suppress_tokens", ())]
    if options.get("forced_eos_token_id") in options.get("suppress_tokens", ()):
        del options["forced_eos_token_id"]  # nothing would be left to draw
    returned = options.get("num_return_sequences", 1)

    def texts(ids: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        mask = (ids != 0).long()
        output = model.generate(ids, attention_mask=mask, pad_token_id=0, **options, **TRACED)
        return output.sequences[:, ids.shape[1] :], output.sequences_scores

    sequences, scores = texts(PADDED)
    assert (scores.view(3, returned).nan_to_num().diff(dim=1) <= 0).all()
    assert sequences.shape[1] <= options["max_new_tokens"]
    if options.get("do_sample"):
        return  # rows draw in turn from one source
    for row in range(3):
        alone, own_scores = texts(PADDED[row][PADDED[row] != 0][None])
        own = slice(row * returned, (row + 1) * returned)
        sure = own_scores > -1e6  # what is ruled out has no order
        width = min(alone.shape[1], sequences.shape[1])
        assert torch.equal(sequences[own, :width][sure], alone[:, :width][sure])
        assert torch.allclose(scores[own][sure], own_scores[sure], rtol=1e-4, atol=1e-4)


def test_of_one_beam_comes_what_greedy_decoding_gives(model: GPTNeoForCausalLM) -> None:
    for options in ({}, {"no_repeat_ngram_size": 1}, {"eos_token_id": 10}):
        greedy = model.generate(PADDED, attention_mask=MASK, max_new_tokens=12, pad_token_id=0, **options)
        groups = model.generate(
            PADDED, attention_mask=MASK, max_new_tokens=12, pad_token_id=0, num_beams=2, num_beam_groups=2,
            diversity_penalty=1e-6, early_stopping=True, num_return_sequences=2, **options,
        )  # fmt: skip
        for row in range(3):  # the first group, a beam that nothing disturbs
            assert greedy[row].tolist()[: groups.shape[1]] in [text.tolist() for text in groups[2 * row : 2 * row + 2]]


def test_texts_that_a_criterion_ends_are_finished_and_others_go_on(model: GPTNeoForCausalLM) -> None:
    options = {"max_new_tokens": 12, "num_beams": 3, "num_return_sequences": 3, "pad_token_id": 0} | TRACED
    ended = 0
    for penalty in (-1.0, 0.0, 1.0):
        output = model.generate(
            PADDED, attention_mask=MASK, stopping_criteria=[StopBehind(10)], eos_token_id=None, length_penalty=penalty,
            **options,
        )  # fmt: skip
        lengths = (output.beam_indices >= 0).sum(dim=1)
        for text, length in zip(output.sequences[:, 5:].tolist(), lengths.tolist(), strict=True):
            assert 10 not in text[: length - 1]
            assert text[length - 1] == 10 or length == 12
            assert not any(text[length:])
            ended += length < 12
        scores = transitions(output, 5).sum(dim=1) / lengths**penalty
        assert torch.allclose(scores, output.sequences_scores, rtol=1e-5)
    assert ended > 6


def test_a_stop_string_finishes_a_text(model: GPTNeoForCausalLM) -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "".join(f"<{i}>" for i in ids)

    options = {"max_new_tokens": 12, "num_beams": 3, "pad_token_id": 0, "eos_token_id": None}
    plain = model.generate(PADDED[1:2], **options)
    stop = f"<{int(plain[0, 7])}><{int(plain[0, 8])}>"
    text = model.generate(PADDED[1:2], stop_strings=stop, tokenizer=Tokenizer(), early_stopping=True, **options)
    again = model.generate(PADDED[1:2], stop_strings=stop, tokenizer=Tokenizer(), length_penalty=-4.0, **options)
    assert text.shape[1] <= plain.shape[1]
    assert Tokenizer().decode(again[0].tolist()).endswith(stop)


def test_without_an_end_a_criterion_may_stop_all_texts(model: GPTNeoForCausalLM) -> None:
    text = model.generate(PADDED[1:2], num_beams=3, eos_token_id=None, stopping_criteria=[StopAt(9)], max_new_tokens=20)
    assert text.shape == (1, 9)
    timed = model.generate(PADDED[1:2], num_beams=3, eos_token_id=None, max_time=0.0, max_new_tokens=20)
    assert timed.shape == (1, 6)


def test_attentions_and_hidden_states_are_in_the_order_of_the_scores(model: GPTNeoForCausalLM) -> None:
    options = {"max_new_tokens": 9, "num_beams": 4, "eos_token_id": 10, "pad_token_id": 0} | TRACED
    outputs = [
        model.generate(PADDED, attention_mask=MASK, output_attentions=True, output_hidden_states=True, use_cache=cached,
                       **options)
        for cached in (True, False)
    ]  # fmt: skip
    moved = 0
    for cached, whole in zip(*(zip(o.hidden_states, o.attentions, strict=True) for o in outputs), strict=True):
        for layer in range(len(cached[0])):
            assert torch.allclose(cached[0][layer][:, -1], whole[0][layer][:, -1], atol=2e-5)
        for layer in range(len(cached[1])):
            assert torch.allclose(cached[1][layer][:, :, -1], whole[1][layer][:, :, -1], atol=2e-5)
        moved += 1
    assert moved == len(outputs[0].scores)


# -- the cache ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_place_followed_once_is_not_copied(wanted: list[int]) -> None:
    wanted = [place % len(wanted) for place in wanted]
    places, copies = settled(wanted)
    assert sorted(places) == list(range(len(wanted)))
    assert len(copies) == len(wanted) - len(set(wanted))
    assert not set(copies) & set(wanted)
    for place, source in zip(places, wanted, strict=True):
        assert copies.get(place, place) == source
    assert [places[row] for row in inverse(places)] == sorted(places)


def test_the_prompt_is_fed_once_and_only_further_followers_are_copied(
    model: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[tuple[int, int]] = []
    copied: list[tuple[int, int]] = []
    followed: list[list[int]] = []
    step, copy, follow = GPTNeoForCausalLM.next_token_logits, KeyValueCache.copy_rows, Feed.follow

    def watched(self: Any, ids: Tensor, **inputs: Any) -> Any:
        fed.append(tuple(ids.shape))
        return step(self, ids, **inputs)

    def counted(self: Any, sources: Tensor, targets: Tensor, start: int) -> None:
        copied.append((len(targets), self.length - start))
        copy(self, sources, targets, start)

    def noted(self: Any, parents: list[int]) -> None:
        followed.append(parents)
        follow(self, parents)

    monkeypatch.setattr(GPTNeoForCausalLM, "next_token_logits", watched)
    monkeypatch.setattr(KeyValueCache, "copy_rows", counted)
    monkeypatch.setattr(Feed, "follow", noted)
    model.generate(PADDED, attention_mask=MASK, max_new_tokens=10, num_beams=4, eos_token_id=None)
    assert fed == [(3, 5)] + [(12, 1)] * 9
    assert sum(rows for rows, _ in copied) == sum(12 - len(set(parents)) for parents in followed)
    assert max(tokens for _, tokens in copied) <= 9


def test_a_given_cache_stays_as_it_is(model: GPTNeoForCausalLM) -> None:
    with torch.no_grad():
        past = model(PADDED[1:2, :3], use_cache=True).past_key_values
    before = [(key.clone(), value.clone()) for key, value in past]
    options = {"max_new_tokens": 9, "num_beams": 4, "num_return_sequences": 4, "eos_token_id": 10, "pad_token_id": 0}
    fresh = model.generate(PADDED[1:2], **options)
    for given_past in (past, tuple(tuple(pair) for pair in past)):
        assert model.generate(PADDED[1:2], past_key_values=given_past, **options).tolist() == fresh.tolist()
    for (key, value), (old_key, old_value) in zip(past, before, strict=True):
        assert torch.equal(key, old_key)
        assert torch.equal(value, old_value)


def test_the_cache_that_is_returned_belongs_to_the_open_beams(model: GPTNeoForCausalLM) -> None:
    output = model.generate(PADDED[1:2], max_new_tokens=7, num_beams=4, num_return_sequences=4, eos_token_id=None,
                            **TRACED)  # fmt: skip
    with torch.no_grad():
        for row in range(4):
            keys = model(output.sequences[row : row + 1, :-1], use_cache=True).past_key_values[2][0]
            assert torch.allclose(output.past_key_values[2][0][row : row + 1], keys, atol=2e-5)


def test_a_forward_of_the_users_own_may_keep_the_caches_it_sees(model: GPTNeoForCausalLM) -> None:
    kept: list[tuple[Any, Tensor]] = []

    class Own(GPTNeoForCausalLM):
        def forward(
            self,
            input_ids: Tensor,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            past_key_values: Any = None,
            use_cache: bool | None = None,
            return_dict: bool | None = None,
        ) -> Any:
            output = super().forward(
                input_ids, past_key_values, attention_mask, position_ids=position_ids, use_cache=use_cache
            )
            kept.append((output.past_key_values, output.past_key_values[0][0].clone()))
            return output

    own = Own(model.config).eval()
    own.load_state_dict(model.state_dict())
    options = {"attention_mask": MASK, "max_new_tokens": 9, "num_beams": 4, "eos_token_id": 10, "pad_token_id": 0}
    assert own.generate(PADDED, **options).tolist() == model.generate(PADDED, **options).tolist()
    assert len(kept) > 4
    for past, keys in kept:
        assert torch.equal(past[0][0], keys)


def test_beams_run_in_inference_mode_and_leave_no_trace_in_autograd(model: GPTNeoForCausalLM) -> None:
    options = {"attention_mask": MASK, "max_new_tokens": 9, "num_beams": 4, "eos_token_id": 10, "pad_token_id": 0}
    plain = model.generate(PADDED, **options)
    with torch.inference_mode():
        assert model.generate(PADDED, **options).tolist() == plain.tolist()
    with torch.enable_grad():
        scores = model.generate(PADDED, **options, **TRACED).scores
    assert not any(score.requires_grad for score in scores)


def test_beams_of_a_picture_see_the_picture() -> None:
    fuyu = make_fuyu()
    inputs = alone(fuyu_row(4, 3))
    options = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 3, "eos_token_id": None} | TRACED
    cached, whole = (fuyu.generate(**inputs, use_cache=use, **options) for use in (True, False))
    assert cached.sequences.tolist() == whole.sequences.tolist()
    assert torch.allclose(cached.sequences_scores, whole.sequences_scores, atol=2e-5)
    blind = fuyu.generate(inputs["input_ids"], **options)
    assert not torch.allclose(blind.sequences_scores, cached.sequences_scores, atol=1e-3)
    assert FUYU_SMALL["vocab_size"] > int(cached.sequences.max())


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 0}, "num_beams must be an int of at least 1"),
        ({"num_beams": 2.0}, "num_beams must be an int"),
        ({"num_beams": 2, "num_return_sequences": 3}, r"num_return_sequences must not exceed num_beams \(2\); got 3"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "must divide num_beams"),
        ({"num_beams": 2, "num_beam_groups": 4, "diversity_penalty": 1.0}, "must divide num_beams"),
        ({"num_beams": 4, "num_beam_groups": 2}, "must be above 0; got 0.0"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "do not sample"),
        ({"num_beams": 4, "length_penalty": "1"}, "length_penalty"),
        ({"num_beams": 4, "early_stopping": "soon"}, "early_stopping must be"),
        ({"num_beams": 4, "streamer": object()}, "streamer"),
        ({"num_beams": 1, "force_words_ids": [[3]]}, "num_beams above 1"),
        ({"num_beams": 4, "force_words_ids": [[3]], "num_beam_groups": 2, "diversity_penalty": 1.0}, "without groups"),
        ({"num_beams": 4, "force_words_ids": []}, "non-empty list"),
        ({"num_beams": 4, "force_words_ids": 3}, "non-empty list"),
        ({"num_beams": 4, "force_words_ids": [3]}, r"got 3 in it"),
        ({"num_beams": 4, "force_words_ids": [[]]}, r"got \[\] in it"),
        ({"num_beams": 4, "force_words_ids": [[-3]]}, "must name token ids from 0"),
        ({"num_beams": 4, "force_words_ids": [[[1, 2], [3, "x"]]]}, "token id"),
        ({"num_beams": 4, "force_words_ids": [[[1, 2], 3]]}, "got 3 in it"),
        ({"num_beams": 4, "force_words_ids": [[[1, 2], [1]]]}, "begin with another"),
        ({"num_beams": 4, "constraints": [3]}, "Constraint objects; got 3"),
        ({"num_beams": 4, "force_words_ids": [[1, 2, 3], [[4, 5, 6], [4, 7]]]}, "take 5 tokens or more, but only 4"),
    ],
)
def test_what_beams_cannot_do_is_refused_before_any_work(
    model: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], says: str
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was run")

    class Streamer:
        def put(self, value):
            raise AssertionError("work was done")

        def end(self) -> None:
            pass

    if "streamer" in options:
        options = options | {"streamer": Streamer()}
    monkeypatch.setattr(GPTNeoForCausalLM, "next_token_logits", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=says):
            model.generate(PADDED[1:2], max_new_tokens=4, **options)


def test_the_names_of_older_releases_are_the_same_class() -> None:
    assert triptych.BeamSearchDecoderOnlyOutput is triptych.GenerateBeamDecoderOnlyOutput
    assert triptych.BeamSampleDecoderOnlyOutput is triptych.GenerateBeamDecoderOnlyOutput


def test_weights_that_give_no_numbers_are_told(model: GPTNeoForCausalLM) -> None:
    broken = GPTNeoForCausalLM(model.config).eval()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="no distribution"):
        broken.generate(PADDED[1:2], max_new_tokens=4, num_beams=3, do_sample=True)
