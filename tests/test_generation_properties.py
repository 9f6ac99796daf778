"""What holds for `generate` and its transforms whatever the options are."""

import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from torch import Tensor

from triptych.errors import GenerationWarning
from triptych.generation import strategies
from triptych.generation.configuration import GenerationConfig
from triptych.generation.pipeline_torch import Call, transforms
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

VOCAB = 23
TOKENS = st.integers(0, VOCAB - 1)
WORDS = st.lists(TOKENS, min_size=1, max_size=3)
SHARE = st.floats(0.05, 0.95)

# Rules that take part in choosing, and neither force a token nor need the prompt's length.
RULES: dict[str, Any] = {
    "repetition_penalty": st.floats(0.3, 3.0),
    "encoder_repetition_penalty": st.floats(0.3, 3.0),
    "no_repeat_ngram_size": st.integers(0, 3),
    "encoder_no_repeat_ngram_size": st.integers(0, 3),
    "bad_words_ids": st.lists(WORDS, min_size=1, max_size=3),
    "sequence_bias": st.lists(st.tuples(WORDS, st.floats(-9, 9)), min_size=1, max_size=3),
    "min_length": st.integers(0, 7),
    "min_new_tokens": st.integers(0, 3),
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 3), st.floats(1.0, 2.0)),
    "suppress_tokens": st.lists(TOKENS, min_size=1, max_size=3),
    "begin_suppress_tokens": st.lists(TOKENS, min_size=1, max_size=3),
    "remove_invalid_values": st.booleans(),
    "renormalize_logits": st.booleans(),
}
FORCING: dict[str, Any] = {
    "forced_bos_token_id": TOKENS,
    "forced_eos_token_id": st.one_of(TOKENS, st.lists(TOKENS, min_size=1, max_size=2)),
    "forced_decoder_ids": st.lists(st.tuples(st.integers(1, 8), TOKENS), min_size=1, max_size=2),
}
WARPERS: dict[str, Any] = {
    "temperature": st.floats(0.2, 3.0),
    "top_k": st.integers(0, 30),
    "top_p": SHARE,
    "min_p": SHARE,
    "typical_p": SHARE,
    "epsilon_cutoff": SHARE,
    "eta_cutoff": SHARE,
}
WAYS: dict[str, Any] = {
    "do_sample": st.booleans(),
    "num_beams": st.integers(1, 4),
    "num_beam_groups": st.integers(1, 3),
    "num_return_sequences": st.integers(1, 3),
    "length_penalty": st.floats(-1, 2),
    "early_stopping": st.sampled_from([True, False, "never"]),
    "diversity_penalty": st.floats(0.0, 2.0),
    "penalty_alpha": SHARE,
    "low_memory": st.booleans(),
    "force_words_ids": st.lists(WORDS, min_size=1, max_size=2),
    "prompt_lookup_num_tokens": st.integers(1, 3),
    "max_matching_ngram_size": st.integers(1, 3),
    "guidance_scale": st.floats(0.5, 2.0),
    "use_cache": st.booleans(),
    "eos_token_id": st.one_of(st.none(), TOKENS, st.lists(TOKENS, min_size=1, max_size=3)),
    "max_new_tokens": st.integers(1, 6),
    "output_scores": st.booleans(),
    "output_attentions": st.booleans(),
    "output_hidden_states": st.booleans(),
}
DRAWING: list[dict[str, Any]] = [{"do_sample": True}, {"do_sample": True, "num_beams": 3}]
SEARCHING: list[dict[str, Any]] = [
    {},
    {"num_beams": 3},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.6},
    {"num_beams": 3, "force_words_ids": [[8, 4]]},
    {"penalty_alpha": 0.5, "top_k": 4},
    {"prompt_lookup_num_tokens": 3},
    {"guidance_scale": 1.5},
    {"guidance_scale": 1.5, "num_beams": 2},
]
FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


def some(*tables: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A few of the options of the tables."""
    whole = {name: values for table in tables for name, values in table.items()}
    names = st.sets(st.sampled_from(sorted(whole)), max_size=5)
    return names.flatmap(lambda chosen: st.fixed_dictionaries({name: whole[name] for name in sorted(chosen)}))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32}
    layers = [[["global", "local"], 1]]
    config = GPTNeoConfig(**sizes, attention_types=layers, window_size=3, initializer_range=0.5, eos_token_id=2)
    return GPTNeoForCausalLM(config).eval()


def quiet(**options: Any) -> GenerationConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GenerationConfig(**options)


# -- transforms ------------------------------------------------------------------------------------------------------


def scored(rows: list[list[int]], seed: int, banned: set[int], **options: Any) -> tuple[Tensor, Tensor]:
    """Scores before and after the transforms that the options make, of which the prompt is the first two tokens."""
    ids = torch.tensor(rows)
    scores = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)).repeat(len(rows), 1) * 4
    scores[:, sorted(banned)] = -torch.inf
    config = quiet(**({"eos_token_id": 3, "do_sample": True, "top_k": 0} | options))
    return scores, transforms(Call(config, ids[:, :2]), None)(ids, scores.clone())


ROWS = st.integers(1, 3).flatmap(
    lambda count: st.integers(2, 8).flatmap(
        lambda length: st.lists(st.lists(TOKENS, min_size=length, max_size=length), min_size=count, max_size=count)
    )
)


@settings(max_examples=150, **FEW)
@given(some(RULES, WARPERS), ROWS, st.integers(0, 99), st.sets(TOKENS, min_size=1, max_size=VOCAB - 1))
def test_no_transform_brings_a_forbidden_token_back(
    options: dict[str, Any], rows: list[list[int]], seed: int, banned: set[int]
) -> None:
    before, after = scored(rows, seed, banned, **options)
    lowest = -1e30  # remove_invalid_values makes them finite, and warpers scale them
    assume(bool((after > lowest).any(dim=1).all()))  # else all tokens are ruled out, and there is nothing to draw
    assert (after[before == -torch.inf] <= lowest).all()
    assert (after.softmax(dim=-1)[before == -torch.inf] == 0).all()


@settings(max_examples=100, **FEW)
@given(some(RULES, FORCING, WARPERS), ROWS, st.integers(0, 99))
def test_transforms_give_a_batch_what_they_give_its_rows(
    options: dict[str, Any], rows: list[list[int]], seed: int
) -> None:
    _, together = scored(rows, seed, set(), **options)
    alone = torch.cat([scored([row], seed, set(), **options)[1] for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5, equal_nan=True)


# -- generate --------------------------------------------------------------------------------------------------------

PROMPTS = torch.tensor([[5, 6, 7], [9, 3, 5]])


def generated(model: GPTNeoForCausalLM, prompts: Tensor, options: dict[str, Any]) -> Any:
    """The output, or None for options that are refused; which must be before the model runs."""
    runs: list[int] = []
    hook = model.transformer.wte.register_forward_pre_hook(lambda *_: runs.append(1))
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GenerationWarning)
            return model.generate(prompts, **options)
    except ValueError as error:
        if runs and not re.search("no distribution to draw from|no best token", str(error)):
            raise AssertionError(f"refused after the model ran: {error}") from error
        return None
    finally:
        hook.remove()


@settings(max_examples=150, **FEW)
@given(st.sampled_from(SEARCHING + DRAWING), some(WAYS, RULES), some(FORCING, WARPERS))
def test_options_are_refused_before_any_work_or_generate(
    model: GPTNeoForCausalLM, way: dict[str, Any], options: dict[str, Any], more: dict[str, Any]
) -> None:
    options = {"max_new_tokens": 4, "pad_token_id": 0} | way | options | more
    output = generated(model, PROMPTS, options | {"return_dict_in_generate": True})
    if output is not None:
        assert len(output.sequences) == len(PROMPTS) * options.get("num_return_sequences", 1)
        assert 3 < output.sequences.shape[1] <= 3 + options["max_new_tokens"]


BEAMS = {name: WAYS[name] for name in ("do_sample", "length_penalty", "early_stopping", "eos_token_id")}


@settings(max_examples=50, **FEW)
@given(some(BEAMS, RULES, WARPERS), st.integers(2, 4), st.integers(1, 4), st.booleans())
def test_beams_are_sorted_and_score_what_their_tokens_do(
    model: GPTNeoForCausalLM, options: dict[str, Any], beams: int, count: int, grouped: bool
) -> None:
    shape = {"num_beams": beams, "num_return_sequences": min(count, beams)}
    if grouped and not options.get("do_sample"):
        shape |= {"num_beam_groups": beams, "diversity_penalty": 0.7}
    asked = {"max_new_tokens": 4, "pad_token_id": 0, "return_dict_in_generate": True, "output_scores": True}
    output = generated(model, PROMPTS, asked | options | shape)
    assume(output is not None)
    scores = output.sequences_scores.view(len(PROMPTS), -1)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    if not isinstance(options.get("eos_token_id"), list):  # of several ends, the first is written whichever was chosen
        chosen = model.compute_transition_scores(output.sequences, output.scores, output.beam_indices)
        length = (output.beam_indices >= 0).sum(dim=1) ** options.get("length_penalty", 1.0)
        torch.testing.assert_close(chosen.sum(dim=1) / length, output.sequences_scores, atol=1e-4, rtol=1e-4)


ROW_BY_ROW = {k: WAYS[k] for k in ("length_penalty", "early_stopping", "eos_token_id", "use_cache", "num_beams")}


@settings(max_examples=80, **FEW)
@given(st.sampled_from(SEARCHING), some(ROW_BY_ROW, RULES, FORCING))
def test_a_batch_gives_what_its_rows_give(
    model: GPTNeoForCausalLM, way: dict[str, Any], options: dict[str, Any]
) -> None:
    options = {"max_new_tokens": 5, "pad_token_id": 0} | options | way
    together = generated(model, PROMPTS, options)
    assume(together is not None)
    for row, prompt in zip(together, PROMPTS, strict=True):
        alone = generated(model, prompt[None], options)[0]
        assert row[: len(alone)].tolist() == alone.tolist()
        assert (row[len(alone) :] == 0).all()


# -- what a call means -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "arguments", "name"),
    [
        ({}, {}, "greedy"),
        ({"do_sample": True, "top_k": 3}, {}, "sample"),
        ({"penalty_alpha": 0.6, "top_k": 4}, {}, "contrastive"),
        ({"penalty_alpha": 0.6, "top_k": 1}, {}, "greedy"),
        ({"penalty_alpha": 0.6, "top_k": 4, "do_sample": True}, {}, "sample"),
        ({"penalty_alpha": 0.6, "top_k": 4, "num_beams": 2}, {}, "beam"),
        ({"num_beams": 2, "do_sample": True}, {}, "beam sample"),
        ({"num_beams": 2, "num_beam_groups": 2}, {}, "group beam"),
        ({"num_beams": 2, "force_words_ids": [[3]]}, {}, "constrained beam"),
        ({"prompt_lookup_num_tokens": 2}, {}, "assisted"),
        ({"do_sample": True}, {"assistant_model": object()}, "assisted"),
    ],
)
def test_the_options_tell_the_strategy(options: dict[str, Any], arguments: dict[str, Any], name: str) -> None:
    assert strategies.strategy_of(quiet(**options), arguments) == name
