"""What `generate` says to bad input: before any work, naming the option or id, with a remedy."""

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import gpt_neo_models
from triptych.errors import GenerationWarning, SequenceTooLongError, TokenIdError, UnknownOptionError
from triptych.generation.configuration import GenerationConfig
from triptych.generation.logits_torch import LogitsProcessor, RepetitionPenaltyLogitsProcessor
from triptych.generation.stopping_torch import MaxLengthCriteria
from triptych.generation.streamers import TextIteratorStreamer
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM, GPTNeoForTokenClassification

IDS = torch.tensor([[5, 6, 7, 8]])
CONFIG: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 8,
    "num_layers": 1,
    "attention_types": [[["global"], 1]],
    "num_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    return GPTNeoForCausalLM(GPTNeoConfig(**CONFIG)).eval()


@pytest.fixture
def idle_model(model: GPTNeoForCausalLM) -> GPTNeoForCausalLM:
    """A model that must not be run."""

    def refuse(*args: Any) -> None:
        raise AssertionError("the model was run")

    model.transformer.register_forward_pre_hook(refuse)
    return model


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_new_token": 3}, UnknownOptionError, "'max_new_token'.*did you mean 'max_new_tokens'"),
        ({"head_masks": 3, "zzz": 1}, UnknownOptionError, "'head_masks', 'zzz'.*did you mean 'head_mask'"),
        ({"do_sample": True, "temperature": 0.0}, ValueError, "temperature must be a number above 0.*do_sample=False"),
        ({"do_sample": True, "temperature": -1.0}, ValueError, "temperature"),
        ({"do_sample": True, "top_p": 1.5}, ValueError, "top_p"),
        ({"do_sample": True, "top_p": -0.5}, ValueError, "top_p"),
        ({"do_sample": True, "top_k": -1}, ValueError, "top_k must be an int of at least 1; got -1"),
        ({"do_sample": True, "typical_p": 2.0}, ValueError, "typical_p"),
        ({"repetition_penalty": -1.0}, ValueError, "repetition_penalty"),
        ({"no_repeat_ngram_size": -2}, ValueError, "no_repeat_ngram_size"),
        ({"num_return_sequences": 2}, ValueError, "num_return_sequences must be 1.*do_sample=True"),
        ({"num_return_sequences": 0, "do_sample": True}, ValueError, "num_return_sequences"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens must be an int of at least 1; got 0"),
        ({"max_new_tokens": 2.5}, ValueError, "max_new_tokens"),
        ({"max_length": "9"}, ValueError, "max_length must be an int of at least 1; got '9'"),
        ({"max_length": 4}, ValueError, "max_length=4 counts the prompt, which has 4 tokens.*max_new_tokens"),
        ({"attention_mask": torch.ones(1, 3)}, ValueError, r"attention_mask must have .*\(1, 4\); got \(1, 3\)"),
        ({"attention_mask": torch.zeros(1, 4)}, ValueError, "row 0 is all padding"),
        ({"position_ids": torch.zeros(1, 2)}, ValueError, "position_ids"),
        ({"input_ids": IDS}, ValueError, "inputs and input_ids"),
        ({"stop_strings": "x"}, ValueError, "tokenizer="),
        ({"stop_strings": "", "tokenizer": object()}, ValueError, "stop_strings"),
        ({"suppress_tokens": [3, 97]}, TokenIdError, "suppress_tokens.*0 to 96.*got 97"),
        ({"bad_words_ids": [[3], [4, 200]]}, TokenIdError, "bad_words_ids.*200"),
        ({"sequence_bias": {(5, 98): 1.0}}, TokenIdError, "sequence_bias.*98"),
        ({"forced_eos_token_id": [-3]}, TokenIdError, "forced_eos_token_id.*-3"),
        ({"min_length": 6, "eos_token_id": 500}, TokenIdError, "eos_token_id.*500"),
        ({"exponential_decay_length_penalty": (3, 1.1), "eos_token_id": None}, ValueError, "eos_token_id"),
        ({"inputs_embeds": torch.zeros(2, 3, 8)}, ValueError, "inputs_embeds"),
        ({"max_time": -1.0}, ValueError, "max_time"),
        ({"do_sample": True, "min_p": 1.5}, ValueError, "min_p is a probability, from 0 to 1; got 1.5"),
        ({"top_p": 3}, ValueError, "top_p is a probability, from 0 to 1; got 3"),
        ({"num_beams": 0}, ValueError, "num_beams must be an int of at least 1; got 0"),
        ({"num_beams": 2, "num_beam_groups": 0}, ValueError, "num_beam_groups must be an int of at least 1; got 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, ValueError, r"must not exceed num_beams \(2\); got 3"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, ValueError, "must divide.*got 3"),
        ({"num_beams": 4, "num_beam_groups": 2}, ValueError, "diversity_penalty.*above 0; got 0.0"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, ValueError,
         "num_beam_groups=2 and do_sample=True exclude each other"),
        ({"num_beams": 2, "length_penalty": "long"}, ValueError, "length_penalty must be a number.*got 'long'"),
        ({"num_beams": 2, "length_penalty": float("nan")}, ValueError, "length_penalty must be a number.*got nan"),
        ({"num_beams": 2, "early_stopping": "soon"}, ValueError, "early_stopping must be True, False or 'never'"),
        ({"force_words_ids": [[5]]}, ValueError, "needs num_beams above 1; got 1"),
        ({"prompt_lookup_num_tokens": 2, "num_beams": 2}, ValueError, "Drafts.*got num_beams=2"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": True}, ValueError,
         "penalty_alpha=0.6 and do_sample=True exclude each other"),
        ({"min_length": 50, "max_length": 10}, ValueError, "min_length=50.*has 50 tokens.*max_length=10"),
        ({"min_new_tokens": 5, "max_new_tokens": 3}, ValueError, "min_new_tokens=5.*max_new_tokens=3"),
        ({"penalty_alpha": 1.6, "top_k": 4}, ValueError, "penalty_alpha is a probability, from 0 to 1; got 1.6"),
        ({"penalty_alpha": 0.6, "top_k": 4, "use_cache": False}, ValueError, "use_cache=False with penalty_alpha"),
        ({"constraints": [1], "num_beams": 2}, ValueError, "Constraint objects; got 1"),
        ({"prompt_lookup_num_tokens": 0}, ValueError, "prompt_lookup_num_tokens must be an int of at least 1; got 0"),
        ({"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 0}, ValueError, "max_matching_ngram_size.*got 0"),
        ({"prompt_lookup_num_tokens": 2, "penalty_alpha": 0.6}, ValueError, "Drafts.*got penalty_alpha=0.6"),
        ({"prompt_lookup_num_tokens": 2, "use_cache": False}, ValueError, "Drafts.*use_cache=False"),
        ({"assistant_model": object()}, TypeError, "assistant_model must be a model that generates; got object"),
        ({"guidance_scale": -1.5}, ValueError, "guidance_scale must be a number above 0"),
        ({"guidance_scale": 1.5, "negative_prompt_ids": [[1]]}, TypeError, "negative_prompt_ids must be a tensor"),
        ({"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[97]])}, TokenIdError, "negative_p.*97"),
        ({"guidance_scale": 1.5, "negative_prompt_ids": torch.ones(3, 2).long()}, ValueError, "for all; got 3"),
        ({"guidance_scale": 1.5, "negative_prompt_ids": IDS, "negative_prompt_attention_mask": torch.ones(1, 2)},
         ValueError, "negative_prompt_attention_mask must have"),
        ({"guidance_scale": 1.5, "negative_prompt_attention_mask": torch.ones(1, 2)}, ValueError, "which are missing"),
        ({"guidance_scale": 1.5, "negative_prompt_ids": torch.ones(1, 63, dtype=torch.long)}, SequenceTooLongError,
         "64 positions but the negative prompt of 63"),
        ({"synced_gpus": True}, ValueError, "synced_gpus"),
        ({"logits_processor": [RepetitionPenaltyLogitsProcessor(2)], "repetition_penalty": 1.5}, ValueError, "already"),
        ({"stopping_criteria": [MaxLengthCriteria(9)]}, ValueError, "stopping_criteria.*already"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_met_are_refused_before_any_work(
    idle_model: GPTNeoForCausalLM, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        idle_model.generate(IDS, **({"max_new_tokens": 3} if "max_length" not in options else {}) | options)


@pytest.mark.parametrize(
    ("prompt", "error", "says"),
    [
        (torch.tensor([[5, 6], [7, 97]]), TokenIdError, "97 tokens; got 97 in row 1 at place 1.*resize_token_embed"),
        (torch.tensor([[-1]]), TokenIdError, "got -1 in row 0"),
        (torch.zeros(1, 0, dtype=torch.long), ValueError, "at least one token"),
        (torch.zeros(0, 3, dtype=torch.long), ValueError, "at least one token"),
        (torch.tensor([5, 6]), ValueError, "unsqueeze"),
        (torch.tensor([[5.0, 6.0]]), TypeError, "inputs_embeds"),
        ([[5, 6]], TypeError, "got list.*return_tensors"),
        ({"input_ids": IDS}, TypeError, r"generate\(\*\*encoding\)"),
    ],
)  # fmt: skip
def test_prompts_that_are_none_are_refused(
    idle_model: GPTNeoForCausalLM, prompt: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        idle_model.generate(prompt, max_new_tokens=3)


def test_without_a_prompt_and_without_bos_there_is_nothing_to_start_from(idle_model: GPTNeoForCausalLM) -> None:
    with pytest.raises(ValueError, match="bos_token_id"):
        idle_model.generate(max_new_tokens=3, bos_token_id=None)


def test_a_model_without_a_head_cannot_generate() -> None:
    model = GPTNeoForTokenClassification(GPTNeoConfig(**CONFIG))
    with pytest.raises(TypeError, match="GPTNeoForTokenClassification cannot generate"):
        model.generate(IDS)


def test_a_cache_must_be_shorter_than_its_prompt(model: GPTNeoForCausalLM) -> None:
    with torch.no_grad():
        past = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="1 rows and 4 tokens"):
        model.generate(IDS[:, 3:], past_key_values=past, max_new_tokens=3)
    with pytest.raises(ValueError, match="inputs_embeds"):
        model.generate(inputs_embeds=torch.zeros(1, 6, 8), past_key_values=past, max_new_tokens=3)


# -- lengths -------------------------------------------------------------------------------------------------------


def test_the_last_position_is_used_and_not_exceeded(model: GPTNeoForCausalLM) -> None:
    prompt = torch.arange(3, 63)[None]
    assert model.generate(prompt, max_new_tokens=5, eos_token_id=None).shape == (1, 65)
    with pytest.raises(
        SequenceTooLongError, match=r"64 positions but the prompt of 60 tokens and 6 new ones need 65.*max_new_tokens=5"
    ):
        model.generate(prompt, max_new_tokens=6)
    with pytest.raises(SequenceTooLongError, match="max_length=65"):
        model.generate(prompt, max_length=66)
    with pytest.raises(SequenceTooLongError, match="64 positions but the prompt alone needs 70"):
        model.generate(torch.ones(1, 70, dtype=torch.long), max_new_tokens=1)


def test_a_length_that_nobody_asked_for_stops_at_the_positions_with_a_warning(model: GPTNeoForCausalLM) -> None:
    model.generation_config = GenerationConfig(max_length=500)
    with pytest.warns(GenerationWarning, match="stops after 61 new tokens"):
        assert model.generate(IDS).shape == (1, 65)


def test_the_default_length_is_said_and_gives_a_long_prompt_one_token(model: GPTNeoForCausalLM) -> None:
    with pytest.warns(GenerationWarning, match="max_length=20"):
        assert model.generate(IDS).shape == (1, 20)
    with pytest.warns(GenerationWarning, match="max_length=20"):
        assert model.generate(IDS, max_length=None).shape == (1, 20)
    with pytest.warns(GenerationWarning, match="One token is generated"):
        assert model.generate(torch.arange(3, 33)[None]).shape == (1, 31)


def test_two_lengths_and_a_minimum_above_the_maximum_are_said(model: GPTNeoForCausalLM) -> None:
    with pytest.warns(GenerationWarning, match="max_new_tokens holds"):
        assert model.generate(IDS, max_length=30, max_new_tokens=2).shape == (1, 6)
    model.generation_config = GenerationConfig(min_new_tokens=30)
    with pytest.warns(GenerationWarning, match="min_new_tokens=30.*shortest text has 34 tokens"):
        assert model.generate(IDS, max_new_tokens=2).shape == (1, 6)


# -- padding -------------------------------------------------------------------------------------------------------


def test_a_batch_without_a_pad_token_is_filled_with_the_first_end_and_says_so(model: GPTNeoForCausalLM) -> None:
    first = int(model.generate(IDS, max_new_tokens=1)[0, -1])
    both = torch.cat((IDS, torch.tensor([[9, 3, 60, 44]])))
    ends = [first, 96]
    with pytest.warns(GenerationWarning, match=f"eos_token_id={first}"):
        ids = model.generate(both, max_new_tokens=4, eos_token_id=ends)
    assert set(ids[0, 4:].tolist()) == {first}


def test_a_batch_that_ends_by_text_needs_a_pad_token(idle_model: GPTNeoForCausalLM) -> None:
    options = {"stop_strings": "x", "tokenizer": object(), "eos_token_id": None, "max_new_tokens": 2}
    with pytest.raises(ValueError, match="pad_token_id"):
        idle_model.generate(IDS.repeat(2, 1), **options)
    with pytest.raises(ValueError, match=r"pad_token_id must be from 0 to 96.*got -1"):
        idle_model.generate(IDS.repeat(2, 1), pad_token_id=-1, **options)


def test_right_padding_is_said(model: GPTNeoForCausalLM) -> None:
    with pytest.warns(GenerationWarning, match="padding_side = 'left'"):
        model.generate(torch.tensor([[5, 6], [7, 0]]), pad_token_id=0, max_new_tokens=2)


def test_an_end_token_in_the_prompt_is_no_padding(model: GPTNeoForCausalLM) -> None:
    prompt = torch.tensor([[2, 5, 2, 6]])
    attended = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3)
    for ends in (2, [2, 96]):
        ids = model.generate(prompt, pad_token_id=2, eos_token_id=ends, max_new_tokens=3)
        assert ids.tolist() == attended[:, : ids.shape[1]].tolist()


# -- what fails on the way -----------------------------------------------------------------------------------------


class Failing(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        raise OSError("out of luck")


class Broken(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores * float("nan")


def test_scores_that_cannot_be_drawn_from_are_said(model: GPTNeoForCausalLM) -> None:
    with pytest.raises(ValueError, match="remove_invalid_values=True"):
        model.generate(IDS, do_sample=True, logits_processor=[Broken()], max_new_tokens=2)


class Counting:
    """A streamer that counts."""

    def __init__(self) -> None:
        self.puts, self.ends = 0, 0

    def put(self, value: Tensor) -> None:
        self.puts += 1

    def end(self) -> None:
        self.ends += 1


def test_the_streamer_is_ended_once_whatever_happens(model: GPTNeoForCausalLM) -> None:
    streamer = Counting()
    model.generate(IDS, max_new_tokens=3, eos_token_id=None, streamer=streamer)
    assert (streamer.puts, streamer.ends) == (4, 1)
    for options in ({"logits_processor": [Failing()]}, {"num_beams": 0}, {"typo": 1}):
        with pytest.raises((OSError, ValueError)):
            model.generate(IDS, max_new_tokens=3, streamer=streamer, **options)
    assert streamer.ends == 4


def test_the_iterator_ends_when_the_generating_thread_fails(model: GPTNeoForCausalLM) -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return "x" * len(ids)

    streamer = TextIteratorStreamer(Tokenizer(), timeout=30)
    failures: queue.Queue[BaseException] = queue.Queue()

    def work() -> None:
        try:
            model.generate(IDS, max_new_tokens=3, streamer=streamer, logits_processor=[Failing()])
        except OSError as error:
            failures.put(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert "".join(streamer) == "xxxx"
    thread.join()
    assert str(failures.get_nowait()) == "out of luck"


def test_a_constraint_that_allows_nothing_is_said(model: GPTNeoForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"prefix_allowed_tokens_fn must name at least one.*row 0 after 4 tokens"):
        model.generate(IDS, prefix_allowed_tokens_fn=lambda row, ids: [], max_new_tokens=2)


# -- options without effect ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty=2.0 has an effect only in beam search.*num_beams=1"),
        ({"early_stopping": True, "num_beam_groups": 2}, "early_stopping=True and num_beam_groups=2 have.*num_beams=1"),
        ({"do_sample": False, "temperature": 0.5}, "temperature=0.5 has an effect only in sampling.*do_sample=False"),
        ({"top_p": 0.9, "min_p": 0.1, "top_k": 3}, "top_p=0.9 and min_p=0.1 have.*do_sample=False.*top_k=3 has"),
        ({"num_beams": 2, "typical_p": 0.9}, "typical_p=0.9.*do_sample=False"),
        ({"num_beams": 2, "diversity_penalty": 0.9}, "diversity_penalty=0.9.*num_beam_groups=1"),
        ({"num_beams": 2, "penalty_alpha": 0.6}, "penalty_alpha=0.6 has.*contrastive search.*num_beams=2"),
        ({"penalty_alpha": 0.6, "top_k": 1}, "penalty_alpha=0.6.*top_k=1"),
        ({"low_memory": True}, "low_memory=True.*contrastive search"),
        ({"num_beams": 2, "force_words_ids": [[5]], "do_sample": True, "temperature": 0.5},
         "do_sample=True and temperature=0.5 have an effect only without constraints"),
        ({"num_assistant_tokens": 3}, "num_assistant_tokens=3.*assistant_model"),
        ({"max_matching_ngram_size": 3}, "max_matching_ngram_size=3.*prompt_lookup_num_tokens"),
        ({"negative_prompt_ids": IDS}, "negative_prompt_ids has.*guidance_scale=None"),
        ({"min_new_tokens": 2, "eos_token_id": None}, "min_new_tokens=2.*eos_token_id=None"),
        ({"output_scores": True}, "output_scores=True.*return_dict_in_generate=False"),
        ({"decoder_start_token_id": 4}, "decoder_start_token_id=4 has an effect only in models with an encoder"),
        ({"forced_bos_token_id": 4}, "forced_bos_token_id=4 is the second token of a text.*has 4 tokens already"),
        ({"generation_config": GenerationConfig(num_beams=2, do_sample=True, top_p=0.5), "do_sample": False},
         "top_p=0.5.*do_sample=False"),
    ],
)  # fmt: skip
def test_one_warning_names_the_options_without_effect_and_what_they_clash_with(
    model: GPTNeoForCausalLM, options: dict[str, Any], says: str
) -> None:
    with pytest.warns(GenerationWarning, match=says) as found:
        model.generate(IDS, max_new_tokens=3, pad_token_id=0, **options)
    assert len(found) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"temperature": 1.0, "top_k": 50, "length_penalty": 1.0, "num_beams": 1},
        {"temperature": None, "top_p": None},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 2, "do_sample": True, "top_k": 4, "length_penalty": 0.5, "early_stopping": True},
    ],
)
def test_options_that_fit_and_defaults_say_nothing(model: GPTNeoForCausalLM, options: dict[str, Any]) -> None:
    model.generate(IDS, max_new_tokens=3, pad_token_id=0, **options)  # warnings are errors in these tests


def test_options_of_the_models_file_that_a_call_overrules_say_nothing(model: GPTNeoForCausalLM) -> None:
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, max_new_tokens=3)
    greedy = model.generate(IDS, do_sample=False)
    assert greedy.tolist() == model.generate(IDS, num_beams=1, do_sample=False, max_new_tokens=3).tolist()
    with pytest.raises(ValueError, match="exclude each other"):
        model.generate(IDS, num_beams=2, num_beam_groups=2, diversity_penalty=0.5)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"do_sample": True}],
)
def test_weights_that_are_not_numbers_are_an_error_and_no_text(options: dict[str, Any]) -> None:
    model = gpt_neo_models.make()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"NaN.*remove_invalid_values"):
        model.generate(gpt_neo_models.tokens(2, 5), max_new_tokens=4, eos_token_id=None, **options)


def test_a_row_with_all_tokens_ruled_out_is_an_error_while_it_runs() -> None:
    model, ids = gpt_neo_models.make(), gpt_neo_models.tokens(2, 5)

    def nothing_for_the_second(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[1] = float("-inf")
        return scores

    with pytest.raises(ValueError, match=r"no best token.*allow more tokens"):
        model.generate(ids, max_new_tokens=4, eos_token_id=None, logits_processor=[nothing_for_the_second])


def test_a_row_that_has_ended_may_have_all_tokens_ruled_out() -> None:
    model, ids = gpt_neo_models.make(), torch.tensor([[5, 6, 7], [8, 9, 4]])
    first, second = model.generate(ids, max_new_tokens=1, eos_token_id=None)[:, -1].tolist()
    assert first != second

    def nothing_behind_the_end(ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill((ids == second).any(dim=1)[:, None], float("-inf"))

    options: dict[str, Any] = {"eos_token_id": second, "pad_token_id": 0, "max_new_tokens": 3}
    found = model.generate(ids, logits_processor=[nothing_behind_the_end], **options)
    assert found[1].tolist() == [8, 9, 4, second, 0, 0]
