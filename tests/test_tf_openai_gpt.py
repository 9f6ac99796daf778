"""The TensorFlow classes of OpenAI GPT as Keras models: how they are called, trained, saved and loaded."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf

import triptych
from triptych import (
    AutoTokenizer,
    OpenAIGPTConfig,
    TFAutoModel,
    TFAutoModelForCausalLM,
    TFAutoModelForSequenceClassification,
    TFOpenAIGPTDoubleHeadsModel,
    TFOpenAIGPTForSequenceClassification,
    TFOpenAIGPTLMHeadModel,
    TFOpenAIGPTModel,
)
from triptych.errors import (
    CheckpointError,
    LabelError,
    LoadingWarning,
    SequenceTooLongError,
    TokenIdError,
    UnsafeFileError,
    WeightMismatchError,
)

IDS = np.random.default_rng(0).integers(0, 50, (4, 6))
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1] * 6, [0, 0, 0, 0, 0, 1]])
POSITIONS = np.maximum(MASK.cumsum(-1) - 1, 0)
PADDED = {"input_ids": IDS, "attention_mask": MASK, "position_ids": POSITIONS}
CLASSES = (
    TFOpenAIGPTModel,
    TFOpenAIGPTLMHeadModel,
    TFOpenAIGPTDoubleHeadsModel,
    TFOpenAIGPTForSequenceClassification,
)
keras_keeps = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras reads weights so


def make(class_=TFOpenAIGPTLMHeadModel, **fields):
    sizes = {"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
    return class_(OpenAIGPTConfig(**(sizes | fields)))


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def classifier():
    return make(TFOpenAIGPTForSequenceClassification, num_labels=3)


def same_weights(a, b):
    return all(
        name == other and np.array_equal(x.numpy(), y.numpy())
        for (name, x), (other, y) in zip(a.named_weights(), b.named_weights(), strict=True)
    )


# -- inputs ----------------------------------------------------------------------------------------------------


def test_all_documented_forms_of_input_give_the_same(model):
    types = IDS % 3
    named = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": types, "position_ids": POSITIONS}
    wanted = model(**named).logits
    tensors = {name: tf.constant(value) for name, value in named.items()}
    for inputs, keywords in (
        ((named,), {}),
        ((tensors,), {}),
        ((list(named.values()),), {}),
        ((tuple(tensors.values()),), {}),
        (tuple(named.values()), {}),
        ((IDS,), {name: value for name, value in named.items() if name != "input_ids"}),
        (([IDS, MASK],), {"token_type_ids": types, "position_ids": POSITIONS}),
        (([IDS, MASK, types],), {"position_ids": POSITIONS}),
        ((), tensors),
        ((triptych.BatchEncoding(named),), {}),
    ):
        np.testing.assert_array_equal(model(*inputs, **keywords).logits, wanted)
    np.testing.assert_array_equal(model([IDS, None, types]).logits, model(IDS, token_type_ids=types).logits)
    np.testing.assert_array_equal(model(IDS.tolist()).logits, model(IDS).logits)


@pytest.mark.parametrize(
    ("inputs", "keywords", "error", "said"),
    [
        (({"input_ids": IDS},), {"input_ids": IDS}, ValueError, "input_ids was given twice"),
        (([IDS],), {"input_ids": IDS}, ValueError, "input_ids was given twice"),
        (({"input_ids": IDS, "color": MASK},), {}, TypeError, "got 'color' in the dict"),
        ((IDS,), {"color": MASK}, TypeError, "got 'color'"),
        (({"input_ids": IDS}, MASK), {}, TypeError, "more positional arguments"),
        (([IDS, MASK], MASK), {}, TypeError, "got both"),
        (([IDS] * 9,), {}, TypeError, "There are 7 inputs.*got 9"),
        (([IDS, {"attention_mask": MASK}],), {}, TypeError, "attention_mask, in its place, must be a tensor; got dict"),
        ((), {}, ValueError, "got neither"),
        ((IDS,), {"inputs_embeds": np.zeros((4, 6, 16))}, ValueError, "got both"),
        ((IDS.astype(float),), {}, TypeError, "input_ids must hold ids.*got float"),
        ((IDS[0],), {}, ValueError, r"got \(6,\)"),
        ((IDS + 46,), {}, TokenIdError, r"from 0 to 49.*got \d+ at \["),
        ((-IDS - 1,), {}, TokenIdError, "input_ids must be from 0 to 49"),
        ((IDS,), {"token_type_ids": IDS + 99}, TokenIdError, "token_type_ids must be from 0 to 49"),
        ((IDS,), {"token_type_ids": IDS[:1]}, ValueError, r"token_type_ids must have .*\(4, 6\); got \(1, 6\)"),
        ((IDS,), {"attention_mask": MASK[1:3]}, ValueError, r"attention_mask .*\(4, 6\); got \(2, 6\)"),
        ((np.zeros((1, 17), int),), {}, SequenceTooLongError, "16 positions but was given 17"),
        ((IDS,), {"position_ids": POSITIONS + 16}, SequenceTooLongError, "position_ids must be from 0 to 15"),
        ((IDS,), {"position_ids": POSITIONS * 1.0}, TypeError, "position_ids must be ints; got float"),
        ((IDS,), {"head_mask": np.ones(3)}, ValueError, r"head_mask .*\(2,\) or \(2, 2\); got \(3,\)"),
        ((IDS,), {"labels": IDS[:, 1:]}, ValueError, r"labels must have shape \(4, 6\).*got \(4, 5\)"),
        ((IDS,), {"labels": IDS + 50}, LabelError, "labels must be from 0 to 49, or -100"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(model, inputs, keywords, error, said):
    with pytest.raises(error, match=f"(?s){said}"):
        model(*inputs, **keywords)


def test_left_padding_without_positions_is_warned_of(model):
    with pytest.warns(UserWarning, match="padded on the left"):
        model(IDS, attention_mask=MASK)


@pytest.mark.parametrize("class_", CLASSES)
def test_eager_graph_and_xla_give_the_same_for_any_batch(class_):
    model = make(class_)
    flags = {"output_hidden_states": True, "output_attentions": True}
    specs = {name: tf.TensorSpec([None, None], tf.int32) for name in PADDED}
    graph = tf.function(lambda given: model(given, **flags), input_signature=[specs])
    compiled = tf.function(lambda given: model(given, **flags), jit_compile=True)
    for rows in (slice(None), slice(1)):
        inputs = {name: tf.constant(value[rows], tf.int32) for name, value in PADDED.items()}
        wanted = model(inputs, **flags)
        for call in (graph, compiled):
            found = call(inputs)
            assert type(found) is type(wanted)
            for ours, theirs in zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=5e-6)
    assert graph.experimental_get_tracing_count() == 1


def test_flags_come_from_the_call_or_else_from_the_configuration():
    model = make(output_hidden_states=True, return_dict=False)
    logits, hidden_states = model(IDS)
    assert [x.shape for x in hidden_states] == [(4, 6, 16)] * 3
    out = model(IDS, return_dict=True, output_hidden_states=False, output_attentions=True)
    assert list(out) == ["logits", "attentions"]
    np.testing.assert_array_equal(out.logits, logits)
    np.testing.assert_allclose(np.sum(out.attentions[0], -1), np.ones((4, 2, 6)), atol=1e-6)


def test_dropout_works_in_training_alone(model):
    assert not np.array_equal(model(IDS, training=True).logits, model(IDS, training=True).logits)
    np.testing.assert_array_equal(model(IDS, training=False).logits, model(IDS).logits)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_padded_batch_gives_what_each_row_gives_alone_and_never_nan(dtype):
    model = TFOpenAIGPTLMHeadModel(make().config, dtype=dtype)
    logits = tf.cast(model(**PADDED).logits, tf.float32).numpy()
    assert np.isfinite(logits).all()
    for row, (ids, mask) in enumerate(zip(IDS, MASK == 1, strict=True)):
        alone = tf.cast(model(ids[mask][None]).logits[0], tf.float32)
        np.testing.assert_allclose(logits[row][mask], alone, atol=5e-6 if dtype == "float32" else 0.1)
    assert np.isfinite(tf.cast(model(IDS, attention_mask=MASK * 0, position_ids=POSITIONS).logits, tf.float32)).all()


def test_classification_takes_the_last_token_that_is_not_padding():
    model = make(TFOpenAIGPTForSequenceClassification)
    every = model.score(model.transformer(IDS).last_hidden_state).numpy()  # (B, T, N), of each position
    ids = np.clip(IDS, 1, None)
    np.testing.assert_allclose(model(IDS).logits, every[:, -1], atol=1e-6)
    ids[:, 4:] = 0
    every = model.score(model.transformer(ids).last_hidden_state).numpy()
    model.config.pad_token_id = 0
    np.testing.assert_allclose(model(ids).logits, every[:, 3], atol=1e-6)
    mask = np.array([[1] * 3 + [0] * 3] * 4)
    np.testing.assert_allclose(model(ids, attention_mask=mask).logits, every[:, 2], atol=1e-6)


# -- training --------------------------------------------------------------------------------------------------


def fit(model, data, labels=None, **options):
    model.compile(keras.optimizers.Adam(0.01), **options)
    return model.fit(data, labels, epochs=3, batch_size=4, verbose=0).history["loss"]


def test_fit_takes_labels_in_the_inputs_or_beside_them_and_has_the_models_own_loss():
    losses = []
    for data in (
        ({"input_ids": IDS, "labels": IDS}, None),
        (IDS, IDS),
        ({"input_ids": IDS}, {"labels": IDS}),
        (tf.data.Dataset.from_tensor_slices(({"input_ids": IDS}, IDS)).batch(4), None),
    ):
        keras.utils.set_random_seed(0)
        model = make(n_layer=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        first = float(model(IDS, labels=IDS).loss[0])
        model.compile(keras.optimizers.Adam(0.01))
        options = {"shuffle": False} if data[1] is None and not isinstance(data[0], dict) else {"batch_size": 4}
        losses.append(model.fit(*data, epochs=2, verbose=0, **options).history["loss"])
        assert losses[-1][0] == pytest.approx(first, abs=1e-5)
        assert losses[-1][1] < losses[-1][0]
        np.testing.assert_allclose(losses[-1], losses[0], rtol=1e-4)
        assert model.evaluate(IDS, IDS, verbose=0) == pytest.approx(float(model(IDS, labels=IDS).loss[0]), abs=1e-5)


def test_fit_works_with_a_loss_and_metrics_of_ones_own(classifier):
    labels = np.array([0, 1, 2, 1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile("sgd", loss=loss, metrics=["accuracy"])
    inputs = {"input_ids": IDS, "attention_mask": MASK, "position_ids": POSITIONS}
    found = classifier.evaluate(inputs, labels, verbose=0, return_dict=True)
    logits = classifier(inputs).logits
    assert found["loss"] == pytest.approx(float(loss(labels, logits)), abs=1e-5)
    assert found["accuracy"] == np.mean(np.argmax(logits, -1) == labels)
    assert classifier.fit(inputs, labels, class_weight={0: 1.0, 1: 2.0, 2: 1.0}, verbose=0).history["loss"][0] > 0
    predicted = classifier.predict(inputs, verbose=0, batch_size=3)
    assert predicted.logits.shape == (4, 3)
    np.testing.assert_allclose(predicted.logits, classifier(inputs).logits, atol=1e-5)


def test_training_without_labels_says_so(model):
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match="Training needs labels"):
        model.fit(IDS, verbose=0)
    with pytest.raises(ValueError, match="takes no sample weights"):
        model.fit(IDS, IDS, sample_weight=np.ones(4), verbose=0)
    double = make(TFOpenAIGPTDoubleHeadsModel)
    double.compile("sgd", run_eagerly=True)
    with pytest.raises(TypeError, match="has no loss of its own"):
        double.fit(IDS, IDS, verbose=0)


def test_xla_trains_too():
    losses = fit(make(n_layer=1), IDS, IDS, jit_compile=True)
    assert losses[2] < losses[0]


def test_models_are_parts_of_other_keras_models():
    ids, mask = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32")
    base = make(TFOpenAIGPTModel)
    functional = keras.Model([ids, mask], keras.layers.Dense(3)(base([ids, mask])[0][:, -1]))
    assert functional([IDS, np.ones_like(IDS)]).shape == (4, 3)
    assert len(functional.trainable_variables) == len(base.trainable_variables) + 2


# -- files -----------------------------------------------------------------------------------------------------


@keras_keeps
@pytest.mark.parametrize("class_", CLASSES)
def test_a_keras_file_is_the_model_again(class_, tmp_path):
    model = make(class_, tie_word_embeddings=False, n_layer=1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is class_
    assert same_weights(model, again)
    assert again.config.to_dict() == model.config.to_dict()
    np.testing.assert_array_equal(again(IDS)[0], model(IDS)[0])


@keras_keeps
def test_a_keras_file_goes_on_training_where_it_was(tmp_path):
    model = make(n_layer=1)
    fit(model, IDS, IDS, run_eagerly=True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 3
    for ours, theirs in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_save_pretrained_may_add_a_saved_model(model, tmp_path):
    model.save_pretrained(tmp_path, saved_model=True)
    served = tf.saved_model.load(str(tmp_path / "saved_model" / "1")).signatures["serving_default"](
        input_ids=tf.constant(IDS, tf.int32), attention_mask=tf.ones((4, 6), tf.int32)
    )
    np.testing.assert_allclose(served["logits"], model(IDS).logits, atol=1e-6)


@pytest.mark.parametrize("class_", CLASSES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_shard_size": "3KB"},
        {"safe_serialization": False},
        {"safe_serialization": False, "max_shard_size": "9KB"},
    ],
    ids=str,
)
def test_what_is_saved_is_loaded(class_, options, tmp_path):
    model = make(class_, tie_word_embeddings=False)
    model.save_pretrained(tmp_path, **options)
    again, info = class_.from_pretrained(tmp_path, output_loading_info=True)
    assert info == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
    assert same_weights(model, again)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [class_.__name__.removeprefix("TF")]


def test_weights_of_another_shape_are_refused_or_made_anew(tmp_path):
    make(TFOpenAIGPTForSequenceClassification, num_labels=2).save_pretrained(tmp_path)
    with pytest.raises(WeightMismatchError, match=r"score\.weight: \(2, 16\) in the checkpoint, \(5, 16\)"):
        TFOpenAIGPTForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    with pytest.warns(LoadingWarning, match=r"shapes differ: score\.weight"):
        model, info = TFOpenAIGPTForSequenceClassification.from_pretrained(
            tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
        )
    assert info["mismatched_keys"] == [("score.weight", (2, 16), (5, 16))]
    assert model(IDS).logits.shape == (4, 5)


def test_what_cannot_be_loaded_is_named(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path, colour=1)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tf_model\.h5"):
        TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch it'\ntR.")
    with pytest.raises((CheckpointError, UnsafeFileError), match=r"pytorch_model\.bin"):
        TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="OpenAIGPTConfig"):
        TFOpenAIGPTLMHeadModel("openai-gpt")


@pytest.mark.parametrize(
    ("auto", "class_"),
    [
        (TFAutoModel, TFOpenAIGPTModel),
        (TFAutoModelForCausalLM, TFOpenAIGPTLMHeadModel),
        (TFAutoModelForSequenceClassification, TFOpenAIGPTForSequenceClassification),
    ],
)
def test_auto_classes_find_the_class_of_a_folder(auto, class_, tmp_path):
    make(class_).save_pretrained(tmp_path)
    assert type(auto.from_pretrained(tmp_path)) is class_
    assert type(auto.from_config(make().config)) is class_


def test_the_documented_example_of_double_heads_runs():
    tokenizer = AutoTokenizer.from_pretrained("triptych/tales-gpt")
    with pytest.warns(LoadingWarning, match="multiple_choice_head"):
        model = TFOpenAIGPTDoubleHeadsModel.from_pretrained("triptych/tales-gpt")
    tokenizer.add_special_tokens({"cls_token": "[CLS]"})
    model.resize_token_embeddings(len(tokenizer))
    choices = ["Hello, my dog is cute [CLS]", "Hello, my cat is cute [CLS]"]
    encoding = tokenizer(choices, return_tensors="tf")
    inputs = {k: tf.expand_dims(v, 0) for k, v in encoding.items()}
    inputs["mc_token_ids"] = tf.constant([inputs["input_ids"].shape[-1] - 1, inputs["input_ids"].shape[-1] - 1])[
        None, :
    ]
    outputs = model(inputs)
    lm_prediction_scores, mc_prediction_scores = outputs[:2]
    assert lm_prediction_scores.shape == (1, 2, inputs["input_ids"].shape[-1], len(tokenizer))
    assert mc_prediction_scores.shape == (1, 2)


def test_the_class_imports_no_framework_that_tensorflow_does_not_import_itself():
    code = "import sys; {}; print(*{{'torch', 'jax', 'flax', 'transformers'}} & set(sys.modules))"
    with_class, alone = (
        subprocess.run([sys.executable, "-c", code.format(what)], capture_output=True, text=True, check=True).stdout
        for what in ("from triptych import TFOpenAIGPTModel", "import tensorflow, keras")
    )
    assert set(with_class.split()) == set(alone.split())
    assert not set(with_class.split()) & {"torch", "flax", "transformers"}
