"""OpenAI GPT in TensorFlow gives what the reference gives, in TensorFlow where it can do it and in PyTorch: see
golden_openai_gpt.py and golden_tf_openai_gpt.py for the models and cases.
"""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import h5py
import tensorflow as tf
from safetensors.numpy import load_file

import triptych
from triptych import OpenAIGPTConfig
from triptych.checkpoints.keras_names import published_array, published_name

FOLDER = Path(__file__).parent / "golden"
CASES = json.loads((FOLDER / "openai_gpt" / "cases.json").read_text())
FILES = {file: load_file(FOLDER / "openai_gpt" / f"{file}.safetensors") for file in {case["file"] for case in CASES}}
OUTPUTS = load_file(FOLDER / "openai_gpt_tf" / "outputs.safetensors")
REFUSED = json.loads((FOLDER / "openai_gpt_tf" / "refused.json").read_text())
SAVED = {
    "TFOpenAIGPTLMHeadModel": ("heads5", "padded"),
    "TFOpenAIGPTDoubleHeadsModel": ("double", "choices"),
    "TFOpenAIGPTForSequenceClassification": ("sequence", "single_label"),
}
TOLERANCE = 2e-5
# What the reference's classes in TensorFlow compute whatever their configuration says: see golden_tf_openai_gpt.py.
GELU_ITSELF = {"afn": "gelu_python"}
# Heads are not pruned in TensorFlow, and a single row needs its batch axis, as in all frameworks but PyTorch.
DONE = [case for case in CASES if not case["prune"] and case["case"] != "one_row"]
# What the reference does wrongly in TensorFlow, and rightly in PyTorch.
WRONG = {
    "arguments/two_batch_axes": "the loss of two batch axes shifts the rows, not the tokens",
    "sequence/one_row_unpadded": "without a pad token every position is classified",
}
IN_TENSORFLOW = [case for case in DONE if f"{case['file']}/{case['case']}" not in REFUSED.keys() | WRONG.keys()]


def named(case):
    return f"{case['file']}-{case['case']}"


def under(tensors, prefix):
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def make_model(case, **changes):
    model = getattr(triptych, "TF" + case["class"])(OpenAIGPTConfig(**(case["config"] | changes)))
    weights = under(FILES[case["file"]], f"{case['weights']}weight.")
    for name, weight in model.named_weights():
        weight.assign((weights[name] if name in weights else weights[f"transformer.{name}"]).astype(np.float32))
    return model


def make_inputs(case):
    inputs = under(FILES[case["file"]], f"{case['case']}/in.")
    inputs = {name: x.astype(np.int32) if x.dtype.kind == "i" else x for name, x in inputs.items()}
    if case["class"] == "OpenAIGPTDoubleHeadsModel":
        inputs.pop("labels", None)  # the documented class has no losses
    inputs.pop("mc_labels", None)
    return inputs


def flat(output):
    found = {}
    for name, value in output.items():
        items = {f"{name}.{i}": x for i, x in enumerate(value)} if isinstance(value, tuple) else {name: value}
        found |= {key: np.asarray(x) for key, x in items.items()}
    return found


def at_tokens(name, value, mask):
    """The rows that belong to tokens; what padding gives is of no use to anyone and differs."""
    if mask is None or name == "mc_logits" or value.ndim < 2 or (name == "logits" and value.ndim == 2):
        return value
    return (value.swapaxes(1, 2) if name.startswith("attentions") else value)[mask != 0]


def compare(ours, theirs, mask):
    assert list(ours) == [name for name in ours if name in theirs]
    assert ours.keys() == theirs.keys() - {"mc_loss"} - ({"loss"} - ours.keys())
    for name, value in ours.items():
        wanted = theirs[name]
        if name == "loss":
            assert abs(value.mean() - wanted.mean()) <= TOLERANCE
            assert wanted.ndim == 0 or wanted.shape == value.shape
            value = np.broadcast_to(value.mean() if wanted.ndim == 0 else value, wanted.shape)
        assert value.shape == wanted.shape, name
        assert np.abs(at_tokens(name, value - wanted, mask)).max() <= TOLERANCE, name


@pytest.mark.parametrize("case", DONE, ids=named)
def test_every_output_equals_that_of_the_reference_in_pytorch(case):
    model, inputs = make_model(case), make_inputs(case)
    theirs = under(FILES[case["file"]], f"{case['case']}/out.")
    compare(flat(model(inputs, **case["flags"])), theirs, inputs.get("attention_mask"))
    assert model.config.problem_type == case["problem_type"]


@pytest.mark.parametrize("case", IN_TENSORFLOW, ids=named)
def test_every_output_and_gradient_equals_that_of_the_reference_in_tensorflow(case):
    model, inputs = make_model(case, **GELU_ITSELF), make_inputs(case)
    key = f"{case['file']}/{case['case']}/"
    with tf.GradientTape() as tape:
        output = model(inputs, **case["flags"])
    compare(flat(output), under(OUTPUTS, f"{key}out."), inputs.get("attention_mask"))
    wanted = {}
    for place, gradient in under(OUTPUTS, f"{key}grad.").items():
        name, change = published_name(("tf_model", *place.split("/")))
        wanted[name] = published_array(gradient, change)
    if wanted:
        weights = dict(model.named_weights())
        found = tape.gradient(output.loss, [weight.value for weight in weights.values()])
        assert wanted.keys() == {name for name, x in zip(weights, found, strict=True) if x is not None}
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                assert np.abs(tf.convert_to_tensor(gradient) - wanted[name]).max() <= TOLERANCE, name


def test_there_are_gradients_and_most_cases_are_done_in_tensorflow_too():
    assert sum("/grad." in name for name in OUTPUTS) > 60
    assert len(IN_TENSORFLOW) > 20


@pytest.mark.parametrize(
    ("class_name", "kind"),
    [(name, kind) for name in SAVED for kind in ("h5", "safetensors")] + [("TFOpenAIGPTLMHeadModel", "shards")],
)
def test_what_the_reference_saves_loads_and_gives_its_numbers(class_name, kind):
    file, kind_of_case = SAVED[class_name]
    case = next(case for case in CASES if (case["file"], case["case"]) == (file, kind_of_case))
    folder = FOLDER / "openai_gpt_tf" / class_name / kind
    model, info = getattr(triptych, class_name).from_pretrained(folder, output_loading_info=True, **GELU_ITSELF)
    assert not any(info.values())
    for (name, weight), (_, wanted) in zip(model.named_weights(), make_model(case).named_weights(), strict=True):
        np.testing.assert_array_equal(weight.numpy(), wanted.numpy(), name)
    inputs = make_inputs(case)
    compare(
        flat(model(inputs, **case["flags"])),
        under(OUTPUTS, f"{file}/{kind_of_case}/out."),
        inputs.get("attention_mask"),
    )


def layout(path):
    """Shapes and dtypes by name, and the names that Keras finds its way by."""
    datasets, attributes = {}, {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            datasets[name] = (item.shape, item.dtype)
        for key in ("layer_names", "weight_names"):
            if len(item.attrs.get(key, ())):
                attributes[name, key] = sorted(x if isinstance(x, str) else x.decode() for x in item.attrs[key])

    with h5py.File(path) as file:
        visit("", file)
        file.visititems(visit)
    return datasets, attributes


@pytest.mark.parametrize("class_name", SAVED)
def test_h5_files_are_laid_out_as_those_of_the_reference(class_name, tmp_path):
    theirs = FOLDER / "openai_gpt_tf" / class_name / "h5"
    getattr(triptych, class_name).from_pretrained(theirs).save_pretrained(tmp_path, safe_serialization=False)
    (found, names), (wanted, their_names) = layout(tmp_path / "tf_model.h5"), layout(theirs / "tf_model.h5")
    assert found == wanted
    assert names == their_names


def test_shards_are_laid_out_as_those_of_the_reference(tmp_path):
    theirs = FOLDER / "openai_gpt_tf" / "TFOpenAIGPTLMHeadModel" / "shards"
    model = triptych.TFOpenAIGPTLMHeadModel.from_pretrained(theirs)
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size="30KB")
    ours, wanted = (
        json.loads((folder / "tf_model.h5.index.json").read_text())["weight_map"] for folder in (tmp_path, theirs)
    )
    assert ours.keys() == wanted.keys()
    theirs_at = {place: facts for shard in set(wanted.values()) for place, facts in layout(theirs / shard)[0].items()}
    ours_at = {place: facts for shard in set(ours.values()) for place, facts in layout(tmp_path / shard)[0].items()}
    assert ours_at == theirs_at
