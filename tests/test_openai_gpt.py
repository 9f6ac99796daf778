"""What a user of the OpenAI GPT classes may rely on, beyond the reference's numbers of test_openai_gpt_golden.py."""

import copy
import inspect
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from gpt_neo_models import gap, tokens
from openai_gpt_models import SMALL, make, padded
from triptych.errors import LabelError, SequenceTooLongError, TokenIdError
from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.models.openai_gpt.modeling_torch import (
    OpenAIGPTDoubleHeadsModel,
    OpenAIGPTDoubleHeadsModelOutput,
    OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel,
    OpenAIGPTModel,
)

TOLERANCE = 2e-5
IMPLEMENTATIONS = ("eager", "sdpa")


# -- batches ---------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    side=st.sampled_from(["left", "right"]),
    implementation=st.sampled_from(IMPLEMENTATIONS),
)
def test_a_padded_batch_gives_what_each_row_gives_alone(lengths, side, implementation):
    model = make(attn_implementation=implementation)
    rows = [tokens(1, length, seed=seed)[0] for seed, length in enumerate(lengths)]
    batch = padded(rows, side)
    with torch.no_grad():
        together = model(**batch).logits
        for index, row in enumerate(rows):
            alone = model(row[None]).logits[0]
            assert gap(together[index][batch["attention_mask"][index] == 1], alone) <= TOLERANCE


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
def test_a_token_sees_itself_and_what_is_before_it(implementation):
    model, ids = make(OpenAIGPTModel, n_layer=1, attn_implementation=implementation), tokens(1, 12)
    changed = ids.clone()
    changed[0, 4] = (changed[0, 4] + 1) % 31
    with torch.no_grad():
        moved = (model(ids)[0] - model(changed)[0]).abs().amax(-1)[0] > 0
    assert moved.nonzero().flatten().tolist() == list(range(4, 12))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_is_finite_at_full_length_with_large_scores(dtype, implementation):
    model = make(n_positions=512, attn_implementation=implementation)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, :24] *= 100
    mask = torch.ones(1, 512, dtype=torch.long)
    mask[:, :100] = 0
    ids, positions = tokens(1, 512), (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        output = model.to(dtype)(ids, attention_mask=mask, position_ids=positions, labels=ids)
    assert output.logits.dtype == dtype
    assert bool(output.logits.isfinite().all())
    assert bool(output.loss.isfinite())


# -- arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_loaded_in_half_precision_is_so_throughout(dtype, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    half = OpenAIGPTLMHeadModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    with torch.no_grad():
        torch.testing.assert_close(
            half(tokens()).logits.float(), model.to(dtype)(tokens()).logits.float(), rtol=0, atol=0
        )


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


def test_gelu_is_the_tanh_approximation_and_other_names_and_functions_work():
    ids = tokens()
    expected = make(afn="gelu_new")(ids).logits
    assert gap(make(afn="gelu")(ids).logits, expected) == 0
    assert gap(make(afn="swish")(ids).logits, make(afn="silu")(ids).logits) == 0
    assert gap(make(afn=torch.relu)(ids).logits, make(afn="relu")(ids).logits) == 0


def test_dropout_acts_in_training_only():
    model, ids = make(embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5), tokens()
    assert gap(model(ids).logits, model(ids).logits) == 0
    model.train()
    assert gap(model(ids).logits, model(ids).logits) > 0.1


def test_labels_of_minus_100_do_not_count():
    model, ids = make(), tokens()
    labels = ids.clone()
    labels[:, 5:] = -100
    assert gap(model(ids, labels=labels).loss, model(ids[:, :5], labels=ids[:, :5]).loss) <= TOLERANCE


def test_forward_is_documented_without_a_past():
    assert "past_key_values" not in inspect.signature(OpenAIGPTModel.forward).parameters
    assert "past_key_values" not in make()(tokens())


# -- choices -----------------------------------------------------------------------------------------------------


def double(**fields):
    return make(OpenAIGPTDoubleHeadsModel, **fields)


def test_each_choice_gives_what_it_gives_alone_and_all_that_goes_with_the_ids_has_their_shape():
    """Two examples of three choices, of several lengths; masks, types and positions have both batch axes."""
    model = double()
    rows = [tokens(1, length, seed=length)[0] for length in (8, 5, 2, 7, 1, 8)]
    batch = {name: x.view(2, 3, 8) for name, x in padded(rows, "right").items()}
    types = tokens(6, 8, seed=3).view(2, 3, 8)
    with torch.no_grad():
        output = model(**batch, token_type_ids=types)
        embedded = model(
            inputs_embeds=model.get_input_embeddings()(batch.pop("input_ids")), **batch, token_type_ids=types
        )
        for index, row in enumerate(rows):
            alone = model(row[None, None], token_type_ids=types.view(6, 8)[index, : len(row)])
            place = (index // 3, index % 3)
            assert gap(output.logits[place][: len(row)], alone.logits[0, 0]) <= TOLERANCE
            assert gap(output.mc_logits[place], alone.mc_logits[0, 0]) <= TOLERANCE
    assert isinstance(output, OpenAIGPTDoubleHeadsModelOutput)
    assert output.logits.shape == (2, 3, 8, 31)
    assert gap(embedded.mc_logits, output.mc_logits) <= TOLERANCE


@pytest.mark.parametrize("kind", ["last", "first", "mean", "cls_index"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_summary_is_of_tokens_and_never_of_padding(kind, side):
    model = double(summary_type=kind)
    rows = [tokens(1, length, seed=length)[0] for length in (8, 5, 1)]
    with torch.no_grad():
        together = model(**padded(rows, side)).mc_logits
        alone = torch.cat([model(row[None]).mc_logits for row in rows])
    assert gap(together, alone) <= TOLERANCE


def test_classification_tokens_are_by_default_the_last_ones():
    model, ids = double(), tokens(6, 8).view(2, 3, 8)
    with torch.no_grad():
        assert gap(model(ids).mc_logits, model(ids, mc_token_ids=torch.full((2, 3), 7)).mc_logits) == 0
        assert gap(model(ids).mc_logits, model(ids, mc_token_ids=torch.full((2, 3), 3)).mc_logits) > 0.01


def test_summaries_pool_tokens_and_not_choices():
    """With two batch axes too, where the documented version pools over the choices."""
    for kind in ("last", "first", "mean"):
        model, ids = double(summary_type=kind), tokens(6, 8)
        with torch.no_grad():
            assert gap(model(ids.view(2, 3, 8)).mc_logits, model(ids).mc_logits.view(2, 3)) <= TOLERANCE


def test_the_double_heads_model_has_one_label_and_first_dropout_acts_in_training():
    model = double(num_labels=5, summary_first_dropout=1.0)
    assert model.config.num_labels == 1
    bias = model.multiple_choice_head.summary.bias.item()
    scores = model.train()(tokens()).mc_logits
    assert scores.tolist() == pytest.approx([bias] * 2)


def test_both_losses_train_the_model_together():
    model, ids = double(), tokens(6, 8).view(2, 3, 8)
    output = model(ids, labels=ids, mc_labels=torch.tensor([0, 2]))
    assert output.to_tuple()[:2] == (output.loss, output.mc_loss)
    (output.mc_loss + 0.5 * output.loss).backward()
    weights = [weight for weight in model.parameters() if weight.dim() == 2]
    assert all(weight.grad.abs().max() > 0 for weight in weights)


# -- classification --------------------------------------------------------------------------------------------------


def classifier(**fields):
    return make(OpenAIGPTForSequenceClassification, num_labels=4, **fields)


def scores_of_rows(model, rows):
    with torch.no_grad():
        return torch.cat([model(row[None]).logits for row in rows])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [0, 7, None])
def test_classification_takes_the_last_token_on_either_side_of_padding(side, pad):
    """Also when the padding id occurs in the text, and when the configuration has none."""
    model = classifier(pad_token_id=pad)
    rows = [tokens(1, length, seed=length)[0] for length in (8, 5, 1)]
    rows[0][-1] = rows[1][2] = pad or 0
    batch = padded(rows, side, pad or 0)
    unpadded = classifier(pad_token_id=None)
    with torch.no_grad():
        assert gap(model(**batch).logits, scores_of_rows(unpadded, rows)) <= TOLERANCE
        ids = batch.pop("input_ids")
        embedded = model(inputs_embeds=model.transformer.tokens_embed(ids), **batch).logits
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


# -- bad input -------------------------------------------------------------------------------------------------


IDS = tokens()
BAD_INPUT = {
    "id": (
        {"input_ids": torch.tensor([[1, 2], [3, 31]])},
        TokenIdError,
        r"input_ids must be from 0 to 30.*got 31 at \[1, 1\]\..*resize_token_embeddings",
    ),
    "type id": ({"token_type_ids": IDS + 31}, TokenIdError, r"token_type_ids must be from 0 to 30"),
    "too long": (
        {"input_ids": tokens(1, 41)},
        SequenceTooLongError,
        r"40 positions but was given 41 tokens\. Shorten .*max_length=40",
    ),
    "too long with positions": (
        {"input_ids": tokens(1, 41), "position_ids": torch.zeros(1, 41, dtype=torch.long)},
        SequenceTooLongError,
        r"40 positions but was given 41 tokens",
    ),
    "position": ({"position_ids": torch.full((2, 9), 40)}, SequenceTooLongError, r"must be from 0 to 39.*got 40"),
    "head mask": (
        {"head_mask": torch.ones(4)},
        ValueError,
        r"head_mask must have shape \(num_heads,\) = \(3,\) or .* = \(2, 3\); got \(4,\)",
    ),
    "attention mask": (
        {"attention_mask": torch.ones(2, 8)},
        ValueError,
        r"attention_mask must have shape .* = \(2, 9\); got \(2, 8\)",
    ),
    "no input": ({"input_ids": None}, ValueError, r"got neither\. Pass one"),
    "two inputs": ({"inputs_embeds": torch.zeros(2, 9, 12)}, ValueError, r"got both\. Pass one"),
    "labels' shape": ({"labels": IDS[:, :8]}, ValueError, r"labels must have shape \(2, 9\).*got \(2, 8\)"),
    "label": ({"labels": IDS * 0 + 31}, LabelError, r"labels must be from 0 to 30, or -100.*got 31 at \[0, 0\]"),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input_is_refused_with_the_rule_what_was_got_and_the_remedy(what):
    inputs, error, message = BAD_INPUT[what]
    assert issubclass(error, ValueError)
    with pytest.raises(error, match=message):
        make()(**({"input_ids": IDS} | inputs))


def test_too_many_tokens_are_refused_before_any_tensor_work():
    model = make(OpenAIGPTModel).to("meta")
    with pytest.raises(SequenceTooLongError, match="40 positions but was given 1000000 tokens"):
        model(torch.empty(10**6, 10**6, dtype=torch.long, device="meta"))
    with pytest.raises(SequenceTooLongError, match="40 positions but was given 41 tokens"):
        model(inputs_embeds=torch.empty(1, 41, 12, device="meta"))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"mc_token_ids": torch.tensor([4, 9])}, r"from 0 to 8, as the texts have 9 tokens; got 9 at \[1\]\. Count"),
        ({"mc_token_ids": torch.tensor([-1, 0])}, r"from 0 to 8.*got -1 at \[0\]"),
        ({"mc_token_ids": torch.tensor([[4, 8]])}, r"mc_token_ids must have shape \(2,\).*got \(1, 2\)"),
        ({"mc_labels": torch.tensor([2])}, r"mc_labels must be from 0 to 1, or -100.*got 2 at \[0\]"),
        ({"mc_labels": torch.tensor([0, 1])}, r"mc_labels must have shape \(1,\).*got \(2,\)"),
    ],
)
def test_choices_that_are_not_there_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        double()(IDS, **inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"summary_type": "attn"}, r"summary_type must be one of last, first, mean, cls_index; got 'attn'.*never"),
        ({"summary_type": "max"}, r"summary_type must be one of .*; got 'max'"),
        ({"summary_activation": "tang"}, r"activation function must be one of .*; got 'tang'"),
        ({"afn": "gelo"}, r"activation function must be one of gelu, .*; got 'gelo'"),
        ({"n_head": 5}, r"n_embd must be a multiple of n_head; got 12 and 5"),
    ],
)
def test_a_configuration_that_no_model_can_have_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        double(**fields)


# -- training ----------------------------------------------------------------------------------------------------


def test_initial_weights_follow_the_documented_distribution():
    torch.manual_seed(0)
    config = OpenAIGPTConfig(vocab_size=500, n_embd=96, n_layer=2, n_head=3, initializer_range=0.05)
    for name, weight in OpenAIGPTDoubleHeadsModel(config).named_parameters():
        if weight.dim() == 2:
            assert abs(weight.std().item() / 0.05 - 1) < 4 / math.sqrt(weight.numel()), name
        else:
            assert bool((weight == (1.0 if name.endswith("weight") else 0.0)).all()), name


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(kwargs):
    model, ids = make(resid_pdrop=0.2).train(), tokens()
    results = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable(kwargs)
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        model.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        results.append((loss.detach(), {n: w.grad.clone() for n, w in model.named_parameters()}))
    (loss, gradients), (loss_again, gradients_again) = results
    assert gap(loss, loss_again) <= TOLERANCE
    assert max(gap(gradients[name], gradients_again[name]) for name in gradients) <= TOLERANCE


def test_a_small_model_learns_a_text_by_heart():
    torch.manual_seed(0)
    model, ids = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SMALL, embd_pdrop=0.0, resid_pdrop=0.0)), tokens(1, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 < math.log(31)


def test_the_model_can_be_exported_and_compiled_into_one_graph():
    """`fullgraph` raises at the first line that would break it; the backend runs the graph as it is."""
    model, ids = make(n_layer=1), tokens()
    exported = torch.export.export(copy.deepcopy(model.transformer), (ids,), strict=False).module()
    with torch.no_grad():
        assert gap(exported(ids).last_hidden_state, model.transformer(ids).last_hidden_state) <= TOLERANCE
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    assert gap(compiled(ids, labels=ids).loss, model(ids, labels=ids).loss) <= TOLERANCE
