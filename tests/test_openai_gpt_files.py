"""OpenAI GPT models are resized, pruned, tied, saved and loaded, from old files and new ones."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt_neo_models import gap, tokens
from openai_gpt_models import make
from triptych import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from triptych.errors import LoadingWarning
from triptych.models.openai_gpt.configuration import OpenAIGPTConfig
from triptych.models.openai_gpt.modeling_torch import (
    OpenAIGPTDoubleHeadsModel,
    OpenAIGPTForSequenceClassification,
    OpenAIGPTLMHeadModel,
    OpenAIGPTModel,
)

TOLERANCE = 2e-5
CLASSES = (OpenAIGPTModel, OpenAIGPTLMHeadModel, OpenAIGPTDoubleHeadsModel, OpenAIGPTForSequenceClassification)
REFERENCE = Path(__file__).parent / "golden" / "openai_gpt" / "generation_model"


def first(model, ids=None, **inputs):
    """The first output of a model without labels."""
    with torch.no_grad():
        return model(tokens() if ids is None else ids, **inputs)[0]


# -- vocabulary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [OpenAIGPTLMHeadModel, OpenAIGPTDoubleHeadsModel])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [20, 40])
def test_resizing_keeps_old_rows_and_starts_new_ones_at_the_mean(model_class, tied, size):
    model = make(model_class, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.detach().clone()
    embedding = model.resize_token_embeddings(size)
    assert embedding is model.get_input_embeddings() is model.transformer.tokens_embed
    assert model.config.vocab_size == embedding.num_embeddings == model.lm_head.out_features == size
    assert (model.lm_head.weight is embedding.weight) == tied
    rows = min(31, size)
    assert torch.equal(embedding.weight[:rows], before[:rows])
    assert size < 31 or gap(embedding.weight[31:], before.mean(0).expand(size - 31, -1)) <= 1e-6
    assert first(model, tokens(vocab=rows)).shape == (2, 9, size)


def test_embeddings_can_be_replaced():
    model, new = make(tie_word_embeddings=False), torch.nn.Linear(12, 31, bias=False)
    model.set_output_embeddings(new)
    assert model.get_output_embeddings() is model.lm_head is new
    tied, embedding = make(OpenAIGPTDoubleHeadsModel), torch.nn.Embedding(31, 12)
    tied.set_input_embeddings(embedding)
    tied.tie_weights()
    assert tied.lm_head.weight is tied.transformer.tokens_embed.weight is embedding.weight


# -- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("gone", [{0: [1]}, {0: [0, 2], 1: [1]}], ids=str)
def test_a_pruned_model_equals_the_whole_one_with_those_heads_masked(model_class, implementation, gone):
    model, mask = make(model_class, attn_implementation=implementation), torch.ones(2, 3)
    for layer, heads in gone.items():
        mask[layer, heads] = 0
    expected, size = first(model, head_mask=mask), model.num_parameters()
    model.prune_heads(gone)
    assert gap(first(model), expected) <= TOLERANCE
    assert size - model.num_parameters() == sum(map(len, gone.values())) * (4 * 4 * 12 + 3 * 4)
    assert model.config.pruned_heads == gone


def test_heads_pruned_one_after_another_are_numbered_as_at_first():
    together, apart, mask = make(), make(), torch.ones(2, 3)
    mask[1, 0] = 0
    together.prune_heads({0: [0, 1], 1: [2]})
    apart.prune_heads({0: [0]})
    apart.prune_heads({1: [2], 0: [1, 0]})
    assert apart.config.pruned_heads == together.config.pruned_heads == {0: [0, 1], 1: [2]}
    assert gap(first(apart, head_mask=mask), first(together, head_mask=mask)) == 0
    together.prune_heads({1: [0]})
    assert gap(first(together), first(apart, head_mask=mask)) <= TOLERANCE


def test_a_pruned_model_is_saved_and_loaded(tmp_path):
    model = make()
    model.prune_heads({0: [0, 1]})
    model.save_pretrained(tmp_path)
    again = OpenAIGPTLMHeadModel.from_pretrained(tmp_path)
    assert gap(first(again), first(model)) == 0
    assert again.config.pruned_heads == {0: [0, 1]}


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3KB"}, {"safe_serialization": False}], ids=str)
def test_saving_and_loading_is_the_identity(model_class, options, tmp_path):
    model = make(model_class, num_labels=4)
    model.save_pretrained(tmp_path, **options)
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert gap(first(again), first(model)) == 0
    assert again.config.to_dict() | {"architectures": None} == model.config.to_dict() | {"architectures": None}


@pytest.mark.filterwarnings("ignore::triptych.errors.LoadingWarning")
def test_a_bare_checkpoint_loads_into_a_model_with_a_head_and_the_other_way_round(tmp_path):
    bare, double = make(OpenAIGPTModel), make(OpenAIGPTDoubleHeadsModel, seed=1)
    bare.save_pretrained(tmp_path / "bare")
    double.save_pretrained(tmp_path / "double")
    with_head, info = OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "bare", output_loading_info=True)
    assert gap(first(with_head.transformer), first(bare)) == 0
    assert not any(info.values())  # the head is tied, so nothing is missing
    without, info = OpenAIGPTModel.from_pretrained(tmp_path / "double", output_loading_info=True)
    assert gap(first(without), first(double.transformer)) == 0
    assert not info["missing_keys"]
    other, info = OpenAIGPTForSequenceClassification.from_pretrained(tmp_path / "double", output_loading_info=True)
    assert gap(first(other.transformer), first(double.transformer)) == 0
    assert info["missing_keys"] == ["score.weight"]


def test_what_is_missing_is_initialised_as_documented(tmp_path):
    make(OpenAIGPTModel, n_embd=96, n_layer=1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: x for name, x in weights.items() if "mlp.c_fc" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.warns(LoadingWarning, match=r"h\.0\.mlp\.c_fc\.bias, h\.0\.mlp\.c_fc\.weight"):
        model = OpenAIGPTModel.from_pretrained(tmp_path)
    assert model.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert bool((model.h[0].mlp.c_fc.bias == 0).all())
    assert torch.equal(model.h[0].mlp.c_proj.weight, weights["h.0.mlp.c_proj.weight"])


def test_buffers_of_old_checkpoints_are_dropped_without_a_word(tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
    weights["transformer.position_ids"] = torch.arange(40)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, info = OpenAIGPTLMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert gap(first(again), first(model)) == 0


def test_a_weight_of_a_linear_layer_in_place_of_the_published_one_is_refused(tmp_path):
    """(out, in) where the files have (in, out)."""
    make().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    weights[name] = weights[name].t().contiguous()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{name}.*\(36, 12\)"):
        OpenAIGPTLMHeadModel.from_pretrained(tmp_path)


def test_the_published_configuration_keeps_its_old_fields_and_other_names(tmp_path):
    facts = json.loads((REFERENCE.parent / "facts.json").read_text())["configs"]["published"]
    (tmp_path / "config.json").write_text(json.dumps(facts["fields"]))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is OpenAIGPTConfig
    assert (config.n_ctx, config.n_special, config.predict_special_tokens) == (512, 0, True)
    assert config.task_specific_params == {"text-generation": {"do_sample": True, "max_length": 50}}
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    config.max_position_embeddings = 64
    assert config.n_positions == 64
    with torch.device("meta"):
        assert OpenAIGPTLMHeadModel(config).num_parameters() == 116_534_784 - (512 - 64) * 768


@pytest.mark.filterwarnings("ignore::triptych.errors.LoadingWarning")
def test_the_auto_classes_find_the_family():
    assert type(AutoModel.from_pretrained(REFERENCE)) is OpenAIGPTModel
    assert type(AutoModelForCausalLM.from_pretrained(REFERENCE)) is OpenAIGPTLMHeadModel
    labelled = AutoModelForSequenceClassification.from_pretrained(REFERENCE, num_labels=3)
    assert type(labelled) is OpenAIGPTForSequenceClassification
    assert labelled.score.weight.shape == (3, 30)
