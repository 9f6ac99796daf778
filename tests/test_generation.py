"""`generate` against the reference's ids, and what holds whatever the options are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from triptych.generation.configuration import GenerationConfig
from triptych.generation.logits_torch import LogitsProcessor, LogitsProcessorList
from triptych.generation.outputs import GenerateDecoderOnlyOutput
from triptych.generation.stopping_torch import MaxTimeCriteria, StoppingCriteria, StoppingCriteriaList
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "generation.json").read_text(encoding="utf-8"))
PADDED = torch.tensor([[0, 0, 7, 8, 12], [9, 3, 60, 44, 31], [0, 0, 0, 0, 71]])


def load_model() -> GPTNeoForCausalLM:
    folder = GOLDEN / "generation_model"
    model = GPTNeoForCausalLM(GPTNeoConfig.from_pretrained(folder))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)  # the tied head is stored once
    return model.eval()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "generation_tensors.safetensors")


@pytest.fixture
def model() -> GPTNeoForCausalLM:
    return load_model()


@pytest.fixture(scope="module")
def shared_model() -> GPTNeoForCausalLM:
    return load_model()


@pytest.mark.parametrize("case", RECORD["cases"], ids=[f"{case['name']}-{case['seed']}" for case in RECORD["cases"]])
def test_ids_are_those_of_the_reference(shared_model: GPTNeoForCausalLM, case: dict[str, Any]) -> None:
    options = {"pad_token_id": 0} | case["options"]
    if case["seed"] is not None:
        torch.manual_seed(case["seed"])
        options["do_sample"] = True
    assert shared_model.generate(torch.tensor(case["prompt"]), **options).tolist() == case["ids"]


def test_a_prompt_of_embeddings_gives_bos_and_the_new_ids(shared_model: GPTNeoForCausalLM) -> None:
    golden = RECORD["embeds"]
    embeds = shared_model.get_input_embeddings()(torch.tensor(golden["prompt"])).detach()
    for use_cache in (True, False):
        ids = shared_model.generate(inputs_embeds=embeds, max_new_tokens=6, pad_token_id=0, use_cache=use_cache)
        assert ids.tolist() == golden["ids"]


def test_embeddings_with_their_ids_give_what_the_ids_give(shared_model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    embeds = shared_model.get_input_embeddings()(ids).detach()
    together = shared_model.generate(ids, inputs_embeds=embeds, max_new_tokens=6)
    assert together.tolist() == shared_model.generate(ids, max_new_tokens=6).tolist()


def test_without_a_prompt_generation_starts_from_bos(shared_model: GPTNeoForCausalLM) -> None:
    assert shared_model.generate(max_new_tokens=6).tolist() == RECORD["no prompt"]


def test_the_output_object_holds_the_references_scores_attentions_and_hidden_states(
    shared_model: GPTNeoForCausalLM, tensors: dict[str, Tensor]
) -> None:
    torch.manual_seed(3)
    output = shared_model.generate(
        PADDED,
        max_new_tokens=3,
        pad_token_id=0,
        do_sample=True,
        top_k=5,
        return_dict_in_generate=True,
        output_scores=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert isinstance(output, GenerateDecoderOnlyOutput)
    assert list(output) == ["sequences", "scores", "attentions", "hidden_states", "past_key_values"]
    torch.testing.assert_close(output.sequences, tensors["output.sequences"])
    real = PADDED != 0  # what padding attends to is nobody's business
    for step in range(3):
        torch.testing.assert_close(output.scores[step], tensors[f"output.scores.{step}"], atol=2e-5, rtol=0)
        hidden, golden = output.hidden_states[step][-1], tensors[f"output.hidden_states.{step}"]
        weights, golden_weights = output.attentions[step][1], tensors[f"output.attentions.{step}"]
        if step == 0:
            hidden, golden = hidden[real], golden[real]
            weights, golden_weights = weights.transpose(1, 2)[real], golden_weights.transpose(1, 2)[real]
        torch.testing.assert_close(hidden, golden, atol=2e-5, rtol=0)
        torch.testing.assert_close(weights, golden_weights, atol=2e-5, rtol=0)
    assert output.past_key_values[0][0].shape == (3, 4, 7, 7)


def test_the_output_object_holds_only_what_was_asked_for(shared_model: GPTNeoForCausalLM) -> None:
    options = {"max_new_tokens": 3, "return_dict_in_generate": True}
    assert list(shared_model.generate(PADDED[1:2], **options)) == ["sequences", "past_key_values"]
    assert list(shared_model.generate(PADDED[1:2], use_cache=False, **options)) == ["sequences"]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_left_padded_batch_gives_what_each_row_gives_alone(shared_model: GPTNeoForCausalLM, use_cache: bool) -> None:
    batch = shared_model.generate(
        PADDED, attention_mask=(PADDED != 0).long(), max_new_tokens=40, pad_token_id=0, use_cache=use_cache
    )
    for row, ids in zip(batch, PADDED, strict=True):
        alone = shared_model.generate(ids[ids != 0][None], max_new_tokens=40)[0]
        new = row[5:]
        assert new[: len(alone) - int((ids != 0).sum())].tolist() == alone[int((ids != 0).sum()) :].tolist()


@pytest.mark.parametrize("sequences", [1, 2])
def test_sampling_with_and_without_the_cache_draws_the_same(shared_model: GPTNeoForCausalLM, sequences: int) -> None:
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(
            shared_model.generate(
                PADDED,
                do_sample=True,
                max_new_tokens=30,
                num_return_sequences=sequences,
                pad_token_id=0,
                use_cache=use_cache,
            ).tolist()
        )
    assert drawn[0] == drawn[1]


def test_the_prompts_tokens_are_favoured_in_each_of_its_sequences(shared_model: GPTNeoForCausalLM) -> None:
    options = {"max_new_tokens": 9, "encoder_repetition_penalty": 4.0, "pad_token_id": 0}
    greedy = shared_model.generate(PADDED, **options)
    likeliest = shared_model.generate(PADDED, do_sample=True, top_k=1, num_return_sequences=2, **options)
    assert likeliest.tolist() == greedy.repeat_interleave(2, dim=0).tolist()


@pytest.mark.parametrize("legacy", [True, False])
def test_generation_continues_from_past_key_values(shared_model: GPTNeoForCausalLM, legacy: bool) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    whole = shared_model.generate(ids, max_new_tokens=8)
    with torch.no_grad():
        past = shared_model(ids[:, :3], use_cache=True).past_key_values
    past = tuple((key.clone(), value.clone()) for key, value in past) if legacy else past
    assert shared_model.generate(ids, past_key_values=past, max_new_tokens=8).tolist() == whole.tolist()
    output = shared_model.generate(ids, max_new_tokens=4, return_dict_in_generate=True)
    more = shared_model.generate(output.sequences, past_key_values=output.past_key_values, max_new_tokens=4)
    assert more.tolist() == whole.tolist()


def test_given_position_ids_are_counted_on(shared_model: GPTNeoForCausalLM) -> None:
    prompt = PADDED[:1]
    positions = torch.tensor([[1, 1, 0, 1, 2]])
    options = {"attention_mask": (prompt != 0).long(), "max_new_tokens": 8}
    assert (
        shared_model.generate(prompt, position_ids=positions, **options).tolist()
        == shared_model.generate(prompt, **options).tolist()
    )


def test_a_training_batch_may_be_passed_as_it_is(shared_model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    assert (
        shared_model.generate(**batch, max_new_tokens=4).tolist()
        == shared_model.generate(ids, max_new_tokens=4).tolist()
    )


def test_ids_of_another_int_type_do_as_well(shared_model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]], dtype=torch.int32)
    assert shared_model.generate(ids, max_new_tokens=2).dtype == torch.long


# -- where options come from -------------------------------------------------------------------------------------


def test_keyword_arguments_win_over_the_given_options_which_win_over_the_models(model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    model.generation_config = GenerationConfig(max_new_tokens=7)
    assert model.generate(ids).shape == (1, 11)
    given = GenerationConfig(max_new_tokens=3)
    assert model.generate(ids, given).shape == (1, 7)
    assert model.generate(ids, given, max_new_tokens=2).shape == (1, 6)
    assert given.max_new_tokens == 3


def test_given_options_without_an_end_take_the_models_end(model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    second = int(model.generate(ids, max_new_tokens=2)[0, -1])
    model.generation_config.eos_token_id = second
    given = GenerationConfig(max_new_tokens=9)
    assert model.generate(ids, given).shape == (1, 6)
    assert model.generate(ids, given, eos_token_id=None).shape == (1, 13)


def test_options_changed_in_the_models_configuration_hold_as_in_old_scripts(model: GPTNeoForCausalLM) -> None:
    model.config.max_length = 7
    with pytest.warns(UserWarning, match="generation_config"):
        assert model.generate(torch.tensor([[5, 6, 7, 8]])).shape == (1, 7)


def test_options_changed_in_the_models_options_hold(model: GPTNeoForCausalLM) -> None:
    model.generation_config.max_new_tokens = 2
    assert model.generate(torch.tensor([[5, 6, 7, 8]])).shape == (1, 6)
    model.config.max_length = 30
    assert model.generate(torch.tensor([[5, 6, 7, 8]])).shape == (1, 6)


def test_generation_kwargs_of_the_options_are_passed_on(model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    heads = torch.zeros(4, 4)
    given = GenerationConfig(max_new_tokens=5, generation_kwargs={"head_mask": heads})
    assert model.generate(ids, given).tolist() == model.generate(ids, head_mask=heads, max_new_tokens=5).tolist()
    assert model.generate(ids, given).tolist() != model.generate(ids, max_new_tokens=5).tolist()


# -- the user's own transforms and criteria ------------------------------------------------------------------------


class Only(LogitsProcessor):
    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([self.token]), 0.0)


class StopAfter(StoppingCriteria):
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> bool:
        return input_ids.shape[1] >= self.length


class EndRows(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([input_ids.shape[1] >= 6, input_ids.shape[1] >= 8])


@pytest.mark.parametrize("do_sample", [True, False])
def test_own_transforms_and_criteria_are_used(shared_model: GPTNeoForCausalLM, do_sample: bool) -> None:
    ids = shared_model.generate(
        torch.tensor([[5, 6, 7, 8]]),
        logits_processor=LogitsProcessorList([Only(42)]),
        stopping_criteria=StoppingCriteriaList([StopAfter(7)]),
        do_sample=do_sample,
        max_new_tokens=20,
    )
    assert ids.tolist() == [[5, 6, 7, 8, 42, 42, 42]]


def test_a_criterion_may_end_rows_one_by_one(shared_model: GPTNeoForCausalLM) -> None:
    ids = shared_model.generate(
        torch.tensor([[5, 6, 7, 8], [5, 6, 7, 8]]),
        logits_processor=[Only(42)],
        stopping_criteria=[EndRows()],
        max_new_tokens=20,
        pad_token_id=0,
    )
    assert ids.tolist() == [[5, 6, 7, 8, 42, 42, 0, 0], [5, 6, 7, 8, 42, 42, 42, 42]]


def test_max_time_ends_the_text_after_the_token_at_hand(shared_model: GPTNeoForCausalLM) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    assert shared_model.generate(ids, max_time=0.0, max_new_tokens=40).shape == (1, 5)
    late = [MaxTimeCriteria(1.0, initial_timestamp=0.0)]
    assert shared_model.generate(ids, stopping_criteria=late, max_new_tokens=40).shape == (1, 5)


def test_prefix_allowed_tokens_decide_what_may_follow(shared_model: GPTNeoForCausalLM) -> None:
    ids = shared_model.generate(
        torch.tensor([[5, 6], [7, 8]]),
        prefix_allowed_tokens_fn=lambda row, ids: [int(ids[-1]) + 1 + row],
        max_new_tokens=3,
        pad_token_id=0,
    )
    assert ids.tolist() == [[5, 6, 7, 8, 9], [7, 8, 10, 12, 14]]


class Letters:
    """A tokenizer whose ids stand for texts of one to three letters, so that words are cut anywhere."""

    def decode(self, ids: list[int]) -> str:
        return "".join("abcdefghij"[i % 10] * (1 + i % 3) for i in ids)


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_stop_string_across_tokens_ends_its_row(shared_model: GPTNeoForCausalLM, length: int) -> None:
    tokenizer, prompt = Letters(), torch.tensor([[5, 6, 7, 8], [9, 3, 60, 44]])
    free = shared_model.generate(prompt, max_new_tokens=20, eos_token_id=None)
    text = tokenizer.decode(free[0, 4:].tolist())
    stop = text[6 : 6 + length]
    ids = shared_model.generate(
        prompt, max_new_tokens=20, stop_strings=["zz", stop], tokenizer=tokenizer, eos_token_id=None, pad_token_id=0
    )
    for row, unstopped in zip(ids, free, strict=True):
        new = unstopped[4:].tolist()
        kept = next((n for n in range(1, 21) if stop in tokenizer.decode(new[:n])), 20)
        assert row[4 : 4 + kept].tolist() == new[:kept]
        assert (row[4 + kept :] == 0).all()


def test_a_stop_string_in_the_prompt_does_not_stop(shared_model: GPTNeoForCausalLM) -> None:
    tokenizer, prompt = Letters(), torch.tensor([[5, 6, 7, 8]])
    stop = tokenizer.decode(prompt[0].tolist())
    ids = shared_model.generate(prompt, max_new_tokens=5, stop_strings=stop, tokenizer=tokenizer)
    assert ids.shape == (1, 9)


# -- what it costs ---------------------------------------------------------------------------------------------------


def test_each_token_is_fed_once_and_only_the_last_position_gets_logits(
    model: GPTNeoForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, heads = [], []
    model.transformer.register_forward_pre_hook(lambda module, args: fed.append(tuple(args[0].shape)))
    model.lm_head.register_forward_pre_hook(lambda module, args: heads.append(tuple(args[0].shape)))
    model.generate(PADDED[1:2], do_sample=True, num_return_sequences=3, max_new_tokens=4, eos_token_id=None)
    assert fed == [(1, 5), (3, 1), (3, 1), (3, 1)]
    assert heads == [(1, 28), (3, 28), (3, 28), (3, 28)]


def test_the_cache_has_room_for_the_whole_text_from_the_start(model: GPTNeoForCausalLM) -> None:
    output = model.generate(PADDED[1:2], max_new_tokens=12, eos_token_id=None, return_dict_in_generate=True)
    key, _ = output.past_key_values[0]
    assert key.shape[2] == 16
    assert key.untyped_storage().nbytes() == key.numel() * key.element_size()


def test_generation_leaves_no_trace_in_autograd_and_keeps_the_mode(model: GPTNeoForCausalLM) -> None:
    model.train()
    output = model.generate(PADDED[1:2], max_new_tokens=2, return_dict_in_generate=True, output_scores=True)
    assert model.training
    assert not output.scores[0].requires_grad
    model(output.sequences, labels=output.sequences).loss.backward()  # generated ids may be trained on


def test_nothing_is_printed(shared_model: GPTNeoForCausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    shared_model.generate(PADDED[1:2], max_new_tokens=2)
    assert capsys.readouterr() == ("", "")
