"""A language model's head and loss as one step: the plain way's numbers, without the plain way's memory."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fuyu_models
import gpt_neo_models
import openai_gpt_models
from gpt_neo_models import gap, tokens
from triptych import losses_torch
from triptych.errors import LabelError
from triptych.losses_torch import next_token_loss
from triptych.models.openai_gpt.modeling_torch import OpenAIGPTDoubleHeadsModel

TOLERANCE = 2e-5
MAKERS = {
    "gpt_neo": gpt_neo_models.make,
    "openai_gpt": openai_gpt_models.make,
    "two_heads": lambda: openai_gpt_models.make(OpenAIGPTDoubleHeadsModel),
    "fuyu": fuyu_models.make,
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Four rows of these vocabularies at a time, so that there are several chunks and a last one that is shorter."""
    monkeypatch.setattr(losses_torch, "_CHUNK", 4 * 31)


def plain(model):
    """The same model, whose head is watched and so called as a module, with a loss of its logits."""
    model = copy.deepcopy(model)
    model.get_output_embeddings().register_forward_hook(lambda *_: None)
    return model


def gradients(model, objective, ids, labels):
    model.zero_grad()
    output = model(ids, labels=labels)
    objective(output).backward()
    return output, {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(ours, theirs, tolerance=TOLERANCE):
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert ours[name].dtype == gradient.dtype
        assert gap(ours[name], gradient) <= tolerance * max(1.0, gradient.abs().max().item()), name


OBJECTIVES = {
    "loss": lambda output: output.loss * 3,
    "logits": lambda output: output.logits.square().mean(),
    "both": lambda output: output.loss + output.logits.sin().mean(),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("family", MAKERS)
def test_loss_logits_and_gradients_are_those_of_the_plain_way(family, objective):
    model, ids = MAKERS[family](), tokens(batch=3)
    labels = ids.clone()
    labels[0], labels[1, 3:6] = -100, -100
    ours, theirs = (gradients(each, objective, ids, labels) for each in (model, plain(model)))
    assert gap(ours[0].loss, theirs[0].loss) <= TOLERANCE
    assert gap(ours[0].logits, theirs[0].logits) <= TOLERANCE
    assert_same(ours[1], theirs[1])
    assert gap(ours[0].loss, next_token_loss(ours[0].logits, labels)) <= TOLERANCE


def test_labels_that_never_count_give_nan_and_no_gradient_as_the_plain_way_does():
    model, ids = gpt_neo_models.make(), tokens()
    labels = torch.full_like(ids, -100)
    ours, theirs = (gradients(each, OBJECTIVES["loss"], ids, labels) for each in (model, plain(model)))
    assert bool(ours[0].loss.isnan())
    assert bool(theirs[0].loss.isnan())
    assert_same(ours[1], theirs[1])
    assert all(not gradient.any() for gradient in ours[1].values())


@pytest.mark.parametrize("frozen", ["body", "head"])
def test_only_what_is_trained_gets_a_gradient(frozen):
    model, ids = gpt_neo_models.make(tie_word_embeddings=False), tokens()
    (model.transformer if frozen == "body" else model.lm_head).requires_grad_(False)
    ours, theirs = (gradients(each, OBJECTIVES["both"], ids, ids)[1] for each in (model, plain(model)))
    assert ("lm_head.weight" in ours) == (frozen == "body")
    assert_same(ours, theirs)


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_bfloat16_gives_what_the_plain_way_gives_within_its_precision(how):
    model, ids = gpt_neo_models.make(), tokens(batch=4)
    if how == "bfloat16":
        model = model.bfloat16()
    exact = gradients(copy.deepcopy(model).float(), OBJECTIVES["both"], ids, ids)[1]
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        ours, theirs = (gradients(each, OBJECTIVES["both"], ids, ids) for each in (model, plain(model)))
    assert ours[0].logits.dtype == theirs[0].logits.dtype == torch.bfloat16
    assert ours[0].loss.dtype == torch.float32
    assert gap(ours[0].loss, theirs[0].loss) <= 1e-5
    for name, gradient in exact.items():
        error, plain_error = (gap(each[1][name].float(), gradient) for each in (ours, theirs))
        assert ours[1][name].dtype == theirs[1][name].dtype
        assert error <= 2 * plain_error + 1e-6, name


def test_second_derivatives_are_those_of_the_plain_way():
    model, ids = gpt_neo_models.make(attn_implementation="eager"), tokens()
    results = []
    for each in (model, plain(model)):
        weights = [w for w in each.parameters() if w.requires_grad]
        output = each(ids, labels=ids)
        first = torch.autograd.grad(output.loss + output.logits.sin().mean(), weights, create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
        results.append({name: weight.grad for name, weight in each.named_parameters()})
    assert_same(*results, tolerance=1e-4)


def test_backward_may_come_twice():
    model, ids = gpt_neo_models.make(), tokens()
    loss = model(ids, labels=ids).loss
    first, second = (torch.autograd.grad(loss, model.lm_head.weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_logits_may_be_changed_in_place():
    model, ids = gpt_neo_models.make(), tokens()
    results = []
    for each in (model, plain(model)):
        each.zero_grad()
        output = each(ids, labels=ids)
        output.logits[..., 5] = 0.0
        (output.logits.square().mean() + 0 * output.loss.detach()).backward()
        results.append({name: weight.grad for name, weight in each.named_parameters()})
    assert_same(*results)


def test_function_transforms_see_through_the_loss():
    model, ids = gpt_neo_models.make(), tokens(batch=3)

    def loss(weights):
        return torch.func.functional_call(model, weights, (ids,), {"labels": ids}).loss

    got = torch.func.grad(loss)(dict(model.named_parameters()))
    expected = gradients(plain(model), lambda output: output.loss, ids, ids)[1]
    assert_same(got, expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch, of itself
def test_derivatives_forward_are_those_of_the_plain_way():
    head, x, labels = torch.nn.Linear(6, 11, bias=False), torch.randn(2, 5, 6), torch.randint(0, 11, (2, 5))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        got = torch.autograd.forward_ad.unpack_dual(losses_torch.logits_and_loss(head, dual, labels)[1]).tangent
    _, want = torch.func.jvp(lambda x: losses_torch.next_token_loss(head(x), labels), (x,), (torch.ones_like(x),))
    assert torch.allclose(got, want, atol=1e-6)


def test_a_head_of_the_users_own_is_called_as_it_is():
    model, ids = gpt_neo_models.make(tie_word_embeddings=False), tokens()

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    before = model(ids).logits
    head = Doubled(12, 31, bias=False)
    head.weight = model.lm_head.weight
    model.set_output_embeddings(head)
    output = model(ids, labels=ids)
    assert gap(output.logits, 2 * before) <= TOLERANCE
    assert gap(output.loss, next_token_loss(output.logits, ids)) <= TOLERANCE
    with_bias = torch.nn.Linear(12, 31)
    model.set_output_embeddings(with_bias)
    assert gap(model(ids, labels=ids).logits, with_bias(model.transformer(ids).last_hidden_state)) <= TOLERANCE


def test_labels_outside_the_vocabulary_are_named():
    model, ids = gpt_neo_models.make(), tokens()
    labels = ids.clone()
    labels[1, 2] = 31
    with pytest.raises(LabelError, match=r"labels must be from 0 to 30, .* got 31 at \[1, 2\]"):
        model(ids, labels=labels)


class Largest(TorchDispatchMode):
    """The tensors of at least `size` elements that are made, views aside."""

    def __init__(self, size):
        super().__init__()
        self.size, self.made = size, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= 4 * self.size:
                self.made[tensor.untyped_storage().data_ptr()] = tensor  # kept, so that no two share a place
        return out


def test_nothing_of_the_logits_size_is_made_beside_them():
    model, ids = gpt_neo_models.make(vocab_size=97), tokens(batch=10, length=40)
    counts = []
    for each in (model, plain(model)):
        with Largest(ids.numel() * 97) as largest:
            each(ids, labels=ids).loss.backward()
        counts.append(len(largest.made))
    assert counts[0] == 1
    assert counts[1] >= 3
