"""Training Fuyu: gradient checkpointing, frozen parts, and the graphs that torch makes of the model."""

import copy
import math

import pytest
import torch

from fuyu_models import alone, batch, gap, make, row, tokens

TOLERANCE = 2e-5
ROWS = [row(5, 6, 1), row(2, 9, 2)]


def inputs():
    given = batch(ROWS, "right")
    ignored = (given["attention_mask"] == 0) | (given["image_patches_indices"] >= 0)
    return given | {"labels": given["input_ids"].masked_fill(ignored, -100)}


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradient_checkpointing_gives_the_same_gradients(kwargs, implementation):
    model = make(attn_implementation=implementation, hidden_dropout=0.2).train()
    results = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable(kwargs)
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        model.zero_grad()
        output = model(**inputs())
        output.loss.backward()
        results.append((output.loss.detach(), {n: w.grad.clone() for n, w in model.named_parameters()}))
    assert output.past_key_values is None
    (loss, gradients), (loss_again, gradients_again) = results
    assert gap(loss, loss_again) <= TOLERANCE
    assert max(gap(gradients[name], gradients_again[name]) for name in gradients) <= TOLERANCE
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    model = make(num_hidden_layers=6).train()
    kept = {}

    def saved_bytes() -> int:
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.setdefault(x.untyped_storage().data_ptr(), x), lambda x: x
        )
        with hooks:
            assert model(**inputs()).loss.requires_grad
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights)

    before = saved_bytes()
    model.gradient_checkpointing_enable()
    assert saved_bytes() < before / 2


def test_a_past_with_images_trains_under_gradient_checkpointing():
    model, questions = make().train(), tokens(3, 5, seed=7)
    gradients = []
    for recompute in (False, True):
        model.gradient_checkpointing_disable()
        past = model(**alone(ROWS[0])).past_key_values
        repeated = [tuple(x.repeat_interleave(3, 0) for x in pair) for pair in past]
        if recompute:
            model.gradient_checkpointing_enable()
        loss = model(questions, past_key_values=repeated, labels=questions).loss
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert max(gap(a, b) for a, b in zip(*gradients, strict=True)) <= TOLERANCE


def test_use_cache_is_warned_of_and_off_under_gradient_checkpointing():
    model = make(gradient_checkpointing=True).train()
    with pytest.warns(UserWarning, match="use_cache=True has no effect"):
        assert model(tokens(), use_cache=True).past_key_values is None
    assert model.eval()(tokens(), use_cache=True).past_key_values.length == 9


def test_input_gradients_reach_adapters_on_a_frozen_model():
    model = make().requires_grad_(False)
    model.enable_input_require_grads()
    assert model(**inputs()).loss.requires_grad
    model.disable_input_require_grads()
    assert not model(**inputs()).loss.requires_grad


def test_the_padding_token_is_not_trained():
    model = make(pad_token_id=0)
    model.init_weights()
    assert not model.get_input_embeddings().weight[0].any()
    model(**inputs()).loss.backward()
    assert not model.get_input_embeddings().weight.grad[0].any()


def test_initial_weights_follow_the_documented_distribution():
    torch.manual_seed(0)
    model = type(make())(make(hidden_size=96, initializer_range=0.05, pad_token_id=3).config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            assert abs(weight.std().item() / 0.05 - 1) < 0.1, name
        else:
            assert bool((weight == float("norm" in name and name.endswith("weight"))).all()), name


def test_a_small_model_learns_to_tell_images_apart():
    """The same question behind two images, with an answer each: what it learns can only come from the patches."""
    torch.manual_seed(0)
    model = make().train()
    model.init_weights()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    given = batch([row(5, 4, 1), row(5, 4, 1) | {"patches": row(5, 4, 2)["patches"]}])
    given["input_ids"][0, -1], given["input_ids"][1, -1] = 7, 8
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -1] = given["input_ids"][:, -1]
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**given, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 < math.log(2)


def test_the_model_can_be_exported():
    model, ids = make(), tokens()
    traced = torch.export.export(copy.deepcopy(model), (ids,), {"use_cache": False}, strict=False).module()
    with torch.no_grad():
        assert gap(traced(ids, use_cache=False).logits, model(ids).logits) <= TOLERANCE


def test_training_and_decoding_compile_into_one_graph():
    """`fullgraph` raises at the first line that would break it; the backend runs the graph as it is."""
    model, ids = make(num_hidden_layers=1), tokens()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    assert gap(compiled(ids, labels=ids).loss, model(ids, labels=ids).loss) <= TOLERANCE
    with torch.no_grad():
        cache = model.new_cache(2, 20)
        for token in ids[:, :3].split(1, dim=1):
            output = compiled(token, past_key_values=cache)
            cache = output.past_key_values
        assert gap(output.logits[:, -1], model(ids).logits[:, 2]) <= TOLERANCE
