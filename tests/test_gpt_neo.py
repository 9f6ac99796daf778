"""What a user of the GPT Neo classes may rely on, beyond the reference's numbers of test_gpt_neo_golden.py."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gpt_neo_models import gap, make, tokens
from triptych.errors import LabelError, SequenceTooLongError, TokenIdError
from triptych.models.gpt_neo.modeling_torch import (
    GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)

TOLERANCE = 2e-5
IMPLEMENTATIONS = ("eager", "sdpa")


def padded(rows: list[torch.Tensor], side: str, pad: int = 0) -> dict[str, torch.Tensor]:
    """A batch of rows of several lengths, with the mask and the positions that make each row what it is alone."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), pad), torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(longest - len(row), None) if side == "left" else slice(len(row))
        ids[index, where], mask[index, where] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


# -- batches ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    window=st.integers(1, 14),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_a_padded_batch_gives_what_each_row_gives_alone(lengths, side, window, implementation):
    model = make(window_size=window, attn_implementation=implementation)
    rows = [tokens(1, length, seed=seed)[0] for seed, length in enumerate(lengths)]
    batch = padded(rows, side)
    with torch.no_grad():
        together = model(**batch).logits
        for index, row in enumerate(rows):
            alone = model(row[None]).logits[0]
            assert gap(together[index][batch["attention_mask"][index] == 1], alone) <= TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_left_padded_batch_continues_from_its_cache_as_each_row_does_alone(implementation):
    model = make(attn_implementation=implementation)
    rows = [tokens(1, length, seed=length)[0] for length in (9, 4, 1)]
    batch, new = padded(rows, "left"), tokens(3, 5, seed=8)
    with torch.no_grad():
        cache, mask = model(**batch).past_key_values, batch["attention_mask"]
        for step in range(5):
            mask = torch.cat((mask, torch.ones(3, 1, dtype=torch.long)), 1)
            positions = mask.sum(-1, keepdim=True) - 1
            output = model(new[:, step : step + 1], attention_mask=mask, position_ids=positions, past_key_values=cache)
            cache = output.past_key_values
            for index, row in enumerate(rows):
                alone = model(torch.cat((row, new[index, : step + 1]))[None]).logits[0, -1]
                assert gap(output.logits[index, -1], alone) <= TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_batch_of_one_equals_the_row(implementation):
    model, ids = make(attn_implementation=implementation), tokens(3)
    with torch.no_grad():
        together = model(ids).logits
        assert gap(torch.cat([model(row[None]).logits for row in ids]), together) <= TOLERANCE


def test_left_padding_without_positions_is_warned_of():
    ids, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    with pytest.warns(UserWarning, match="padded on the left but position_ids were not given"):
        make()(ids, attention_mask=mask)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_padding_alone_are_finite_and_so_are_their_gradients(implementation):
    model, ids = make(attn_implementation=implementation), tokens()
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1] = 0
    output = model(ids, attention_mask=mask, position_ids=torch.arange(9)[None], labels=ids)
    output.loss.backward()
    assert bool(output.logits.isfinite().all())
    assert all(bool(weight.grad.isfinite().all()) for weight in model.parameters())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", ["global", "local"])
def test_a_layer_sees_exactly_the_tokens_of_its_window(implementation, kind):
    """Changing a token changes the rows that may see it and no other: in one layer, the window; itself counted."""
    model = make(GPTNeoModel, num_layers=1, attention_types=[[[kind], 1]], attn_implementation=implementation)
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 31
    with torch.no_grad():
        moved = (model(ids)[0] - model(changed)[0]).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == list(range(4, 12 if kind == "global" else 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_is_finite_at_full_length_with_large_scores(dtype, implementation):
    model = make(max_position_embeddings=2048, window_size=256, attn_implementation=implementation)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.attention.q_proj.weight.mul_(200)
            block.attn.attention.k_proj.weight.mul_(200)
        model = model.to(dtype)
        mask = torch.ones(1, 2048, dtype=torch.long)
        mask[:, :300] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = model(tokens(1, 2048), attention_mask=mask, position_ids=positions, labels=tokens(1, 2048))
    assert output.logits.dtype == dtype
    assert bool(output.logits.isfinite().all())
    assert bool(output.loss.isfinite())


# -- arguments -------------------------------------------------------------------------------------------------


def test_embeddings_give_what_their_ids_give():
    model, ids = make(), tokens()
    with torch.no_grad():
        assert gap(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, model(ids).logits) == 0


def test_attentions_and_hidden_states_can_be_asked_for_in_the_configuration():
    output = make(output_attentions=True, output_hidden_states=True)(tokens())
    assert [tuple(x.shape) for x in output.attentions] == [(2, 3, 9, 9)] * 2
    assert [tuple(x.shape) for x in output.hidden_states] == [(2, 9, 12)] * 3


def test_asking_for_attentions_does_not_change_the_numbers():
    model, ids = make(attn_implementation="sdpa"), tokens()
    with torch.no_grad():
        output = model(ids, output_attentions=True)
        assert gap(output.logits, model(ids).logits) <= TOLERANCE
    for weights in output.attentions:
        assert gap(weights.sum(-1), torch.ones(2, 3, 9)) <= TOLERANCE


def test_use_cache_follows_the_configuration_unless_told():
    ids = tokens()
    assert make(use_cache=False)(ids).past_key_values is None
    assert make(use_cache=False)(ids, use_cache=True).past_key_values.length == 9
    assert make()(ids, use_cache=False).past_key_values is None


def test_dropout_acts_in_training_only():
    model, ids = make(embed_dropout=0.5, attention_dropout=0.5, resid_dropout=0.5), tokens()
    assert gap(model(ids).logits, model(ids).logits) == 0
    model.train()
    assert gap(model(ids).logits, model(ids).logits) > 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_next_token_logits_are_those_of_the_last_position(implementation):
    model, ids = make(attn_implementation=implementation), tokens()
    with torch.no_grad():
        whole = model(ids).logits
        step = model.next_token_logits(ids, cache=None)
        assert gap(step.logits, whole[:, -1]) <= TOLERANCE
        assert step.cache is None
        first = model.next_token_logits(ids[:, :8], cache=model.new_cache(2, 20))
        assert gap(first.logits, whole[:, 7]) <= TOLERANCE
        second = model.next_token_logits(ids[:, 8:], cache=first.cache, output_hidden_states=True)
        assert gap(second.logits, whole[:, 8]) <= TOLERANCE
    assert second.cache.length == 9
    assert len(second.hidden_states) == 3
    assert model.half().next_token_logits(ids, cache=None).logits.dtype == torch.float32


# -- what is put right (the documented behaviour, where the documented version does otherwise) -------------------------


@pytest.mark.parametrize("model_class", [GPTNeoForQuestionAnswering, GPTNeoForTokenClassification])
def test_hidden_states_are_kept_without_a_cache_too(model_class):
    model, ids = make(model_class, use_cache=False), tokens()
    output = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 3
    assert len(output.attentions) == 2
    *_, last = model(ids, output_hidden_states=True, return_dict=False)
    assert max(map(gap, output.hidden_states, last)) <= TOLERANCE


def classifier(**fields):
    return make(GPTNeoForSequenceClassification, num_labels=4, **fields)


def scores_of_rows(model, rows):
    with torch.no_grad():
        return torch.cat([model(row[None]).logits for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 7])
def test_classification_takes_the_last_token_on_either_side_of_padding(side, pad):
    """Also when the padding id occurs in the text, as when it is the eos id."""
    model = classifier(pad_token_id=pad)
    rows = [tokens(1, length, seed=length)[0] for length in (8, 5, 1)]
    rows[0][-1] = rows[1][2] = pad
    batch = padded(rows, side, pad)
    unpadded = classifier(pad_token_id=None)
    with torch.no_grad():
        assert gap(model(**batch).logits, scores_of_rows(unpadded, rows)) <= TOLERANCE
        ids = batch.pop("input_ids")
        embedded = model(inputs_embeds=model.transformer.wte(ids), **batch).logits
    assert gap(embedded, scores_of_rows(unpadded, rows)) <= TOLERANCE


def test_classification_finds_the_last_token_by_the_padding_id_when_there_is_no_mask():
    model = classifier(pad_token_id=0)
    rows = [tokens(1, length, seed=length)[0] for length in (8, 5, 1)]
    with torch.no_grad():
        right = model(padded(rows, "right")["input_ids"]).logits
    assert gap(right, scores_of_rows(model, rows)) <= TOLERANCE


def test_classification_of_a_batch_without_a_padding_id_takes_the_last_position():
    model, ids = classifier(), tokens()
    with torch.no_grad():
        assert gap(model(ids).logits, scores_of_rows(model, ids)) <= TOLERANCE
        nothing = padded([ids[0, :0], ids[1, :4]], "right")
        assert gap(model(**nothing).logits[1:], scores_of_rows(model, ids[1:, :4])) <= TOLERANCE


def test_classification_continues_from_a_cache():
    model, ids = classifier(), tokens()
    with torch.no_grad():
        past = model(ids[:, :6]).past_key_values
        mask = torch.ones(2, 9, dtype=torch.long)
        assert gap(model(ids[:, 6:], past_key_values=past, attention_mask=mask).logits, model(ids).logits) <= TOLERANCE


def test_span_positions_outside_the_text_do_not_count():
    model, ids = make(GPTNeoForQuestionAnswering), tokens(3)
    inside = model(ids[:1], start_positions=torch.tensor([2]), end_positions=torch.tensor([4])).loss
    loss = model(ids, start_positions=torch.tensor([2, 9, -1]), end_positions=torch.tensor([4, 40, -100])).loss
    assert gap(loss, inside) <= TOLERANCE


def test_the_kind_of_classification_is_written_into_the_configuration_at_the_first_loss():
    for labels, count, kind in (
        (torch.tensor([0, 1]), 2, "single_label_classification"),
        (torch.rand(2, 3), 3, "multi_label_classification"),
        (torch.rand(2), 1, "regression"),
    ):
        model = make(GPTNeoForSequenceClassification, num_labels=count)
        model(tokens())
        assert model.config.problem_type is None
        model(tokens(), labels=labels)
        assert model.config.problem_type == kind


def test_labels_of_minus_100_do_not_count():
    model, ids = make(), tokens()
    labels = ids.clone()
    labels[:, 5:] = -100
    assert gap(model(ids, labels=labels).loss, model(ids[:, :5], labels=ids[:, :5]).loss) <= TOLERANCE
    token_model = make(GPTNeoForTokenClassification, num_labels=3)
    classes = (ids % 3).masked_fill(labels == -100, -100)
    assert gap(token_model(ids, labels=classes).loss, token_model(ids[:, :5], labels=classes[:, :5]).loss) <= TOLERANCE


# -- bad input -------------------------------------------------------------------------------------------------


IDS = tokens()
BAD_INPUT = {
    "id above": (
        {"input_ids": torch.tensor([[1, 2], [3, 31]])},
        TokenIdError,
        r"input_ids must be from 0 to 30.*got 31 at \[1, 1\]\..*resize_token_embeddings",
    ),
    "id below": ({"input_ids": torch.tensor([[1, -2]])}, TokenIdError, r"got -2 at \[0, 1\]"),
    "type id": ({"token_type_ids": IDS + 31}, TokenIdError, r"token_type_ids must be from 0 to 30"),
    "type ids' shape": (
        {"token_type_ids": IDS[:1]},
        ValueError,
        r"token_type_ids must have the shape of the input, \(2, 9\); got \(1, 9\)",
    ),
    "too long": (
        {"input_ids": tokens(1, 41)},
        SequenceTooLongError,
        r"40 positions but was given 41 tokens\. Shorten .*max_length=40",
    ),
    "position above": (
        {"position_ids": torch.full((2, 9), 40)},
        SequenceTooLongError,
        r"position_ids must be from 0 to 39.*got 40\. Shorten",
    ),
    "position below": ({"position_ids": torch.full((2, 9), -1)}, SequenceTooLongError, r"got -1\."),
    "positions' shape": (
        {"position_ids": tokens(3)},
        ValueError,
        r"position_ids must have shape \(2, 9\); got \(3, 9\)",
    ),
    "head mask": (
        {"head_mask": torch.ones(4)},
        ValueError,
        r"head_mask must have shape \(num_heads,\) = \(3,\) or .* = \(2, 3\); got \(4,\)",
    ),
    "turned head mask": ({"head_mask": torch.ones(3, 2)}, ValueError, r"head_mask must .*got \(3, 2\)"),
    "short attention mask": (
        {"attention_mask": torch.ones(2, 8)},
        ValueError,
        r"attention_mask must have shape .* = \(2, 9\); got \(2, 8\)",
    ),
    "flat attention mask": ({"attention_mask": torch.ones(9)}, ValueError, r"attention_mask must .*got \(9,\)"),
    "no input": (
        {"input_ids": None},
        ValueError,
        r"input_ids or inputs_embeds, one of the two; got neither\. Pass one",
    ),
    "two inputs": ({"inputs_embeds": torch.zeros(2, 9, 12)}, ValueError, r"got both\. Pass one"),
    "labels' shape": ({"labels": IDS[:, :8]}, ValueError, r"labels must have shape \(2, 9\).*got \(2, 8\)"),
    "label": (
        {"labels": IDS * 0 + 31},
        LabelError,
        r"labels must be from 0 to 30, or -100.*got 31 at \[0, 0\]\. Correct",
    ),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_refused_with_the_rule_what_was_got_and_the_remedy(what):
    inputs, error, message = BAD_INPUT[what]
    assert issubclass(error, ValueError)
    with pytest.raises(error, match=message):
        make()(**({"input_ids": IDS} | inputs))


def test_too_many_tokens_counts_those_in_the_cache():
    model = make()
    past = model(tokens(1, 35)).past_key_values
    with pytest.raises(SequenceTooLongError, match=r"given 41 tokens \(35 of them in past_key_values\)"):
        model(tokens(1, 6), past_key_values=past)
    assert model(tokens(1, 5), past_key_values=past).past_key_values.length == 40


@pytest.mark.parametrize(
    ("count", "labels", "error", "message"),
    [
        (3, torch.tensor([0, 3]), LabelError, r"labels must be from 0 to 2.*got 3 at \[1\]"),
        (3, torch.tensor([0, 1, 2]), ValueError, r"labels must have shape \(2,\).*got \(3,\)"),
        (3, torch.rand(2), ValueError, r"labels must have shape \(2, 3\).*got \(2,\)"),
        (1, torch.rand(3), ValueError, r"labels must have shape \(2,\).*got \(3,\)"),
    ],
)
def test_wrong_labels_are_refused_before_the_configuration_is_written(count, labels, error, message):
    model = make(GPTNeoForSequenceClassification, num_labels=count)
    with pytest.raises(error, match=message):
        model(tokens(), labels=labels)
    assert model.config.problem_type is None


def test_wrong_labels_of_the_other_heads_are_refused():
    with pytest.raises(LabelError, match=r"from 0 to 1.*got 5 at \[0, 0\]"):
        make(GPTNeoForTokenClassification)(tokens(), labels=torch.full((2, 9), 5))
    with pytest.raises(ValueError, match=r"start_positions and end_positions must have shape \(2,\); got \(3,\)"):
        make(GPTNeoForQuestionAnswering)(
            tokens(), start_positions=torch.tensor([0, 1, 2]), end_positions=torch.tensor([0, 1])
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "gelo"}, r"activation function must be one of gelu, .*; got 'gelo'"),
        (
            {"attn_implementation": "fast"},
            r"attn_implementation must be one of eager, sdpa, flash_attention_2, flex_attention; got 'fast'",
        ),
        ({"num_heads": 5}, r"hidden_size must be a multiple of num_heads; got 12 and 5"),
    ],
)
def test_a_configuration_that_no_model_can_have_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make(**fields)


def test_a_function_may_be_the_activation():
    ids = tokens()
    assert gap(make(activation_function=torch.tanh)(ids).logits, make(activation_function="tanh")(ids).logits) == 0


def test_the_language_model_head_is_not_run_on_positions_that_decoding_does_not_need():
    model, ids = make(GPTNeoForCausalLM), tokens()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        model.next_token_logits(ids, cache=None)
    assert seen == [(2, 12)]
