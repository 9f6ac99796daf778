"""Write the golden files of OpenAI GPT in TensorFlow: python tests/golden_tf_openai_gpt.py FOLDER, run where
Transformers 4.37.2 is installed with TensorFlow and PyTorch.

Weights, inputs and configurations are those of golden_openai_gpt.py's files, whose outputs in PyTorch are recorded
there. Here stand what the TensorFlow classes give for those that they can do (`outputs.safetensors`, by
"FILE/CASE/NAME"), why they cannot do the others (`refused.json`), and models as they save them: CLASS/h5,
CLASS/safetensors and CLASS/shards.

Whatever `afn` says, the TensorFlow classes compute GELU itself, where the PyTorch class's "gelu" is the approximation
by tanh. So theirs are the numbers of `afn="gelu_python"`.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import tensorflow as tf
import transformers
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parent / "golden" / "openai_gpt"
CASES = json.loads((GOLDEN / "cases.json").read_text())
SAVED = {  # class -> the file and case whose weights and configuration it is saved with
    "TFOpenAIGPTLMHeadModel": ("heads5", "padded"),
    "TFOpenAIGPTDoubleHeadsModel": ("double", "choices"),
    "TFOpenAIGPTForSequenceClassification": ("sequence", "single_label"),
}


def under(tensors, prefix):
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def make_model(case, tensors, class_name=None):
    """The case's model, by way of a file as PyTorch writes it."""
    name = class_name or "TF" + case["class"]
    with tempfile.TemporaryDirectory() as folder:
        transformers.OpenAIGPTConfig(**case["config"]).save_pretrained(folder)
        weights = {n: x.astype(np.float32) for n, x in under(tensors, f"{case['weights']}weight.").items()}
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return getattr(transformers, name).from_pretrained(folder)


def flat(output):
    found = {}
    for name, value in output.items():
        items = {f"{name}.{i}": x for i, x in enumerate(value)} if isinstance(value, tuple) else {name: value}
        found |= {key: np.asarray(x, np.float32) for key, x in items.items()}
    return found


def run(case, tensors):
    if not case["config"].get("tie_word_embeddings", True):
        raise NotImplementedError("The TensorFlow classes always tie the head.")
    if case["config"].get("afn", "gelu") != "gelu":
        raise NotImplementedError("The TensorFlow classes always compute GELU.")
    if case["prune"]:
        raise NotImplementedError("The TensorFlow classes do not prune heads.")
    model = make_model(case, tensors)
    inputs = under(tensors, f"{case['case']}/in.")
    inputs = {n: tf.constant(x.astype(np.int32) if x.dtype.kind == "i" else x) for n, x in inputs.items()}
    inputs.pop("mc_labels", None)
    if case["class"] == "OpenAIGPTDoubleHeadsModel":
        inputs.pop("labels", None)  # there are no losses in it
    with tf.GradientTape() as tape:
        output = model(inputs, **case["flags"], training=False)
    found = {f"out.{name}": x for name, x in flat(output).items()}
    if "labels" in inputs and case["flags"]:
        for weight, gradient in zip(
            model.trainable_variables, tape.gradient(output.loss, model.trainable_variables), strict=True
        ):
            if gradient is not None:
                found[f"grad.{weight.name.partition('/')[2]}"] = np.asarray(tf.convert_to_tensor(gradient))
    return found


def save_models(folder, files):
    for name, (file, kind) in SAVED.items():
        case = next(case for case in CASES if (case["file"], case["case"]) == (file, kind))
        tf.keras.backend.clear_session()  # so that the first model of its class has its plain name
        model = make_model(case, files[file])
        model(tf.ones((1, 2), tf.int32))
        model.config._name_or_path = ""  # not the place where it was made
        model.save_pretrained(folder / name / "h5", safe_serialization=False)
        model.save_pretrained(folder / name / "safetensors", safe_serialization=True)
        (folder / name / "safetensors" / "model.safetensors").chmod(0o644)
        if name == "TFOpenAIGPTLMHeadModel":
            model.save_pretrained(folder / name / "shards", safe_serialization=False, max_shard_size="30KB")


def main(folder):
    assert transformers.__version__ == "4.37.2", transformers.__version__
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {file: load_file(GOLDEN / f"{file}.safetensors") for file in {case["file"] for case in CASES}}
    outputs, refused = {}, {}
    for case in CASES:
        key = f"{case['file']}/{case['case']}"
        try:
            found = run(case, files[case["file"]])
        except Exception as error:
            refused[key] = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
            continue
        outputs |= {f"{key}/{name}": x for name, x in found.items()}
    save_file(outputs, folder / "outputs.safetensors")
    (folder / "outputs.safetensors").chmod(0o644)
    (folder / "refused.json").write_text(json.dumps(refused, indent=1) + "\n")
    save_models(folder, files)


if __name__ == "__main__":
    main(sys.argv[1])
