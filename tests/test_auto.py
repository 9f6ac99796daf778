"""The Auto classes find the right class from the files, and say what is wrong when they cannot."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import triptych
from triptych import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    PreTrainedTokenizerFast,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=50,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=32,
        attention_types=[[["global", "local"], 1]],
    )
    path = tmp_path_factory.mktemp("gpt_neo")
    GPTNeoForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("auto", "name"),
    [
        (AutoModel, "GPTNeoModel"),
        (AutoModelForCausalLM, "GPTNeoForCausalLM"),
        (AutoModelForQuestionAnswering, "GPTNeoForQuestionAnswering"),
        (AutoModelForSequenceClassification, "GPTNeoForSequenceClassification"),
        (AutoModelForTokenClassification, "GPTNeoForTokenClassification"),
    ],
)
@pytest.mark.filterwarnings("ignore::triptych.errors.LoadingWarning")
def test_each_auto_class_loads_its_head_with_the_same_weights(auto, name, folder):
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model) is getattr(triptych, name)
    saved = GPTNeoForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model.base_model.wte.weight, saved.transformer.wte.weight, rtol=0, atol=0)
    assert not any(key.startswith("transformer.") for key in info["missing_keys"])


def test_auto_config_gives_the_family_and_takes_overrides(folder):
    config = AutoConfig.from_pretrained(folder, num_labels=5)
    assert type(config) is GPTNeoConfig
    assert (config.hidden_size, config.num_labels) == (16, 5)
    assert AutoConfig.for_model("gpt_neo", hidden_size=8).hidden_size == 8


def test_from_config_makes_new_weights_in_the_wanted_dtype(folder):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), torch_dtype=torch.bfloat16)
    assert model.dtype is torch.bfloat16


def test_options_reach_the_model(folder):
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, torch_dtype="float16", attn_implementation="eager"
    )
    assert model.dtype is torch.float16
    assert model.config._attn_implementation == "eager"


def test_an_unknown_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for auto in (AutoConfig, AutoModel, AutoTokenizer):
        with pytest.raises(ValueError, match="'bert'"):
            auto.from_pretrained(tmp_path)


def test_code_named_by_a_configuration_is_never_run(tmp_path, folder):
    fields = json.loads((folder / "config.json").read_text())
    fields["auto_map"] = {"AutoConfig": "evil.EvilConfig"}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    config = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(config) is GPTNeoConfig
    assert "auto_map" not in config.to_dict()


def test_a_folder_without_files_says_what_was_looked_for(tmp_path):
    with pytest.raises(OSError, match=r"config\.json"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_tokenizer_of_no_family_loads_as_what_it_is(tmp_path):
    engine = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="?").save_pretrained(tmp_path)
    for use_fast in (True, False):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, use_fast=use_fast)
        assert type(tokenizer) is PreTrainedTokenizerFast
        assert tokenizer("b a c").input_ids == [1, 0, 2]


def test_the_auto_classes_are_not_made_by_calling_them():
    with pytest.raises(TypeError, match="from_pretrained"):
        AutoModel()
