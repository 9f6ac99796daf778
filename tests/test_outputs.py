"""Outputs read as attributes, as a dict and as a tuple, and survive the tools that take them apart."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
import torch.utils._pytree as pytree

import triptych.modeling_torch  # noqa: F401  (registers the outputs with torch)
from triptych import outputs

CLASSES = sorted(outputs.ModelOutput.__subclasses__(), key=lambda output_class: output_class.__name__)


@pytest.fixture
def output():
    return outputs.CausalLMOutputWithCrossAttentions(
        logits=torch.ones(2, 3), past_key_values=((torch.zeros(1), torch.ones(1)),), attentions=(torch.ones(1),)
    )


def test_the_three_views_agree(output):
    assert output.logits is output["logits"] is output[0]
    assert output[1:] == (output.past_key_values, output.attentions)
    assert list(output) == list(output.keys()) == ["logits", "past_key_values", "attentions"]
    assert output.to_tuple() == tuple(output.values())
    assert len(output) == 3
    first, *_ = output.to_tuple()
    assert first is output.logits
    assert dict(**output).keys() == output.keys()


def test_a_field_that_is_none_is_an_attribute_but_no_item(output):
    assert output.loss is None
    assert "loss" not in output
    assert output.get("loss") is None
    with pytest.raises(KeyError):
        output["loss"]


def test_assigning_to_a_field_or_a_key_keeps_the_views_alike(output):
    output.logits = torch.zeros(1)
    assert output["logits"] is output.logits
    output["attentions"] = ()
    assert output.attentions == ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda output: output.pop("logits"),
        lambda output: output.popitem(),
        lambda output: output.update(logits=1),
        lambda output: output.setdefault("loss", 1),
        lambda output: output.clear(),
        lambda output: output.__delitem__("logits"),
    ],
    ids=["pop", "popitem", "update", "setdefault", "clear", "del"],
)
def test_fields_cannot_be_taken_out_or_merged_in(output, spoil):
    with pytest.raises(TypeError, match="fields of a CausalLMOutputWithCrossAttentions stay"):
        spoil(output)
    assert len(output) == 3


def alike(a, b):
    return list(a) == list(b) and all(torch.equal(x, y) for x, y in zip(*map(pytree.tree_leaves, (a, b)), strict=True))


@pytest.mark.parametrize(
    "copied",
    [
        lambda output: pickle.loads(pickle.dumps(output)),
        copy.copy,
        copy.deepcopy,
        lambda output: pytree.tree_map(lambda x: x + 0, output),
        lambda output: type(output)(OrderedDict(output)),
        lambda output: type(output)((name, value) for name, value in output.items()),
        lambda output: type(output)(list(output.items())),
        lambda output: output.copy(),
    ],
    ids=["pickle", "copy", "deepcopy", "pytree", "mapping", "pairs", "list of pairs", "copy method"],
)
def test_what_tools_rebuild_is_the_same_output(output, copied):
    made = copied(output)
    assert type(made) is type(output)
    assert alike(made, output)
    assert made.loss is None
    assert made.logits is made["logits"]


def test_a_single_field_that_is_a_tuple_of_pairs_stays_a_value():
    pairs = ((torch.zeros(1), torch.ones(1)),)
    assert outputs.BaseModelOutputWithPast(last_hidden_state=pairs).last_hidden_state is pairs


@pytest.mark.parametrize("output_class", CLASSES, ids=lambda output_class: output_class.__name__)
def test_torch_looks_inside_every_output(output_class):
    names = list(output_class.__dataclass_fields__)
    output = output_class(**{name: torch.ones(1) * index for index, name in enumerate(names)})
    leaves, spec = pytree.tree_flatten(output)
    assert [leaf.item() for leaf in leaves] == list(range(len(names)))
    assert alike(pytree.tree_unflatten(leaves, spec), output)


@pytest.mark.parametrize("output_class", CLASSES, ids=lambda output_class: output_class.__name__)
def test_every_field_may_be_left_out(output_class):
    assert output_class().to_tuple() == ()
