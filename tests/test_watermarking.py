"""The watermark: the lists and tests of a later Transformers, and a mark that is written and found."""

import json

import numpy as np
import pytest
import torch

from triptych import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPTNeoConfig,
    WatermarkDetector,
    WatermarkingConfig,
    WatermarkLogitsProcessor,
)


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "watermarking.json").read_text())


@pytest.fixture(scope="module")
def tales():
    return (
        AutoModelForCausalLM.from_pretrained("triptych/tales-neo", torch_dtype="float32"),
        AutoTokenizer.from_pretrained("triptych/tales-neo"),
    )


@pytest.mark.parametrize("number", range(6))
def test_green_tokens_and_scores_of_the_test_are_those_of_the_later_reference(recorded, number):
    case = recorded["cases"][number]
    ids, scores = torch.tensor(recorded["ids"]), torch.tensor(recorded["scores"])
    marked = WatermarkLogitsProcessor(recorded["vocabulary"], **case["settings"])(ids, scores)
    bias = case["settings"].get("bias", 2.0)
    expected = scores.clone()
    for row, green in enumerate(case["green"]):
        expected[row, green] += bias
    torch.testing.assert_close(marked, expected)
    config = GPTNeoConfig(vocab_size=recorded["vocabulary"], bos_token_id=0, eos_token_id=0)
    for once in (False, True):
        detector = WatermarkDetector(config, "cpu", case["settings"], ignore_repeated_ngrams=once)
        found = detector(ids, return_dict=True)
        for name, value in case[f"once={once}"].items():
            np.testing.assert_allclose(found[name], value, rtol=1e-7, atol=1e-9, err_msg=name)
        assert detector(ids).tolist() == case[f"once={once}"]["prediction"]
    begun = torch.nn.functional.pad(ids, (1, 0))
    z = WatermarkDetector(config, "cpu", case["settings"])(begun, return_dict=True).z_score
    np.testing.assert_allclose(z, case["with bos"], rtol=1e-7)


@pytest.mark.parametrize(
    "settings", [{}, {"seeding_scheme": "selfhash", "context_width": 2, "bias": 3.0}], ids=["lefthash", "selfhash"]
)
def test_a_mark_is_found_in_marked_texts_only_and_only_with_the_key(tales, settings):
    model, tokenizer = tales
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    options = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 70, "pad_token_id": 0}
    options["eos_token_id"] = None
    torch.manual_seed(0)
    plain = model.generate(**inputs, **options)[:, 4:]
    torch.manual_seed(0)
    marked = model.generate(**inputs, **options, watermarking_config=settings)[:, 4:]
    detector = WatermarkDetector(model.config, watermarking_config=WatermarkingConfig(**settings))
    assert detector(marked).all()
    assert not detector(plain).any()
    assert not WatermarkDetector(model.config, watermarking_config=settings | {"hashing_key": 5})(marked).any()


def test_a_batch_is_marked_as_its_rows_are():
    torch.manual_seed(1)
    ids, scores = torch.randint(0, 90, (4, 6)), torch.randn(4, 90)
    for scheme in ("lefthash", "selfhash"):
        mark = WatermarkLogitsProcessor(90, seeding_scheme=scheme, context_width=3)
        alone = torch.cat([mark(ids[row : row + 1], scores[row : row + 1]) for row in range(4)])
        assert torch.equal(mark(ids, scores), alone)
        assert torch.equal(mark(ids[:, :2], scores), scores)  # too few tokens to make a seed


def test_settings_are_kept_in_the_file(tmp_path):
    GenerationConfig(watermarking_config=WatermarkingConfig(bias=1.5)).save_pretrained(tmp_path)
    read = GenerationConfig.from_pretrained(tmp_path)
    assert WatermarkingConfig.from_dict(read.watermarking_config) == WatermarkingConfig(bias=1.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"greenlist_ratio": 1.0}, "greenlist_ratio"),
        ({"greenlist_ratio": 0}, "greenlist_ratio"),
        ({"seeding_scheme": "righthash"}, "lefthash, selfhash"),
        ({"context_width": 0}, "context_width"),
        ({"hashing_key": 1.5}, "hashing_key"),
        ({"green": 1}, "'green'"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(tales, settings, words):
    model, _ = tales
    with pytest.raises(ValueError, match=words):
        model.generate(torch.tensor([[1, 2]]), watermarking_config=settings, max_new_tokens=2)
    with pytest.raises(ValueError, match=words):
        WatermarkDetector(model.config, watermarking_config=settings)


def test_texts_that_cannot_be_tested_are_refused():
    detector = WatermarkDetector(GPTNeoConfig(vocab_size=50), watermarking_config={"context_width": 4})
    with pytest.raises(ValueError, match="at least 5 tokens"):
        detector(torch.tensor([[1, 2, 3, 4]]))
    with pytest.raises(ValueError, match="shape"):
        detector(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="from 0 to 49"):
        detector(torch.tensor([[1, 2, 3, 4, 50]]))
    with pytest.raises(TypeError, match="watermarking_config"):
        WatermarkDetector(GPTNeoConfig(), watermarking_config="strong")
