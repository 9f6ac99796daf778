"""generate() beside a user's own code: a forward, hooks, transforms and criteria, whatever the strategy."""

from typing import Any

import pytest
import torch
from torch import Tensor

import gpt_neo_models
from triptych import (
    GPTNeoForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    PhrasalConstraint,
    StoppingCriteria,
)
from triptych.errors import TokenIdError, UnknownOptionError

PROMPT = gpt_neo_models.tokens(2, 5)
PLAIN: dict[str, Any] = {"max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
    "beam": {"num_beams": 3},
    "constrained": {"num_beams": 3, "force_words_ids": [[7, 8]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted": {"assistant_model": gpt_neo_models.make(seed=1)},
    "lookup": {"prompt_lookup_num_tokens": 3},
    "guided": {"guidance_scale": 1.5},
}
every_strategy = pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)


class GivesPlainTuples(GPTNeoForCausalLM):
    """A forward whose cache is the documented tuple and no more."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out["past_key_values"] = tuple((key.clone(), value.clone()) for key, value in out.past_key_values)
        return out


@every_strategy
def test_a_forward_of_ones_own_may_give_its_cache_as_plain_tuples(options):
    own = gpt_neo_models.make(GivesPlainTuples)
    assert own.generate(PROMPT, **PLAIN, **options).equal(gpt_neo_models.make().generate(PROMPT, **PLAIN, **options))


@every_strategy
def test_a_cache_that_a_hook_keeps_stays_as_it_was(options):
    model, kept = gpt_neo_models.make(), []
    model.register_forward_hook(
        lambda module, args, out: kept.append([(x, x.clone()) for pair in out.past_key_values for x in pair])
    )
    model.generate(PROMPT, **PLAIN, **options)
    assert len(kept) > 2
    assert all(now.equal(then) for step in kept for now, then in step)


class Keeps(LogitsProcessor):
    """Remembers the ids that it was given."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.kept.append((input_ids, input_ids.clone()))
        return scores


@every_strategy
def test_ids_that_a_transform_keeps_stay_as_they_were(options):
    keeps = Keeps()
    gpt_neo_models.make().generate(PROMPT, logits_processor=[keeps], **PLAIN, **options)
    assert len(keeps.kept) >= 8
    assert all(now.equal(then) for now, then in keeps.kept)


def test_a_transform_may_have_arguments_with_defaults_and_open_ones():
    class Scales(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor, by: float = 1.0, **more: Any) -> Tensor:
            return scores * by

    both, ids, scores = LogitsProcessorList([Scales()]), PROMPT, torch.randn(2, 31)
    assert both(ids, scores).equal(scores)
    assert both(ids, scores, by=2.0, other=3).equal(2 * scores)


def test_a_transform_used_in_inference_mode_works_under_autograd_afterwards():
    shortest = MinLengthLogitsProcessor(9, (17, 23))  # ids that no other test asks for
    with torch.inference_mode():
        shortest(PROMPT, torch.zeros(2, 31))
    scores = torch.zeros(2, 31, requires_grad=True)
    shortest(PROMPT, scores).exp().sum().backward()
    assert scores.grad is not None
    assert scores.grad[:, [17, 23]].eq(0).all()


@pytest.mark.parametrize("argument", ["logits_processor", "stopping_criteria"])
def test_one_object_in_place_of_a_list_is_refused_by_name(argument):
    one = {"logits_processor": Keeps(), "stopping_criteria": StoppingCriteria()}[argument]
    with pytest.raises(TypeError, match=f"{argument} must be a list; got .*Pass"):
        gpt_neo_models.make().generate(PROMPT, **{argument: one}, **PLAIN)


@pytest.mark.parametrize("token", [31, -1])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("force_words_ids", lambda token: {"num_beams": 2, "force_words_ids": [[5], [[3, token], [4]]]}),
        ("prefix_allowed_tokens_fn", lambda token: {"prefix_allowed_tokens_fn": lambda prompt, ids: [3, token]}),
    ],
)
def test_a_wish_for_a_token_outside_the_vocabulary_names_the_option(name, option, token):
    with pytest.raises(TokenIdError, match=f"{name} must name token ids from 0 to 30"):
        gpt_neo_models.make().generate(PROMPT, **PLAIN, **option(token))


def test_a_constraint_on_a_token_outside_the_vocabulary_is_refused():
    with pytest.raises(TokenIdError, match="constraints must name token ids from 0 to 30"):
        gpt_neo_models.make().generate(PROMPT, num_beams=2, constraints=[PhrasalConstraint([4, 31])], **PLAIN)


@pytest.mark.parametrize("name", ["check", "update", "to_dict"])
def test_a_method_of_the_options_is_no_option(name):
    with pytest.raises(UnknownOptionError, match=name):
        gpt_neo_models.make().generate(PROMPT, **{name: 1}, **PLAIN)


@pytest.mark.parametrize("drafts", ["assisted", "lookup"])
def test_drafts_say_when_there_is_nothing_to_draw_from(drafts):
    model = gpt_neo_models.make(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="no distribution to draw from"):
        model.generate(PROMPT, do_sample=True, **PLAIN, **STRATEGIES[drafts])


def test_drafts_and_guidance_serve_several_drawn_texts_of_padded_prompts():
    negative = {"negative_prompt_ids": torch.tensor([[0, 9, 8], [3, 4, 5]]), "guidance_scale": 1.5}
    negative["negative_prompt_attention_mask"] = torch.tensor([[0, 1, 1], [1, 1, 1]])
    drawn = {"do_sample": True, "top_k": 1, "num_return_sequences": 2}
    model = gpt_neo_models.make()
    plain = model.generate(PROMPT, **PLAIN, **negative, **drawn)
    assert plain.equal(model.generate(PROMPT, **PLAIN, **negative, **drawn, **STRATEGIES["assisted"]))


def test_constraints_leave_guided_scores_as_beams_have_them():
    model = gpt_neo_models.make()
    told = {"num_beams": 3, "guidance_scale": 1.5, "return_dict_in_generate": True, "output_scores": True}
    free = model.generate(PROMPT, **PLAIN, **told)
    bound = model.generate(PROMPT, force_words_ids=[[7]], **PLAIN, **told)
    torch.testing.assert_close(bound.scores[0], free.scores[0], atol=2e-5, rtol=0)
