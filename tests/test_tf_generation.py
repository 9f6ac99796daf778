"""What users of `generate()` in TensorFlow may rely on."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# These programs run for milliseconds: compiling them with less care is what saves time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
tf = pytest.importorskip("tensorflow")

from triptych import TFOpenAIGPTLMHeadModel  # noqa: E402  # after the check that TensorFlow is there
from triptych.errors import SequenceTooLongError, TokenIdError, UnknownOptionError  # noqa: E402
from triptych.generation import logits_tf  # noqa: E402

GOLDEN = Path(__file__).parent / "golden" / "openai_gpt"
RECORDED = json.loads((GOLDEN / "tf_generation.json").read_text())
PROMPTS = np.array(RECORDED["prompts"], np.int32)
SHORT = {"max_new_tokens": 4, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model() -> Any:
    return TFOpenAIGPTLMHeadModel.from_pretrained(str(GOLDEN / "generation_model"))


def texts(rows: Any, options: dict[str, Any]) -> list[list[int]]:
    """Rows up to their end, which is written as 0: beam search in PyTorch writes the first id that ends texts."""
    eos = options["eos_token_id"]
    ends = {eos} if isinstance(eos, int) else set(eos)
    width = PROMPTS.shape[1]
    found = []
    for row in np.asarray(rows).tolist():
        end = next((i for i in range(width, len(row)) if row[i] in ends), None)
        found.append(row if end is None else [*row[:end], 0])
    return found


@pytest.mark.parametrize("name", RECORDED["cases"])
def test_ids_are_the_reference_s(model: Any, name: str) -> None:
    case = RECORDED["cases"][name]
    options = case["options"]
    copies = options.get("num_return_sequences", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = model.generate(PROMPTS, **options).numpy()
    for index in range(len(PROMPTS)):
        ours = ids[index * copies : (index + 1) * copies]
        assert texts(ours, options) == [texts([row], options)[0] for row in case["torch"][index]]
        if copies == 1:
            assert ours.tolist() == [[*row, *[0] * (ids.shape[1] - len(row))] for row in case["tf"][index]]


TRANSFORMS = {
    "repetition": lambda: logits_tf.repetition(1.7),
    "no_repeats": lambda: logits_tf.no_repeats("no_repeat_ngram_size", 2),
    "bad_words": lambda: logits_tf.biased([([11], -np.inf), ([3, 4], -np.inf), ([2, 3, 6], -np.inf)]),
    "min_length": lambda: logits_tf.shortest("min_length", 6, 0, 7),
    "forced_bos": lambda: logits_tf.forced("forced_bos_token_id", 5, 1),
    "forced_eos": lambda: logits_tf.forced("forced_eos_token_id", 7, 5),
    "suppressed": lambda: logits_tf.suppressed("suppress_tokens", [1, 2, 3]),
    "begin_suppressed": lambda: logits_tf.suppressed("begin_suppress_tokens", [4, 5], 5),
    "temperature": lambda: logits_tf.temperature(0.6),
    "top_k": lambda: logits_tf.top_k(4),
    "top_p": lambda: logits_tf.top_p(0.7),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_gives_the_reference_s_numbers_whatever_stands_behind_the_text(name: str) -> None:
    recorded = RECORDED["transforms"]
    ids = tf.constant([[*row, 6, 6] for row in recorded["ids"]], tf.int32)
    after = TRANSFORMS[name]()(ids, tf.constant(recorded["scores"]), tf.constant(5)).numpy()
    expected = np.array([[-np.inf if v is None else v for v in row] for row in recorded["after"][name]], np.float32)
    np.testing.assert_allclose(after, expected, rtol=2e-5, atol=2e-5)


def test_a_left_padded_batch_gives_what_each_row_gives_alone(model: Any) -> None:
    ids = np.array([[0, 0, 12, 15], [11, 22, 33, 44]])
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]])
    batch = model.generate(ids, attention_mask=mask, num_beams=2, **SHORT).numpy()
    alone = model.generate(ids[:1, 2:], num_beams=2, **SHORT).numpy()
    np.testing.assert_array_equal(batch[0, 2:], alone[0])


def test_a_second_call_compiles_nothing(model: Any) -> None:
    traced = []

    def look(ids: Any, scores: Any, length: Any) -> Any:
        traced.append(ids.shape)
        return scores - 1e9 * tf.one_hot(50, scores.shape[-1])

    first = model.generate(PROMPTS[:1], logits_processor=[look], **SHORT)
    count = len(traced)
    assert count > 0
    again = model.generate(PROMPTS[:1], logits_processor=[look], **SHORT)
    assert len(traced) == count
    np.testing.assert_array_equal(first, again)


def test_a_seed_decides_what_is_drawn_and_scores_are_those_that_were_drawn_from(model: Any) -> None:
    options = SHORT | {"do_sample": True, "top_k": 5, "return_dict_in_generate": True, "output_scores": True}
    first = model.generate(PROMPTS, seed=(1, 2), **options)
    again = model.generate(PROMPTS, seed=(1, 2), **options)
    other = model.generate(PROMPTS, seed=(3, 4), **options)
    np.testing.assert_array_equal(first.sequences, again.sequences)
    assert (first.sequences.numpy() != other.sequences.numpy()).any()
    assert len(first.scores) == 4
    assert all((np.isfinite(step.numpy()).sum(axis=1) == 5).all() for step in first.scores)
    drawn = model.compute_transition_scores(first.sequences, first.scores, normalize_logits=True).numpy()
    assert np.isfinite(drawn).all()
    assert (drawn <= 0).all()


def test_draws_follow_the_distribution(model: Any) -> None:
    def three(ids: Any, scores: Any, length: Any) -> Any:
        p = np.zeros(scores.shape[-1], np.float32)
        p[[20, 30, 40]] = 0.6, 0.3, 0.1
        return tf.zeros_like(scores) + tf.math.log(p)

    options = {"max_new_tokens": 1, "do_sample": True, "top_k": 0, "num_return_sequences": 3000, "eos_token_id": None}
    drawn = model.generate(PROMPTS[:1], logits_processor=[three], seed=(0, 1), **options).numpy()[:, -1]
    shares = [(drawn == token).mean() for token in (20, 30, 40)]
    np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.04)


def test_beam_scores_add_up_from_the_steps(model: Any) -> None:
    options = RECORDED["cases"]["beams"]["options"]
    out = model.generate(PROMPTS[:2], return_dict_in_generate=True, output_scores=True, **options)
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices).numpy()
    length = (out.beam_indices.numpy() >= 0).sum(axis=1)
    np.testing.assert_allclose(steps.sum(axis=1) / length, out.sequences_scores, rtol=2e-5)


def test_beam_sampling_honours_its_seed(model: Any) -> None:
    options = SHORT | {"do_sample": True, "num_beams": 2, "temperature": 3.0}
    first, again, other = (model.generate(PROMPTS, seed=seed, **options).numpy() for seed in ((1, 2), (1, 2), (5, 6)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_generate_compiles_inside_a_function_of_the_user(model: Any) -> None:
    program = tf.function(lambda ids: model.generate(ids, **SHORT), jit_compile=True)
    np.testing.assert_array_equal(program(tf.constant(PROMPTS)), model.generate(PROMPTS, **SHORT))


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"max_new_tokens": 100}, SequenceTooLongError, "64 positions"),
        ({"input_ids": [[]]}, ValueError, "at least one token"),
        ({"input_ids": [[97]]}, TokenIdError, "vocabulary"),
        ({"input_ids": [[3.5]]}, TypeError, "ints"),
        ({"num_return_sequences": 2}, ValueError, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, ValueError, "num_return_sequences"),
        ({"penalty_alpha": 0.5, "top_k": 4}, ValueError, "penalty_alpha"),
        ({"output_attentions": True, "return_dict_in_generate": True}, ValueError, "output_attentions"),
        ({"stop_strings": ["a"]}, ValueError, "stop_strings"),
        ({"temprature": 2.0}, UnknownOptionError, "temperature"),
        ({"do_sample": True, "seed": 3}, ValueError, "two ints"),
        ({"do_sample": True, "top_p": 2.0}, ValueError, "top_p"),
        ({"suppress_tokens": [97]}, TokenIdError, "suppress_tokens"),
        ({"attention_mask": [[1, 1, 1]]}, ValueError, "attention_mask"),
        ({"attention_mask": [[0, 0, 0, 0]]}, ValueError, "all padding"),
    ],
)
def test_what_cannot_be_is_refused_with_its_name(
    model: Any, options: dict[str, Any], error: type[Exception], part: str
) -> None:
    asked = {"input_ids": PROMPTS[:1]} | SHORT | options
    with pytest.raises(error, match=part):
        model.generate(**asked)


def test_a_text_may_start_from_nothing_but_its_first_token(model: Any) -> None:
    np.testing.assert_array_equal(model.generate(**SHORT), model.generate([[1]], **SHORT))
