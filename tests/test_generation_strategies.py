"""Contrastive search, assisted decoding, prompt lookup and guidance, against the reference and against themselves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fuyu_models import make as make_fuyu
from gpt_neo_models import make as make_neo
from openai_gpt_models import make as make_gpt
from triptych.errors import GenerationWarning, SequenceTooLongError
from triptych.generation.streamers import BaseStreamer
from triptych.models.fuyu.modeling_torch import FuyuForCausalLM
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

GOLDEN = Path(__file__).parent / "golden" / "strategies"
RECORD = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
TENSORS = load_file(GOLDEN / "scores.safetensors")
PADDED = torch.tensor([[0, 0, 7, 8, 12], [9, 3, 60, 44, 31], [0, 0, 0, 0, 71]])
SEARCH = {"penalty_alpha": 0.6, "top_k": 4}
ECHO = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7, 60, 8, 9, 5, 6]])
TRACED = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_attentions": True,
    "output_hidden_states": True,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, GPTNeoForCausalLM]:
    folders = {"itself": GOLDEN.parent / "generation_model", "assistant": GOLDEN / "assistant"}
    return {name: GPTNeoForCausalLM.from_pretrained(folder).eval() for name, folder in folders.items()}


def call(models: dict[str, GPTNeoForCausalLM], case: dict[str, Any], **more: Any) -> Any:
    options = {"pad_token_id": 0} | case["options"] | more
    if "assistant" in options:
        options["assistant_model"] = models[options.pop("assistant")]
    if "negative" in options:
        options["negative_prompt_ids"] = torch.tensor(options.pop("negative"))
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
    return models["itself"].generate(torch.tensor(case["prompt"]), **options)


# -- what the reference says -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(RECORD["cases"])), ids=[case["name"] for case in RECORD["cases"]])
@pytest.mark.filterwarnings("ignore:penalty_alpha=0.6 has an effect only in contrastive search")
def test_ids_and_scores_are_those_of_the_reference(models: dict[str, GPTNeoForCausalLM], number: int) -> None:
    case = RECORD["cases"][number]
    output = call(models, case, return_dict_in_generate=True, output_scores=True)
    drawn = case["seed"] is not None and "prompt_lookup_num_tokens" in case["options"]
    # The reference drafts beyond the end, so what it draws last differs.
    told = -case["options"]["prompt_lookup_num_tokens"] if drawn else None
    assert [row[:told] for row in output.sequences.tolist()] == [row[:told] for row in case["ids"]]
    assert output.sequences.shape[1] == len(case["ids"][0])
    if drawn:
        return
    golden = TENSORS[f"{number}.scores"]
    torch.testing.assert_close(torch.stack(output.scores)[-len(golden) :], golden, atol=1e-4, rtol=0)
    assert len(output.scores) == output.sequences.shape[1] - len(case["prompt"][0])


@pytest.mark.parametrize("name", ["contrastive", "assisted", "lookup"])
def test_attentions_hidden_states_and_the_cache_are_those_of_the_reference(
    models: dict[str, GPTNeoForCausalLM], name: str
) -> None:
    options = {
        "contrastive": SEARCH,
        "assisted": {"assistant_model": models["assistant"]},
        "lookup": {"prompt_lookup_num_tokens": 3},
    }[name]
    output = models["itself"].generate(ECHO, **options, **TRACED, max_new_tokens=5)
    assert len(output.scores) == len(output.attentions) == len(output.hidden_states) == 5
    for step in range(5):
        weights, hidden = output.attentions[step][1], output.hidden_states[step][-1]
        torch.testing.assert_close(weights, TENSORS[f"{name}.attentions.{step}"], atol=2e-5, rtol=0)
        torch.testing.assert_close(hidden, TENSORS[f"{name}.hidden_states.{step}"], atol=2e-5, rtol=0)
    torch.testing.assert_close(output.past_key_values[1][0], TENSORS[f"{name}.key"], atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def fuyu() -> FuyuForCausalLM:
    return FuyuForCausalLM.from_pretrained(GOLDEN / "fuyu").eval()


def pictured() -> dict[str, Any]:
    golden = RECORD["fuyu"]
    return {
        "input_ids": torch.tensor(golden["ids"]),
        "image_patches": [TENSORS["patches"][0]],
        "image_patches_indices": torch.tensor(golden["places"]),
    }


@pytest.mark.parametrize("case", RECORD["fuyu"]["cases"], ids=lambda case: case["name"])
def test_fuyu_continues_pictures_as_the_reference_does(fuyu: FuyuForCausalLM, case: dict[str, Any]) -> None:
    assert fuyu.generate(**pictured(), **case["options"]).tolist() == case["ids"]


def test_drafts_of_a_text_only_assistant_and_of_the_text_leave_fuyus_answer_as_it_is(fuyu: FuyuForCausalLM) -> None:
    greedy = next(case["ids"] for case in RECORD["fuyu"]["cases"] if case["name"] == "greedy")
    text_only = make_neo(vocab_size=fuyu.config.vocab_size)
    for drafts in ({"assistant_model": text_only}, {"assistant_model": fuyu}, {"prompt_lookup_num_tokens": 4}):
        assert fuyu.generate(**pictured(), **drafts, max_new_tokens=10).tolist() == greedy


def test_contrastive_search_continues_embeddings_as_the_reference_does(models: dict[str, GPTNeoForCausalLM]) -> None:
    model = models["itself"]
    embeds = model.get_input_embeddings()(torch.tensor([[5, 6, 7, 8], [9, 3, 60, 44]])).detach()
    found = model.generate(inputs_embeds=embeds, **SEARCH, pad_token_id=0, max_new_tokens=8)
    assert found.tolist() == RECORD["embeds"]


@pytest.mark.parametrize("legacy", [True, False])
def test_a_given_cache_is_continued_as_the_reference_does(models: dict[str, GPTNeoForCausalLM], legacy: bool) -> None:
    model = models["itself"]
    ids = torch.tensor([[5, 6, 7, 8, 17], [9, 3, 60, 44, 17]])
    with torch.no_grad():
        past = model(ids[:, :4], use_cache=True).past_key_values
    past = tuple((key.clone(), value.clone()) for key, value in past) if legacy else past
    before = [key.clone() for key, _ in past]
    options = {"pad_token_id": 0, "max_new_tokens": 8}
    assert model.generate(ids, past_key_values=past, **options).tolist() == RECORD["past"]
    for way in ({"assistant_model": models["assistant"]}, {"guidance_scale": 1.5}):
        given = model.generate(ids, past_key_values=past, **way, **options)
        assert given.tolist() == model.generate(ids, **way, **options).tolist()
    for (key, _), was in zip(past, before, strict=True):
        torch.testing.assert_close(key, was)
    with pytest.raises(ValueError, match="hidden states of the whole text, which past_key_values do not hold"):
        model.generate(ids, past_key_values=past, **SEARCH, **options)


# -- what holds whatever the model -----------------------------------------------------------------------------------

FAMILIES = {"gpt_neo": make_neo, "openai_gpt": make_gpt, "fuyu": make_fuyu}
WAYS: dict[str, dict[str, Any]] = {
    "contrastive": SEARCH,
    "low memory": SEARCH | {"low_memory": True},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "guided": {"guidance_scale": 1.7},
    "guided contrastive": SEARCH | {"guidance_scale": 1.7},
    "guided lookup": {"prompt_lookup_num_tokens": 3, "guidance_scale": 1.7},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_a_padded_batch_gives_what_each_row_gives_alone(family: str, way: str) -> None:
    model = FAMILIES[family]()
    ids = torch.where(PADDED > 30, PADDED % 31 + 1, PADDED)
    options = WAYS[way] | {"max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": [3, 11]}
    batch = model.generate(ids, **options)
    for row, found in zip(ids, batch, strict=True):
        alone = model.generate(row[row != 0][None], **options)[0]
        padding = int((row == 0).sum())
        assert found[padding : padding + len(alone)].tolist() == alone.tolist()
        assert not found[padding + len(alone) :].any()


def contrastive_by_the_paper(model: Any, ids: Tensor, alpha: float, top_k: int, new: int) -> list[int]:
    """One row, without a cache and one candidate at a time: (1 - alpha) * p - alpha * the largest cosine."""
    for _ in range(new):
        probabilities = model(ids).logits[0, -1].softmax(-1)
        best = []
        for p, token in zip(*probabilities.topk(top_k), strict=True):
            longer = torch.cat((ids, token.view(1, 1)), dim=1)
            hidden = model(longer, output_hidden_states=True).hidden_states[-1][0]
            cosines = torch.nn.functional.cosine_similarity(hidden[:-1], hidden[-1:], dim=-1)
            best.append(((1 - alpha) * p - alpha * cosines.max(), longer))
        ids = max(best, key=lambda pair: float(pair[0]))[1]
    return ids[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_contrastive_search_is_that_of_the_paper(family: str) -> None:
    model, ids = FAMILIES[family](), torch.tensor([[5, 6, 7, 8, 20, 9]])
    with torch.no_grad():
        wanted = contrastive_by_the_paper(model, ids, 0.6, 4, 10)
    assert model.generate(ids, penalty_alpha=0.6, top_k=4, max_new_tokens=10, eos_token_id=None)[0].tolist() == wanted


def guided_by_the_paper(model: Any, ids: Tensor, negative: Tensor, scale: float, new: int) -> list[int]:
    for _ in range(new):
        c, u = (model(text).logits[0, -1].log_softmax(-1) for text in (ids, negative))
        token = (u + scale * (c - u)).argmax().view(1, 1)
        ids, negative = (torch.cat((text, token), dim=1) for text in (ids, negative))
    return ids[0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("negative", [[[8]], [[4, 3, 2, 9, 8, 22, 8, 14]]], ids=["short", "long"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_guidance_is_that_of_the_paper(family: str, negative: list[list[int]], use_cache: bool) -> None:
    model, ids = FAMILIES[family](), torch.tensor([[5, 6, 7, 8, 20]])
    with torch.no_grad():
        wanted = guided_by_the_paper(model, ids, torch.tensor(negative), 2.0, 10)
    options = {"guidance_scale": 2.0, "max_new_tokens": 10, "eos_token_id": None, "use_cache": use_cache}
    found = model.generate(ids, negative_prompt_ids=torch.tensor(negative), **options)
    assert found[0].tolist() == wanted


def beams_by_hand(model: Any, ids: Tensor, negative: Tensor, scale: float, beams: int, new: int) -> list[int]:
    """Beam search without an end and without a cache, by sums of guided log-probabilities as they are."""
    texts = [(0.0, ids, negative)]
    for _ in range(new):
        longer = []
        for total, text, against in texts:
            c, u = (model(x).logits[0, -1].log_softmax(-1) for x in (text, against))
            scores, tokens = (u + scale * (c - u)).topk(beams)
            longer += [
                (total + float(score), *(torch.cat((x, token.view(1, 1)), dim=1) for x in (text, against)))
                for score, token in zip(scores, tokens, strict=True)
            ]
        texts = sorted(longer, key=lambda text: -text[0])[:beams]
    return texts[0][1][0].tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_cache", [True, False])
def test_guided_beams_keep_the_negative_prompts_rows_with_them(family: str, use_cache: bool) -> None:
    model, ids, negative = FAMILIES[family](), torch.tensor([[5, 6, 7, 8, 20]]), torch.tensor([[4, 3, 2, 9, 8, 22, 8]])
    with torch.no_grad():
        wanted = beams_by_hand(model, ids, negative, 1.3, 3, 8)
    options = {"guidance_scale": 1.3, "num_beams": 3, "max_new_tokens": 8, "eos_token_id": None}
    found = model.generate(ids, negative_prompt_ids=negative, use_cache=use_cache, **options)
    assert found[0].tolist() == wanted


def test_padding_of_a_negative_prompt_does_not_matter(models: dict[str, GPTNeoForCausalLM]) -> None:
    model, ids = models["itself"], torch.tensor([[5, 6, 7, 8]])
    plain = model.generate(ids, negative_prompt_ids=torch.tensor([[9, 4]]), guidance_scale=2.0, max_new_tokens=9)
    mask = torch.tensor([[0, 0, 0, 1, 1]])
    padded = model.generate(
        ids,
        negative_prompt_ids=torch.tensor([[0, 0, 0, 9, 4]]),
        negative_prompt_attention_mask=mask,
        guidance_scale=2.0,
        max_new_tokens=9,
    )
    assert padded.tolist() == plain.tolist()


def test_guided_attentions_hidden_states_and_cache_are_those_of_the_prompt(
    models: dict[str, GPTNeoForCausalLM],
) -> None:
    model, ids = models["itself"], torch.tensor([[5, 6, 7, 8], [9, 3, 60, 44]])
    negative = torch.tensor([[8, 7, 1, 50, 4, 9]])
    options = {"negative_prompt_ids": negative, "guidance_scale": 2.0, "pad_token_id": 0, "max_new_tokens": 4}
    guided = model.generate(ids, **options, **TRACED)
    with torch.no_grad():
        whole = model(guided.sequences[:, :-1], output_attentions=True, output_hidden_states=True, use_cache=True)
    torch.testing.assert_close(torch.cat([h[-1] for h in guided.hidden_states], 1), whole.hidden_states[-1])
    for step, weights in enumerate(guided.attentions):
        wanted = whole.attentions[1][:, :, : 4 + step, : 4 + step][:, :, -weights[1].shape[2] :]
        torch.testing.assert_close(weights[1], wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(guided.past_key_values[1][0], whole.past_key_values[1][0], atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_greedy_text_is_the_same_whatever_writes_the_drafts(family: str, data: st.DataObject) -> None:
    model = FAMILIES[family](seed=data.draw(st.integers(0, 3), "model"))
    other = data.draw(st.sampled_from(list(FAMILIES)), "assistant")
    assistant = model if data.draw(st.booleans(), "itself") else FAMILIES[other](seed=data.draw(st.integers(0, 3)))
    rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    ids = torch.tensor(data.draw(st.lists(st.lists(st.integers(1, 9), min_size=length, max_size=length),
                                          min_size=rows, max_size=rows)))  # fmt: skip
    options = {
        "max_new_tokens": data.draw(st.integers(4, 20), "new"),
        "eos_token_id": data.draw(st.sampled_from([9, 3, [5, 7, 11]]), "eos"),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.5]), "penalty"),
        "min_new_tokens": data.draw(st.sampled_from([None, 4]), "least"),
        "pad_token_id": 0,
    }
    greedy = model.generate(ids, **options).tolist()
    many = data.draw(st.integers(1, 7), "tokens")
    schedule = data.draw(st.sampled_from(["heuristic", "constant"]), "schedule")
    drafts = {"num_assistant_tokens": many, "num_assistant_tokens_schedule": schedule}
    assert model.generate(ids, assistant_model=assistant, **drafts, **options).tolist() == greedy
    longest = data.draw(st.integers(1, 3), "run")
    looked_up = model.generate(ids, prompt_lookup_num_tokens=many, max_matching_ngram_size=longest, **options)
    assert looked_up.tolist() == greedy


def test_sampling_with_drafts_keeps_the_models_distribution() -> None:
    """The first two tokens of many rows, against the exact probabilities, for a draft that is often wrong."""
    model, assistant, rows = make_neo(), make_neo(seed=1), 4000
    ids = torch.tensor([[5, 6, 7]])
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": 2, "eos_token_id": None}
    torch.manual_seed(0)
    with torch.no_grad():
        first = model(ids).logits[0, -1].softmax(-1)
        pairs = torch.cat((ids.expand(31, -1), torch.arange(31)[:, None]), dim=1)
        wanted = first[:, None] * model(pairs).logits[:, -1].softmax(-1)  # (31, 31)
    counts = torch.zeros(31, 31)
    for _ in range(rows // 8):  # rows of a batch accept together, which must not bias them
        found = model.generate(ids.expand(8, -1), assistant_model=assistant, num_assistant_tokens=2, **options)
        for a, b in found[:, 3:].tolist():
            counts[a, b] += 1
    distance = (counts / rows - wanted).abs().sum() / 2
    torch.manual_seed(1)
    fair = torch.multinomial(wanted.flatten(), rows, replacement=True).bincount(minlength=31 * 31).view(31, 31)
    assert distance < 1.25 * (fair / rows - wanted).abs().sum() / 2
    torch.testing.assert_close(counts.sum(1) / rows, first, atol=0.03, rtol=0)


def test_a_right_draft_saves_steps_and_nothing_is_fed_twice(models: dict[str, GPTNeoForCausalLM]) -> None:
    model, fed = models["itself"], []
    hook = model.transformer.h[0].register_forward_pre_hook(lambda _, args: fed.append(args[0].shape[1]))
    try:
        prompt = torch.tensor([[5, 6, 7, 8]])
        model.generate(prompt, assistant_model=models["assistant"], num_assistant_tokens=3, max_new_tokens=30,
                       num_assistant_tokens_schedule="constant")  # fmt: skip
        wrong = list(fed)
        fed.clear()
        model.generate(prompt, **SEARCH, max_new_tokens=10)
    finally:
        hook.remove()
    assert wrong[0] == 4 + 3  # the prompt and the first draft
    assert all(fed_at_once <= 1 + 3 for fed_at_once in wrong[1:])  # the last token and a draft
    assert fed == [4, *[4] * 10]  # the prompt, then four candidates for each token


def test_the_assistants_options_say_how_long_drafts_are_unless_the_call_does() -> None:
    model, assistant = make_neo(), make_neo()
    assistant.generation_config.num_assistant_tokens = 2
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    widths: list[int] = []
    hook = model.transformer.h[0].register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    options = {"assistant_model": assistant, "max_new_tokens": 24, "eos_token_id": None}
    model.generate(torch.tensor([[5]]), **options)
    assert max(widths) == 3
    widths.clear()
    model.generate(torch.tensor([[5]]), num_assistant_tokens=6, **options)
    assert max(widths) == 7
    widths.clear()
    model.generate(torch.tensor([[5]]), num_assistant_tokens=1, num_assistant_tokens_schedule="heuristic", **options)
    assert widths[:3] == [2, 4, 6]  # all right: two more each time
    hook.remove()


def test_an_assistant_with_fewer_positions_stops_helping_where_they_end() -> None:
    model, small = make_neo(), make_neo(max_position_embeddings=12)
    ids = torch.tensor([[5, 6, 7]])
    greedy = model.generate(ids, max_new_tokens=30, eos_token_id=None)
    assert model.generate(ids, max_new_tokens=30, eos_token_id=None, assistant_model=small).tolist() == greedy.tolist()


def test_stop_strings_criteria_and_streamers_see_every_token(models: dict[str, GPTNeoForCausalLM]) -> None:
    class Words:
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids)) + " "

    class Kept(BaseStreamer):
        def __init__(self) -> None:
            self.values: list[list[int]] = []

        def put(self, value: Tensor) -> None:
            self.values.append(value.flatten().tolist())

        def end(self) -> None:
            self.values.append([])

    model, prompt = models["itself"], torch.tensor([[5, 6, 7, 8]])
    for way in (SEARCH, {"assistant_model": model}, {"prompt_lookup_num_tokens": 4}, {"guidance_scale": 1.4}):
        whole = model.generate(prompt, max_new_tokens=12, **way)[0].tolist()
        kept = Kept()
        found = model.generate(
            prompt, max_new_tokens=12, stop_strings=f" {whole[6]} ", tokenizer=Words(), streamer=kept, **way
        )
        assert found[0].tolist() == whole[:7]
        assert kept.values == [whole[:4], *([token] for token in whole[4:7]), []]


def test_several_sequences_may_be_sampled_with_drafts_and_guidance(models: dict[str, GPTNeoForCausalLM]) -> None:
    model, prompt = models["itself"], torch.tensor([[5, 6, 7, 8], [9, 3, 60, 44]])
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 9, "pad_token_id": 0}
    for way in ({"assistant_model": model}, {"prompt_lookup_num_tokens": 4}, {"guidance_scale": 1.4}):
        torch.manual_seed(0)
        found = model.generate(prompt, **way, **options)
        assert found.shape == (6, 13)
        assert found[:, :4].tolist() == prompt.repeat_interleave(3, dim=0).tolist()
        assert len({tuple(row) for row in found.tolist()}) > 3
    torch.manual_seed(0)
    uncached = model.generate(prompt, guidance_scale=1.4, use_cache=False, **options)
    assert uncached.tolist() == found.tolist()


# -- OpenAI GPT, whose forward takes no cache ------------------------------------------------------------------------


def test_openai_gpt_goes_on_from_the_cache_that_generate_returned() -> None:
    model, ids = make_gpt(), torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 6, "eos_token_id": None}
    first = model.generate(ids, return_dict_in_generate=True, **options)
    longer = model.generate(first.sequences, past_key_values=first.past_key_values, **options)
    assert longer.tolist() == model.generate(ids, **options | {"max_new_tokens": 12}).tolist()


# -- bad input -------------------------------------------------------------------------------------------------------


def refused(model: Any, error: type[Exception], says: str, **options: Any) -> None:
    def run(*_: Any) -> None:
        raise AssertionError("the model was run")

    hook = model.transformer.register_forward_pre_hook(run)
    try:
        with pytest.raises(error, match=says):
            model.generate(torch.tensor([[5, 6, 7, 8]]), **{"max_new_tokens": 4} | options)
    finally:
        hook.remove()


def test_assistants_that_cannot_help_are_refused_before_any_work() -> None:
    model, other = make_neo(), make_neo(vocab_size=30)
    refused(model, ValueError, "vocabulary of 31 tokens; got one of 30", assistant_model=other)
    refused(model, TypeError, "got GPTNeoModel", assistant_model=model.transformer)
    refused(model, ValueError, "assistant_model.*num_beams=2", assistant_model=model, num_beams=2)
    refused(model, ValueError, "assistant_model.*use_cache=False", assistant_model=model, use_cache=False)
    both = {"assistant_model": model, "prompt_lookup_num_tokens": 3}
    refused(model, ValueError, "assistant_model and prompt_lookup_num_tokens both", **both)
    refused(model, ValueError, "num_assistant_tokens must", assistant_model=model, num_assistant_tokens=0)
    schedule = {"assistant_model": model, "num_assistant_tokens_schedule": "weekly"}
    refused(model, ValueError, "'heuristic' or 'constant'; got 'weekly'", **schedule)


def test_the_cache_of_another_model_is_refused_before_any_work() -> None:
    model, ids = make_neo(), torch.tensor([[5, 6, 7]])
    for other, says in (
        (make_neo(num_layers=4, attention_types=[[["global", "local"], 2]]), "2 layers; got 4"),
        (make_neo(num_heads=2), r"\(3, 4\); got \[\(2, 6\)\]"),
        (make_neo(hidden_size=24), r"\(3, 4\); got \[\(3, 8\)\]"),
    ):
        with torch.no_grad():
            past = other(ids, use_cache=True).past_key_values
        refused(model, ValueError, says, past_key_values=past)
        refused(model, ValueError, says, past_key_values=tuple(past))


def test_contrastive_search_and_sampling_exclude_each_other() -> None:
    refused(make_neo(), ValueError, "penalty_alpha=0.6 and do_sample=True", penalty_alpha=0.6, do_sample=True)


def test_options_without_effect_beside_another_are_warned_of() -> None:
    model, ids = make_neo(), torch.tensor([[5, 6, 7]])
    for options, says in (
        ({"penalty_alpha": 0.6, "top_k": 1}, "penalty_alpha=0.6 has an effect only in contrastive search, but top_k=1"),
        ({"penalty_alpha": 0.6, "top_k": 4, "num_beams": 2}, "only in contrastive search, but num_beams=2"),
        (
            {"negative_prompt_ids": ids},
            "negative_prompt_ids has an effect only under guidance, but guidance_scale=None",
        ),
    ):
        with pytest.warns(GenerationWarning, match=says):
            model.generate(ids, max_new_tokens=2, **options)


def test_contrastive_search_needs_a_position_for_the_last_token_too() -> None:
    model, ids = make_neo(), torch.tensor([[5, 6, 7]])
    assert model.generate(ids, **SEARCH, max_new_tokens=37, eos_token_id=None).shape == (1, 40)
    with pytest.raises(SequenceTooLongError, match=r"40 positions.*need 41. .*max_new_tokens=37"):
        model.generate(ids, **SEARCH, max_new_tokens=38)
