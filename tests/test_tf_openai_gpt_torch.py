"""OpenAI GPT in TensorFlow and in PyTorch: one file, the same numbers."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("tensorflow")

import tensorflow as tf
import torch

import triptych
from openai_gpt_models import make, padded
from triptych import activations_tf, activations_torch
from triptych.errors import LoadingWarning

TOLERANCE = 2e-5
HEADS = ("OpenAIGPTModel", "OpenAIGPTLMHeadModel", "OpenAIGPTDoubleHeadsModel", "OpenAIGPTForSequenceClassification")


def gap(a, b):
    """The largest difference, and infinity for other shapes."""
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) for x in (a, b))
    return np.abs(a - b).max() if a.shape == b.shape else np.inf


def twin(theirs):
    """The TensorFlow model with a PyTorch model's configuration and weights."""
    model = getattr(triptych, "TF" + type(theirs).__name__)(theirs.config)
    state = theirs.state_dict()
    for name, weight in model.named_weights():
        weight.assign(state[name].numpy())
    return model


def numbers(inputs):
    return {name: value.numpy() for name, value in inputs.items()}


def batch(side="left"):
    generator = torch.Generator().manual_seed(1)
    return padded([torch.randint(0, 31, (length,), generator=generator) for length in (7, 3, 5)], side)


def compare(ours, theirs):
    assert list(ours) == [name for name in theirs if name != "mc_loss"]
    for name in ours:
        if isinstance(ours[name], tuple):
            assert len(ours[name]) == len(theirs[name])
            assert all(gap(a, b) <= TOLERANCE for a, b in zip(ours[name], theirs[name], strict=True)), name
        else:
            assert gap(tf.reshape(ours[name], theirs[name].shape), theirs[name]) <= TOLERANCE, name


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_output_is_the_same(head, side):
    theirs = make(getattr(triptych, head), num_labels=3)
    inputs = batch(side) | {"token_type_ids": batch(side)["input_ids"] % 2}
    inputs["head_mask"] = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.5]])
    flags = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        compare(twin(theirs)(numbers(inputs), **flags), theirs(**inputs, **flags))


@pytest.mark.parametrize("compiled", [False, True])
def test_choices_of_several_examples_are_the_same(compiled):
    theirs = make(triptych.OpenAIGPTDoubleHeadsModel, summary_activation="tanh")
    ours = twin(theirs)
    inputs = {name: torch.stack([value, value.flip(0)]) for name, value in batch("right").items()}
    inputs["mc_token_ids"] = torch.tensor([[6, 2, 4], [0, 1, 2]])
    call = tf.function(lambda given: ours(given), jit_compile=True) if compiled else ours
    with torch.no_grad():
        compare(call(numbers(inputs)), theirs(**inputs))


LABELS = {
    "tokens": ("OpenAIGPTLMHeadModel", {}, None),
    "untied": ("OpenAIGPTLMHeadModel", {"tie_word_embeddings": False}, None),
    "classes": ("OpenAIGPTForSequenceClassification", {"num_labels": 3}, torch.tensor([2, 0, 1])),
    "classes and a row that does not count": (
        "OpenAIGPTForSequenceClassification",
        {"num_labels": 3},
        torch.tensor([2, -100, 1]),
    ),
    "value": ("OpenAIGPTForSequenceClassification", {"num_labels": 1}, torch.tensor([0.5, -1.0, 2.0])),
    "values": (
        "OpenAIGPTForSequenceClassification",
        {"num_labels": 2, "problem_type": "regression"},
        torch.tensor([[0.5, 1.0], [-1.0, 0.0], [2.0, 0.1]]),
    ),
    "several labels": (
        "OpenAIGPTForSequenceClassification",
        {"num_labels": 2},
        torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]),
    ),
}


@pytest.mark.parametrize("case", LABELS)
def test_loss_and_gradients_are_the_same(case):
    head, fields, labels = LABELS[case]
    theirs = make(getattr(triptych, head), **fields)
    ours = twin(theirs)
    inputs = batch()
    if labels is None:
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    loss = theirs(**inputs, labels=labels).loss
    loss.backward()
    with tf.GradientTape() as tape:
        value = ours(numbers(inputs), labels=labels.numpy()).loss
        mean = tf.reduce_mean(value)
    assert value.shape == ((3,) if "Sequence" in head else (1,))
    assert gap(tf.reduce_mean(value), loss) <= TOLERANCE
    assert ours.config.problem_type == theirs.config.problem_type
    weights = dict(ours.named_weights())
    gradients = tape.gradient(mean, [weight.value for weight in weights.values()])
    wanted = dict(theirs.named_parameters())
    for name, gradient in zip(weights, gradients, strict=True):
        found = tf.convert_to_tensor(gradient) if gradient is not None else tf.zeros(weights[name].shape)
        assert gap(found, wanted[name].grad) <= TOLERANCE * max(1, float(wanted[name].grad.abs().max())), name


def test_every_activation_is_the_same():
    assert activations_tf.ACTIVATIONS.keys() == activations_torch.ACTIVATIONS.keys()
    x = np.linspace(-12, 12, 97, dtype=np.float32)
    for name, function in activations_tf.ACTIVATIONS.items():
        assert gap(function(tf.constant(x)), activations_torch.ACTIVATIONS[name](torch.tensor(x))) <= TOLERANCE, name


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}], ids=str)
def test_what_pytorch_saves_loads_and_is_saved_again_byte_for_byte(tmp_path, head, options):
    theirs = make(getattr(triptych, head))
    theirs.save_pretrained(tmp_path / "torch", **options)
    ours = getattr(triptych, "TF" + head).from_pretrained(tmp_path / "torch")
    ours.save_pretrained(tmp_path / "tf", **options)
    names = sorted(path.name for path in (tmp_path / "torch").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "tf").iterdir())
    for name in names:
        assert (tmp_path / "tf" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}, {"safe_serialization": False}], ids=str)
def test_files_of_every_dtype_and_kind_load_with_every_bit(tmp_path, dtype, options):
    theirs = make(tie_word_embeddings=False).to(dtype)
    theirs.save_pretrained(tmp_path, **options)
    ours, info = triptych.TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path, from_pt=True, output_loading_info=True)
    assert not any(info.values())
    state = theirs.state_dict()
    assert {name for name, _ in ours.named_weights()} == state.keys()
    assert all(gap(weight.numpy(), state[name].float()) == 0 for name, weight in ours.named_weights())


def test_what_tensorflow_saves_loads_in_pytorch(tmp_path):
    theirs = make()
    twin(theirs).save_pretrained(tmp_path)
    again, info = triptych.OpenAIGPTLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in again.state_dict().items())


def test_heads_come_and_go_between_the_frameworks(tmp_path):
    make(triptych.OpenAIGPTModel).save_pretrained(tmp_path / "bare")
    with pytest.warns(LoadingWarning, match=r"newly initialised.*score\.weight"):
        ours = triptych.TFOpenAIGPTForSequenceClassification.from_pretrained(tmp_path / "bare")
    ours.save_pretrained(tmp_path / "head")
    with pytest.warns(LoadingWarning, match=r"not used.*score\.weight"):
        back = triptych.OpenAIGPTModel.from_pretrained(tmp_path / "head")
    theirs = triptych.OpenAIGPTModel.from_pretrained(tmp_path / "bare")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in back.state_dict().items())


def test_the_model_in_the_box_gives_the_same_logits_and_loss():
    theirs = triptych.AutoModelForCausalLM.from_pretrained("triptych/tales-gpt")
    ours = triptych.TFAutoModelForCausalLM.from_pretrained("triptych/tales-gpt")
    ids = triptych.AutoTokenizer.from_pretrained("triptych/tales-gpt")(
        "Once upon a time there was a little girl who lived in a small house by the sea.", return_tensors="np"
    ).input_ids
    with torch.no_grad():
        out = theirs(torch.tensor(ids), labels=torch.tensor(ids))
    found = ours(ids, labels=ids)
    assert gap(found.logits, out.logits) <= TOLERANCE
    assert gap(found.loss, out.loss[None]) <= TOLERANCE
