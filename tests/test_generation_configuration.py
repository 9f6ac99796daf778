"""GenerationConfig: the documented options, and files that the reference and this package both read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from triptych.generation.configuration import ADDITIONS, DEFAULTS, GenerationConfig
from triptych.generation.constraints import PhrasalConstraint
from triptych.models.gpt_neo.configuration import GPTNeoConfig

GOLDEN = Path(__file__).parent / "golden"
RECORD = json.loads((GOLDEN / "generation.json").read_text(encoding="utf-8"))


def as_the_reference_has_it(config: GenerationConfig) -> dict[str, Any]:
    fields = config.to_dict()
    return {name: value for name, value in fields.items() if name not in ADDITIONS}


def test_options_and_defaults_are_the_documented_ones() -> None:
    assert as_the_reference_has_it(GenerationConfig()) == RECORD["default dict"]
    assert as_the_reference_has_it(GenerationConfig(**RECORD["config"])) == RECORD["config dict"]


def test_a_file_of_the_reference_is_read_and_the_same_file_is_written(tmp_path: Path) -> None:
    config = GenerationConfig.from_pretrained(GOLDEN)
    assert config == GenerationConfig(**RECORD["config"])
    config.save_pretrained(tmp_path / "new" / "folder")
    written = (tmp_path / "new" / "folder" / "generation_config.json").read_bytes()
    assert written == (GOLDEN / "generation_config.json").read_bytes()


def test_a_published_file_is_read_with_its_origin(tmp_path: Path) -> None:
    published = {
        "_from_model_config": True,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "transformers_version": "4.27.0.dev0",
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(published), encoding="utf-8")
    config = GenerationConfig.from_pretrained(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config._from_model_config) == (50256, 50256, True)
    assert config.transformers_version == "4.27.0.dev0"
    config.save_pretrained(tmp_path)
    again = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert again == published | {"transformers_version": "4.37.2"}


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_new_tokens": st.integers(1, 99),
        "eos_token_id": st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3)),
        "repetition_penalty": st.floats(0.1, 3),
        "stop_strings": st.lists(st.text(min_size=1), min_size=1, max_size=2),
        "sequence_bias": st.dictionaries(st.tuples(st.integers(0, 9)), st.floats(-2, 2), min_size=1, max_size=3),
        "something_else": st.text(),
    },
)


@settings(deadline=None, max_examples=40)
@given(OPTIONS)
def test_saving_and_loading_is_the_identity(tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]) -> None:
    folder = tmp_path_factory.mktemp("options")
    config = GenerationConfig(**options)
    config.save_pretrained(folder)
    assert GenerationConfig.from_pretrained(folder) == config
    assert GenerationConfig.from_dict(json.loads(config.to_json_string())) == config


def test_loading_takes_other_values_and_another_file_name(tmp_path: Path) -> None:
    GenerationConfig(max_new_tokens=3, note="kept").save_pretrained(tmp_path, "short.json")
    config, unused = GenerationConfig.from_pretrained(
        tmp_path, "short.json", max_length=9, more=1, return_unused_kwargs=True
    )
    assert (config.max_new_tokens, config.note, config.max_length, config.more) == (3, "kept", 9, 1)
    assert unused == {}


def test_code_named_in_a_file_is_dropped() -> None:
    config = GenerationConfig.from_dict({"auto_map": {"x": "y.Z"}, "_private": 1, "max_length": 4})
    assert config.to_diff_dict() == {"max_length": 4, "transformers_version": "4.37.2"}


def test_update_sets_options_and_returns_the_rest() -> None:
    config = GenerationConfig()
    assert config.update(max_length=7, unknown=1) == {"unknown": 1}
    assert config.max_length == 7
    assert not hasattr(config, "unknown")


def test_equality_looks_at_options_only() -> None:
    assert GenerationConfig() == GenerationConfig(_from_model_config=True, transformers_version="1")
    assert GenerationConfig(note=1) == GenerationConfig(note=1) != GenerationConfig(note=2)
    assert GenerationConfig() != 3


def test_the_text_form_shows_what_differs_from_the_defaults() -> None:
    config = GenerationConfig(max_new_tokens=5)
    assert repr(config) == str(config) == 'GenerationConfig {\n  "max_new_tokens": 5\n}\n'
    assert json.loads(config.to_json_string(use_diff=False))["top_k"] == 50


def test_options_of_an_old_model_configuration_are_taken_over() -> None:
    model_config = GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], max_length=33, do_sample=True)
    config = GenerationConfig.from_model_config(model_config)
    assert config.to_diff_dict() == {
        "_from_model_config": True,
        "bos_token_id": 50256,
        "do_sample": True,
        "eos_token_id": 50256,
        "max_length": 33,
        "transformers_version": "4.37.2",
    }


def test_lists_of_one_object_are_not_shared_with_another() -> None:
    first, second = GenerationConfig(), GenerationConfig()
    first.generation_kwargs["x"] = 1
    assert second.generation_kwargs == {}
    assert DEFAULTS["bad_words_ids"] is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"early_stopping": "soon"}, "early_stopping"),
        ({"num_return_sequences": 3}, "do_sample=True"),
        ({"num_beams": 3, "num_return_sequences": 4}, "must not exceed num_beams"),
        ({"streamer": 1}, r"streamer is an argument of one call.*generate"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GenerationConfig(**options)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 3}, {"length_penalty": 2.0}, {"num_beam_groups": 2}]
)
def test_options_without_effect_are_named_and_not_saved(options: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(options))
    with pytest.warns(UserWarning, match=f"{name}=.* has an effect only in"):
        config = GenerationConfig(**options)
    with pytest.raises(ValueError, match=name):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text("{bad", encoding="utf-8")
    with pytest.raises(OSError, match=r"generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)


def test_pushing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hf upload"):
        GenerationConfig().save_pretrained(tmp_path, push_to_hub=True)


def test_objects_hold_in_a_call_and_are_refused_in_a_file(tmp_path: Path) -> None:
    words = [PhrasalConstraint([5, 6])]
    config = GenerationConfig(constraints=words, num_beams=2)
    assert config == config != GenerationConfig(num_beams=2)
    with pytest.raises(ValueError, match=r"JSON.*PhrasalConstraint.*force_words_ids"):
        config.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []
