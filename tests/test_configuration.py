"""Configurations read old files as they are, write what the reference writes, and lose nothing in between."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from triptych.configuration import PretrainedConfig
from triptych.models.gpt_neo.configuration import GPTNeoConfig

FACTS = json.loads((Path(__file__).parent / "golden" / "gpt_neo" / "facts.json").read_text())["configs"]

# What the published files have in common, fields of older releases included.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPTNeoForCausalLM"],
    "attention_dropout": 0,
    "bos_token_id": 50256,
    "embed_dropout": 0,
    "eos_token_id": 50256,
    "gradient_checkpointing": False,
    "initializer_range": 0.02,
    "intermediate_size": None,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neo",
    "resid_dropout": 0,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "transformers_version": "4.9.0.dev0",
    "use_cache": True,
    "vocab_size": 50257,
    "window_size": 256,
}
SAMPLING = {
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50, "temperature": 0.9}},
    "tokenizer_class": "GPT2Tokenizer",
}


def published(layers: int, hidden: int, heads: int, **more: object) -> dict:
    kinds = {
        "attention_layers": ["global", "local"] * (layers // 2),
        "attention_types": [[["global", "local"], layers // 2]],
    }
    return PUBLISHED | kinds | {"num_layers": layers, "hidden_size": hidden, "num_heads": heads} | more


FILES = {
    "EleutherAI/gpt-neo-125m": published(12, 768, 12),
    "EleutherAI/gpt-neo-1.3B": published(24, 2048, 16, **SAMPLING),
    "EleutherAI/gpt-neo-2.7B": published(32, 2560, 20, **SAMPLING),
    "roneneldan/TinyStories-33M": published(
        4, 768, 16, _name_or_path="EleutherAI/gpt-neo-125M", torch_dtype="float32", transformers_version="4.28.1"
    ),
}


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_published_files_load_as_they_are_and_keep_every_field(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FILES[name]))
    config = GPTNeoConfig.from_pretrained(tmp_path)
    for field, value in FILES[name].items():
        if field == "torch_dtype":
            assert config.torch_dtype is torch.float32
        elif field not in ("_name_or_path", "transformers_version", "model_type"):
            assert getattr(config, field) == value, field
    assert config.name_or_path == str(tmp_path)
    assert config.num_hidden_layers == FILES[name]["num_layers"]
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    ours = {"_name_or_path", "transformers_version"}  # and fields at the defaults of all families are not written
    common = PretrainedConfig().to_dict()
    expected = {k: v for k, v in FILES[name].items() if k not in ours and (k not in common or v != common[k])}
    assert {k: v for k, v in written.items() if k in expected} == expected
    assert GPTNeoConfig.from_pretrained(tmp_path / "again") == config


@pytest.mark.parametrize("name", FACTS)
def test_the_text_of_the_file_is_the_reference_s(name):
    config = GPTNeoConfig(**revived(FACTS[name]["fields"]))
    assert config.to_json_string() == FACTS[name]["diff"]
    full = json.loads(FACTS[name]["full"])
    del full["_name_or_path"]  # where a file came from is not part of what it says
    assert config.to_json_string(use_diff=False) == json.dumps(full, indent=2, sort_keys=True) + "\n"


def revived(fields: dict) -> dict:
    """Keys that are numbers are text in JSON."""
    return {
        name: {int(k): v for k, v in value.items()} if name in ("id2label", "pruned_heads") else value
        for name, value in fields.items()
    }


def test_where_a_configuration_came_from_is_never_written(tmp_path):
    config = GPTNeoConfig(name_or_path="somewhere")
    assert config.name_or_path == "somewhere"
    config.name_or_path = "elsewhere"
    assert config.name_or_path == "elsewhere"
    assert "elsewhere" not in config.to_json_string(use_diff=False)


def test_a_configuration_is_read_from_a_folder_a_file_and_json(tmp_path):
    config = GPTNeoConfig(hidden_size=24, num_heads=3, colour="blue")
    config.save_pretrained(tmp_path / "a" / "b")
    file = tmp_path / "a" / "b" / "config.json"
    assert [path.name for path in file.parent.iterdir()] == ["config.json"]
    for again in (
        GPTNeoConfig.from_pretrained(file.parent),
        GPTNeoConfig.from_pretrained(str(file)),
        GPTNeoConfig.from_json_file(file),
        GPTNeoConfig.from_dict(json.loads(file.read_text())),
    ):
        assert again == config
        assert again.colour == "blue"
    config.to_json_file(file, use_diff=False)
    assert GPTNeoConfig.from_json_file(file) == config


names = st.text("abcdefgh", min_size=1, max_size=5).map(lambda name: f"extra_{name}")
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=80, deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "bos_token_id": st.none() | st.integers(0, 9),
            "eos_token_id": st.none() | st.integers(0, 50256),
            "pad_token_id": st.none() | st.integers(0, 9),
            "use_cache": st.booleans(),
            "tie_word_embeddings": st.booleans(),
            "num_labels": st.integers(1, 4),
            "problem_type": st.sampled_from([None, "regression"]),
            "torch_dtype": st.sampled_from([None, "float16", torch.bfloat16]),
            "layer_norm_epsilon": st.floats(1e-12, 1.0),
            "attention_types": st.sampled_from([[[["global"], 24]], [[["global", "local"], 12]], [[["local"], 24]]]),
            "pruned_heads": st.dictionaries(st.integers(0, 5), st.lists(st.integers(0, 3), unique=True), max_size=2),
            "temperature": st.floats(0.1, 2.0),
            "return_dict": st.booleans(),
            "architectures": st.none() | st.just(["GPTNeoForCausalLM"]),
        },
    ),
    extra=st.dictionaries(names, values, max_size=3),
)
def test_saving_and_loading_is_the_identity(fields, extra):
    config = GPTNeoConfig(**fields, **extra)
    for text in (config.to_json_string(), config.to_json_string(use_diff=False)):
        again = GPTNeoConfig.from_dict(json.loads(text))
        assert again == config
        assert again.to_json_string() == config.to_json_string()
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


def test_an_interrupted_or_impossible_save_leaves_the_old_file(tmp_path):
    GPTNeoConfig(hidden_size=32).save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(TypeError):
        GPTNeoConfig(odd=object()).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        GPTNeoConfig().save_pretrained(blocked)


def test_pushing_to_the_hub_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="push_to_hub is not supported"):
        GPTNeoConfig().save_pretrained(tmp_path / "new", push_to_hub=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("text", "message"), [("{", "must hold JSON"), ("[1]", "JSON object"), (None, "config.json")])
def test_a_damaged_or_missing_file_is_an_os_error_that_names_it(tmp_path, text, message):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(OSError, match=message) as caught:
        GPTNeoConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_file_of_another_family_is_warned_of(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "hidden_size": 32}))
    with pytest.warns(UserWarning, match=r"holds a 'gpt2' model, read here as 'gpt_neo'"):
        assert GPTNeoConfig.from_pretrained(tmp_path).hidden_size == 32


# -- fields --------------------------------------------------------------------------------------------------------


def test_both_names_of_a_field_read_and_write_one_value():
    config = GPTNeoConfig(num_heads=8)
    assert config.num_attention_heads == config.num_heads == 8
    config.num_attention_heads = 4
    assert config.num_heads == 4
    assert "num_attention_heads" not in config.to_dict()
    assert GPTNeoConfig.from_dict({}, num_attention_heads=2).num_heads == 2
    assert hasattr(config, "num_hidden_layers")


def test_a_field_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GPTNeoConfig has no field 'n_layer'"):
        _ = GPTNeoConfig().n_layer


def test_labels_agree_whichever_is_given():
    assert GPTNeoConfig().num_labels == 2
    three = GPTNeoConfig(num_labels=3)
    assert three.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert three.label2id == {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2}
    named = GPTNeoConfig(id2label={"0": "no", "1": "yes", "2": "?"}, label2id={"no": 0, "yes": 1, "?": 2})
    assert named.num_labels == 3
    assert named.id2label == {0: "no", 1: "yes", 2: "?"}
    named.num_labels = 3
    assert named.id2label[1] == "yes"
    named.num_labels = 1
    assert (named.id2label, named.label2id) == ({0: "LABEL_0"}, {"LABEL_0": 0})
    assert GPTNeoConfig(id2label={0: "a", 1: "b"}).label2id == {"a": 0, "b": 1}


def test_labels_that_disagree_are_warned_of():
    with pytest.warns(UserWarning, match=r"num_labels=5 but id2label has 2 entries; id2label is used"):
        assert GPTNeoConfig(num_labels=5, id2label={0: "a", 1: "b"}).num_labels == 2


@pytest.mark.parametrize("count", [0, -1, "3"])
def test_a_number_of_labels_that_is_no_positive_int_is_refused(count):
    with pytest.raises(ValueError, match=f"num_labels must be a positive int; got {count!r}"):
        GPTNeoConfig(num_labels=count)


def test_unknown_keys_are_kept_and_code_and_private_keys_dropped():
    fields = {
        "colour": "blue",
        "_secret": 1,
        "_name_or_path": "/home/someone",
        "_attn_implementation": "none such",
        "auto_map": {"AutoModel": "evil.Model"},
        "custom_pipelines": {"a": {"impl": "evil.Pipe"}},
        "trust_remote_code": True,
    }
    config = GPTNeoConfig.from_dict(fields)
    assert config.colour == "blue"
    text = config.to_json_string(use_diff=False)
    assert '"colour": "blue"' in text
    assert not any(word in text for word in ("secret", "someone", "evil", "none such", "trust"))
    assert not any(hasattr(config, name) for name in ("_secret", "auto_map", "custom_pipelines"))


def test_an_unknown_problem_type_is_refused():
    with pytest.raises(ValueError, match=r"problem_type must be one of regression, .*; got 'ranking'"):
        GPTNeoConfig(problem_type="ranking")


@pytest.mark.parametrize("dtype", [torch.float16, "float16", "torch.float16"])
def test_the_dtype_is_a_torch_dtype_and_a_name_in_the_file(dtype):
    config = GPTNeoConfig(torch_dtype=dtype)
    assert config.torch_dtype is torch.float16
    assert json.loads(config.to_json_string())["torch_dtype"] == "float16"


def test_a_dtype_that_torch_does_not_have_is_refused_when_asked_for():
    config = GPTNeoConfig.from_dict({"torch_dtype": "float33"})
    with pytest.raises(ValueError, match=r"torch_dtype must name a dtype of torch, .*; got 'float33'"):
        _ = config.torch_dtype


def test_use_return_dict_follows_its_fields():
    assert GPTNeoConfig().use_return_dict
    assert not GPTNeoConfig(return_dict=False).use_return_dict
    assert not GPTNeoConfig(torchscript=True).use_return_dict


def test_what_a_configuration_gives_away_is_a_copy():
    config = GPTNeoConfig()
    config.to_dict()["attention_types"][0][0].append("global")
    assert GPTNeoConfig().attention_layers == config.attention_layers == ["global", "local"] * 12


def test_configurations_are_equal_when_their_fields_are():
    assert GPTNeoConfig() == GPTNeoConfig()
    assert GPTNeoConfig() != GPTNeoConfig(use_cache=False)
    assert GPTNeoConfig() != PretrainedConfig()
    assert '"vocab_size": 50257' in repr(GPTNeoConfig())
    config = GPTNeoConfig()
    config.update({"use_cache": False, "num_attention_heads": 2})
    assert (config.use_cache, config.num_heads) == (False, 2)


# -- overrides -----------------------------------------------------------------------------------------------------


def test_keyword_arguments_replace_the_file_s_values(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FILES["EleutherAI/gpt-neo-125m"]))
    config, unused = GPTNeoConfig.from_pretrained(
        tmp_path,
        num_labels=3,
        use_cache=False,
        window_size=4,
        summary_type="last",
        attn_implementation="eager",
        nonsense=1,
        return_unused_kwargs=True,
    )
    assert unused == {"nonsense": 1}
    assert (config.num_labels, config.use_cache, config.window_size, config.summary_type) == (3, False, 4, "last")
    assert config._attn_implementation == "eager"
    assert not hasattr(GPTNeoConfig.from_pretrained(tmp_path, nonsense=1), "nonsense")


def test_a_new_number_of_labels_replaces_the_file_s_labels_and_an_equal_one_keeps_them():
    fields = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}
    assert GPTNeoConfig.from_dict(fields, num_labels=3).id2label[2] == "LABEL_2"
    assert GPTNeoConfig.from_dict(fields, num_labels=2).label2id == {"no": 0, "yes": 1}
    assert GPTNeoConfig.from_dict(fields, id2label={0: "a"}, label2id={"a": 0}).num_labels == 1


def test_new_attention_types_replace_the_file_s_layers_too():
    file = FILES["roneneldan/TinyStories-33M"]
    config = GPTNeoConfig.from_dict(file, attention_types=[[["global"], 3]], num_layers=3)
    assert config.attention_layers == ["global"] * 3
    assert file["attention_layers"] == ["global", "local"] * 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 3}, r"must describe num_layers=3 layers; it describes 24\. .*\[\[\[\"global\"\], 3\]\]"),
        ({"attention_types": [[["sparse"], 24]]}, r"may name 'global' and 'local'; got 'sparse'"),
        ({"attention_layers": ["local"] * 24}, r"is not what attention_types .* Change attention_types"),
        ({"window_size": 0}, r"window_size must be a positive int.*got 0"),
        ({"window_size": None}, r"window_size must be a positive int.*got None"),
    ],
)
def test_attention_that_does_not_fit_the_layers_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTNeoConfig(**fields)


@pytest.mark.parametrize(
    "types", ["global", [["global"]], [["global", 24]], [[["global"], "24"]], 24, None, [[[1], 24]]], ids=str
)
def test_attention_types_of_another_form_are_refused(types):
    with pytest.raises(ValueError, match="attention_types"):
        GPTNeoConfig(attention_types=types)


def test_attention_types_expand_in_order():
    types = [[["global"], 1], [["local", "local"], 2], [("global", "local"), 1]]
    expected = ["global", "local", "local", "local", "local", "global", "local"]
    assert GPTNeoConfig.expand_attention_types_params(types) == expected
    assert GPTNeoConfig(attention_types=types, num_layers=7).attention_layers == expected


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_heads": 0}, "num_heads must be a positive int; got 0"),
        ({"hidden_size": "abc"}, "hidden_size must be a positive int; got 'abc'"),
        ({"vocab_size": 1.5}, "vocab_size must be a positive int; got 1.5"),
        ({"window_size": True}, "window_size must be a positive int; got True"),
        ({"max_position_embeddings": -1}, "max_position_embeddings must be a positive int; got -1"),
        ({"num_layers": "2"}, "num_layers must be a positive int; got '2'"),
        ({"num_layers": 10**9, "attention_types": [[["global"], 10**9]]}, "num_layers must be at most 10,000"),
        ({"attention_types": [[["global"], 10**12]]}, "describes 1000000000000"),
        ({"num_labels": 10**9}, "num_labels must be at most 1,000,000"),
        ({"id2label": [1]}, "id2label must map"),
        ({"pruned_heads": [1]}, "pruned_heads must be like"),
    ],
)
def test_a_field_of_an_odd_kind_or_size_is_named_before_any_memory_is_taken(tmp_path, fields, words):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neo"} | fields))
    with pytest.raises(ValueError, match=words):
        GPTNeoConfig.from_pretrained(tmp_path)


def test_fields_that_would_hide_methods_are_dropped(tmp_path):
    hostile = {"to_dict": "x", "use_return_dict": 1, "save_pretrained": None, "hidden_size": 8, "num_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(hostile))
    config = GPTNeoConfig.from_pretrained(tmp_path)
    assert config.to_dict()["hidden_size"] == 8
    assert config.use_return_dict is True
