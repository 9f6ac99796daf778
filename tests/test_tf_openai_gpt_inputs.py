"""What the TensorFlow models of OpenAI GPT make of masks, positions, vectors, policies and vocabularies of users."""

import numpy as np
import pytest

pytest.importorskip("tensorflow")

import keras
import tensorflow as tf

from triptych import (
    OpenAIGPTConfig,
    TFOpenAIGPTDoubleHeadsModel,
    TFOpenAIGPTForSequenceClassification,
    TFOpenAIGPTLMHeadModel,
    TFOpenAIGPTModel,
)

IDS = np.random.default_rng(0).integers(0, 50, (2, 6))
MASK = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
POSITIONS = np.maximum(MASK.cumsum(-1) - 1, 0)


def config(**fields):
    return OpenAIGPTConfig(
        **{"vocab_size": 50, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2}
        | fields
    )


@pytest.fixture(scope="module")
def model():
    return TFOpenAIGPTLMHeadModel(config())


keras_keeps = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras reads weights so
CLASSES = (
    TFOpenAIGPTModel,
    TFOpenAIGPTLMHeadModel,
    TFOpenAIGPTDoubleHeadsModel,
    TFOpenAIGPTForSequenceClassification,
)


@pytest.mark.parametrize("class_", CLASSES)
def test_a_mask_of_booleans_is_one_of_ints(class_):
    model = class_(config())
    given = {"input_ids": IDS, "position_ids": POSITIONS}
    np.testing.assert_array_equal(
        model(given, attention_mask=MASK == 1)[0], model(given, attention_mask=MASK.astype(np.float32))[0]
    )


def test_classification_and_choices_of_a_padded_batch_are_those_of_each_row_alone():
    for class_, name in ((TFOpenAIGPTForSequenceClassification, "logits"), (TFOpenAIGPTDoubleHeadsModel, "mc_logits")):
        model = class_(config())
        batch = model(IDS, attention_mask=MASK, position_ids=POSITIONS)[name]
        for row, (ids, mask) in enumerate(zip(IDS, MASK == 1, strict=True)):
            np.testing.assert_allclose(batch[row], model(ids[mask][None])[name][0], atol=2e-6)


@pytest.mark.parametrize("class_", CLASSES[2:])
def test_what_export_writes_gives_the_same_numbers_to_any_batch(class_, tmp_path):
    model = class_(config())
    model.export(tmp_path / "exported")
    serve = tf.saved_model.load(str(tmp_path / "exported")).signatures["serving_default"]
    for ids in (IDS, IDS[:1, :3]):
        mask = np.ones_like(ids)
        served = serve(input_ids=tf.constant(ids, tf.int32), attention_mask=tf.constant(mask, tf.int32))
        for name, value in served.items():
            np.testing.assert_allclose(value, model(ids, attention_mask=mask)[name], atol=1e-6)


@pytest.mark.parametrize(
    ("positions", "said"), [((3, 6), r"\(1, 6\); got \(3, 6\)"), ((1, 1), r"got \(1, 1\)"), ((4,), r"got \(4,\)")]
)
def test_positions_of_another_shape_are_named(model, positions, said):
    with pytest.raises(ValueError, match=said):
        model(IDS[:1], position_ids=np.zeros(positions, np.int32))


def test_vectors_of_another_width_are_named_and_not_taken_for_more_rows(model):
    with pytest.raises(ValueError, match=r"\(batch, length, 16\); got \(2, 6, 32\)"):
        model(inputs_embeds=np.zeros((2, 6, 32), np.float32))
    with pytest.raises(TypeError, match="int32"):
        model(inputs_embeds=np.zeros((2, 6, 16), np.int32))


@keras_keeps
@pytest.mark.parametrize(
    ("policy", "computes", "keeps"),
    [
        ("mixed_float16", "float16", "float32"),
        ("mixed_bfloat16", "bfloat16", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
    ],
)
def test_the_policy_of_a_model_is_that_of_all_its_layers(policy, computes, keeps, model, tmp_path):
    model.save_pretrained(tmp_path)
    half = TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path, dtype=policy)
    assert {weight.dtype for _, weight in half.named_weights()} == {keeps}
    full = model(IDS, attention_mask=MASK, position_ids=POSITIONS, labels=IDS)
    for training in (False, True):
        out = half(IDS, attention_mask=MASK, position_ids=POSITIONS, labels=IDS, training=training)
        assert out.logits.dtype == computes
        assert out.loss.dtype == tf.float32
        assert np.isfinite(tf.cast(out.logits, tf.float32)).all()
        if not training:
            np.testing.assert_allclose(tf.cast(out.logits, tf.float32), full.logits, atol=0.2)
            np.testing.assert_allclose(out.loss, full.loss, rtol=0.02)
    half.save_pretrained(tmp_path / "again")
    again = TFOpenAIGPTLMHeadModel.from_pretrained(tmp_path / "again", dtype=policy)
    for (name, weight), (_, other) in zip(half.named_weights(), again.named_weights(), strict=True):
        np.testing.assert_array_equal(weight.numpy(), other.numpy(), name)
    half.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras")(IDS).logits.dtype == computes


def test_training_in_mixed_precision_learns_a_batch():
    settings = config(n_layer=1, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    model = TFOpenAIGPTForSequenceClassification(settings, dtype="mixed_float16")
    model.compile(keras.optimizers.Adam(0.01), metrics=["accuracy"])
    inputs = {"input_ids": IDS, "attention_mask": MASK, "position_ids": POSITIONS}
    history = model.fit(inputs, np.array([0, 1]), epochs=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] / 2
    assert history["accuracy"][-1] == 1.0


@keras_keeps
@pytest.mark.parametrize("tied", [True, False])
def test_resizing_takes_numpy_ints_and_the_head_follows(tied, tmp_path):
    model = TFOpenAIGPTLMHeadModel(config(n_layer=1, tie_word_embeddings=tied))
    before = model(IDS).logits.numpy()
    model.resize_token_embeddings(np.int64(53))
    after = model(IDS).logits.numpy()
    np.testing.assert_allclose(after[..., :50], before, atol=1e-6)
    np.testing.assert_allclose(after[..., 50:], np.repeat(before.mean(-1, keepdims=True), 3, -1), atol=1e-5)
    model.compile("sgd", run_eagerly=True)
    model.fit(IDS + 3, IDS + 3, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(IDS).logits, model(IDS).logits)
    with pytest.raises(ValueError, match="positive int; got 0"):
        model.resize_token_embeddings(0)


def test_input_embeddings_can_be_replaced():
    model = TFOpenAIGPTLMHeadModel(config())
    vectors = np.random.default_rng(1).normal(size=(60, 16)).astype(np.float32)
    model.set_input_embeddings(vectors)
    np.testing.assert_array_equal(model.get_input_embeddings().weight.numpy(), vectors)
    assert model(IDS).logits.shape == (2, 6, 60)
    assert model.config.vocab_size == 60
    with pytest.raises(ValueError, match=r"\(vocabulary, 16\); got \(60, 8\)"):
        model.set_input_embeddings(vectors[:, :8])
