"""Training GPT Neo: gradient checkpointing, learned pasts, and the graphs that torch makes of the model."""

import copy
import math

import pytest
import torch

from gpt_neo_models import gap, make, tokens
from triptych.models.gpt_neo.modeling_torch import GPTNeoModel

TOLERANCE = 2e-5


@pytest.mark.parametrize("kwargs", [None, {"use_reentrant": True}], ids=["default", "reentrant"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_gradient_checkpointing_gives_the_same_gradients(kwargs, implementation):
    ids = tokens()
    model = make(attn_implementation=implementation, resid_dropout=0.2).train()
    results = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable(kwargs)
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        model.zero_grad()
        output = model(ids, labels=ids)
        output.loss.backward()
        results.append((output.loss.detach(), {n: w.grad.clone() for n, w in model.named_parameters()}))
    assert output.past_key_values is None
    (loss, gradients), (loss_again, gradients_again) = results
    assert gap(loss, loss_again) <= TOLERANCE
    assert max(gap(gradients[name], gradients_again[name]) for name in gradients) <= TOLERANCE
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def saved_bytes(model, ids) -> int:
    """Bytes that autograd keeps from the forward pass for the backward pass, each storage once."""
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model(ids, labels=ids).loss
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    assert loss.requires_grad
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights)


def test_gradient_checkpointing_keeps_less_for_the_backward_pass():
    model = make(num_layers=6, attention_types=[[["global", "local"], 3]]).train()
    before = saved_bytes(model, tokens(2, 30))
    model.gradient_checkpointing_enable()
    assert saved_bytes(model, tokens(2, 30)) < before / 2


def test_a_learned_past_trains_under_gradient_checkpointing():
    """As prefix tuning does: blocks are run twice, each time from the same past."""
    model, ids = make().train(), tokens()
    prefix = [
        (torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4, requires_grad=True)) for _ in range(2)
    ]
    gradients = []
    for recompute in (False, True):
        if recompute:
            model.gradient_checkpointing_enable()
        loss = model(ids, past_key_values=prefix, labels=ids, use_cache=False).loss
        gradients.append(torch.autograd.grad(loss, [x for pair in prefix for x in pair]))
    assert all(gap(a, b) <= TOLERANCE for a, b in zip(*gradients, strict=True))


def test_use_cache_is_warned_of_and_off_under_gradient_checkpointing():
    model = make().train()
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="use_cache=True has no effect"):
        assert model(tokens(), use_cache=True).past_key_values is None
    assert model.eval()(tokens(), use_cache=True).past_key_values.length == 9


def test_a_small_model_learns_a_text_by_heart():
    model, ids = make(initializer_range=0.02).train(), tokens(1, 12)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 < math.log(31)


def test_the_model_can_be_exported():
    model, ids = make(GPTNeoModel), tokens()
    traced = torch.export.export(copy.deepcopy(model), (ids,), {"use_cache": False}, strict=False).module()
    with torch.no_grad():
        assert gap(traced(ids, use_cache=False).last_hidden_state, model(ids).last_hidden_state) <= TOLERANCE


def test_training_and_decoding_compile_into_one_graph():
    """`fullgraph` raises at the first line that would break it; the backend runs the graph as it is."""
    model, ids = make(num_layers=1, attention_types=[[["local"], 1]]), tokens()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    assert gap(compiled(ids, labels=ids).loss, model(ids, labels=ids).loss) <= TOLERANCE
    with torch.no_grad():
        cache = model.new_cache(2, 20)
        for token in ids[:, :3].split(1, dim=1):
            output = compiled(token, past_key_values=cache)
            cache = output.past_key_values
        assert gap(output.logits[:, -1], model(ids).logits[:, 2]) <= TOLERANCE
