"""What every PyTorch model can do: resize, prune, tie, report its size, be copied and moved."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import nn

from gpt_neo_models import SMALL, gap, make, tokens
from triptych.configuration import PretrainedConfig
from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import (
    GPTNeoForCausalLM,
    GPTNeoForQuestionAnswering,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoModel,
)

TOLERANCE = 2e-5
CLASSES = (
    GPTNeoModel,
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoForTokenClassification,
    GPTNeoForQuestionAnswering,
)


# -- initial weights -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", CLASSES)
def test_initial_weights_follow_the_documented_distribution(model_class):
    torch.manual_seed(0)
    fields = SMALL | {"hidden_size": 96, "vocab_size": 500, "initializer_range": 0.05}
    model = model_class(GPTNeoConfig(**fields))
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            tolerance = 4 / math.sqrt(weight.numel())
            assert abs(weight.std().item() / 0.05 - 1) < tolerance, name
            assert abs(weight.mean().item() / 0.05) < tolerance, name
        else:
            expected = 1.0 if name.endswith("weight") else 0.0
            assert bool((weight == expected).all()), name


def test_equal_seeds_give_equal_weights():
    assert all(torch.equal(a, b) for a, b in zip(make().parameters(), make().parameters(), strict=True))
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(GPTNeoForCausalLM(GPTNeoConfig(**SMALL)))
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in models), strict=True))


def test_a_model_is_made_from_its_own_configuration_only():
    with pytest.raises(TypeError, match=r"made from a GPTNeoConfig; got PretrainedConfig\. .*from_pretrained"):
        GPTNeoModel(PretrainedConfig())


# -- embeddings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [20, 31, 40])
def test_resizing_keeps_old_rows_and_starts_new_ones_at_the_mean(tied, size):
    model = make(tie_word_embeddings=tied)
    old = [model.transformer.wte.weight.detach().clone(), model.lm_head.weight.detach().clone()]
    embedding = model.resize_token_embeddings(size)
    assert embedding is model.get_input_embeddings() is model.transformer.wte
    assert model.config.vocab_size == embedding.num_embeddings == model.lm_head.out_features == size
    assert (model.lm_head.weight is embedding.weight) == tied
    for before, now in zip(old, (embedding.weight, model.lm_head.weight), strict=True):
        rows = min(31, size)
        assert torch.equal(now[:rows], before[:rows])
        assert gap(now[rows:], before.mean(0).expand(size - rows, -1)) <= 1e-6 if size > rows else len(now) == rows
    output = model(tokens(vocab=rows))
    assert output.logits.shape == (2, 9, size)


def test_growing_the_vocabulary_changes_no_logit_and_hardly_the_loss():
    model, ids = make(), tokens()
    with torch.no_grad():
        before = model(ids, labels=ids)
        model.resize_token_embeddings(34)
        after = model(ids, labels=ids)
    assert gap(after.logits[..., :31], before.logits) <= TOLERANCE
    assert abs(after.loss - before.loss) < math.log(34 / 31) + 0.01


def test_resizing_rounds_up_to_a_multiple():
    model = make()
    assert model.resize_token_embeddings(33, pad_to_multiple_of=16).num_embeddings == 48
    assert model.resize_token_embeddings(pad_to_multiple_of=50).num_embeddings == 50
    assert model.resize_token_embeddings(pad_to_multiple_of=10).num_embeddings == 50
    assert model.config.vocab_size == 50


def test_resizing_without_a_size_changes_nothing():
    model = make()
    embedding = model.transformer.wte
    assert model.resize_token_embeddings() is embedding
    assert model.config.vocab_size == 31


@pytest.mark.parametrize("arguments", [{"new_num_tokens": 0}, {"new_num_tokens": 3.5}, {"pad_to_multiple_of": -8}])
def test_resizing_to_no_positive_int_is_refused(arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=f"{name} must be a positive int; got {value}"):
        make().resize_token_embeddings(**arguments)


def test_resizing_keeps_dtype_mode_and_whether_it_is_trained():
    model = make().to(torch.bfloat16)
    model.transformer.wte.requires_grad_(False)
    embedding = model.resize_token_embeddings(40)
    assert embedding.weight.dtype == torch.bfloat16
    assert not embedding.weight.requires_grad
    assert not embedding.training


@pytest.mark.parametrize("model_class", CLASSES)
def test_input_embeddings_can_be_replaced(model_class):
    model, new = make(model_class), nn.Embedding(31, 12)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is model.base_model.wte is new


def test_output_embeddings_can_be_replaced_where_there_are_any():
    model, new = make(tie_word_embeddings=False), nn.Linear(12, 31, bias=False)
    model.set_output_embeddings(new)
    assert model.get_output_embeddings() is model.lm_head is new
    assert make(GPTNeoModel).get_output_embeddings() is None
    with pytest.raises(TypeError, match="GPTNeoModel has no output embeddings"):
        make(GPTNeoModel).set_output_embeddings(new)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_is_tied_where_the_configuration_says_so(tied):
    model = make(tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    model.set_input_embeddings(nn.Embedding(31, 12))
    model.tie_weights()
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    names = {name for name, _ in model.named_parameters()}
    assert ("lm_head.weight" in names) != tied


# -- heads -----------------------------------------------------------------------------------------------------------


def masked(gone: dict[int, list[int]]) -> torch.Tensor:
    mask = torch.ones(2, 3)
    for layer, heads in gone.items():
        mask[layer, heads] = 0
    return mask


@pytest.mark.parametrize("model_class", CLASSES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("gone", [{0: [1]}, {0: [0, 2], 1: [1]}], ids=str)
def test_a_pruned_model_equals_the_whole_one_with_those_heads_masked(model_class, implementation, gone):
    model, ids = make(model_class, attn_implementation=implementation), tokens()
    with torch.no_grad():
        expected = model(ids, head_mask=masked(gone))[0]
        size = model.num_parameters()
        model.prune_heads(gone)
        assert gap(model(ids)[0], expected) <= TOLERANCE
    assert size - model.num_parameters() == sum(map(len, gone.values())) * 4 * 4 * 12
    assert model.config.pruned_heads == gone
    weights = model(ids, output_attentions=True).attentions
    assert [x.shape[1] for x in weights] == [3 - len(gone.get(layer, ())) for layer in (0, 1)]


def test_heads_pruned_one_after_another_are_numbered_as_at_first():
    together, apart, ids = make(), make(), tokens()
    together.prune_heads({0: [0, 1], 1: [2]})
    apart.prune_heads({0: [0]})
    apart.prune_heads({1: [2]})
    apart.prune_heads({0: [1, 0]})
    assert apart.config.pruned_heads == together.config.pruned_heads == {0: [0, 1], 1: [2]}
    with torch.no_grad():
        assert gap(apart(ids).logits, together(ids).logits) == 0


def test_a_head_mask_of_a_pruned_model_is_numbered_as_at_first():
    model, ids = make(), tokens()
    with torch.no_grad():
        expected = model(ids, head_mask=masked({0: [0, 2]})).logits
        model.prune_heads({0: [0]})
        assert gap(model(ids, head_mask=masked({0: [2]})).logits, expected) <= TOLERANCE


def test_a_pruned_model_continues_from_its_cache():
    model, ids = make(), tokens()
    model.prune_heads({0: [1], 1: [0, 2]})
    with torch.no_grad():
        past = model(ids[:, :5]).past_key_values
        assert [key.shape[1] for key, _ in past] == [2, 1]
        assert gap(model(ids[:, 5:], past_key_values=past).logits, model(ids).logits[:, 5:]) <= TOLERANCE


def test_a_pruned_model_is_made_from_its_configuration():
    model, ids = make(), tokens()
    model.prune_heads({1: [0]})
    again = GPTNeoForCausalLM(GPTNeoConfig.from_dict(model.config.to_dict())).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert gap(again(ids).logits, model(ids).logits) == 0


def test_a_pruned_model_is_saved_and_loaded(tmp_path):
    model, ids = make(), tokens()
    model.prune_heads({0: [0, 1]})
    model.save_pretrained(tmp_path)
    again = GPTNeoForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert gap(again(ids).logits, model(ids).logits) == 0
    assert again.config.pruned_heads == {0: [0, 1]}


@pytest.mark.parametrize("heads", [{2: [0]}, {-1: [0]}, {0: [3]}, {0: [0, 1, 2]}], ids=str)
def test_pruning_what_is_not_there_or_all_there_is_changes_nothing(heads):
    model = make()
    with pytest.raises(ValueError, match=r"of layers 0 to 1 and heads 0 to 2, and leave each layer a head; got heads"):
        model.prune_heads({1: [0], **heads})
    assert model.config.pruned_heads == {}
    assert model.num_parameters() == make().num_parameters()


# -- facts, copies and moves -------------------------------------------------------------------------------------------


def test_dtype_device_and_size_are_those_of_the_parameters():
    model = make()
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert model.get_memory_footprint() == 4 * model.num_parameters()
    model = model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.get_memory_footprint() == 2 * model.num_parameters()
    assert model.half().dtype == torch.float16
    assert model.to("meta").device.type == "meta"
    model.register_buffer("extra", torch.zeros(10, device="meta"))
    assert model.get_memory_footprint() - model.get_memory_footprint(return_buffers=False) == 40


def test_a_tied_head_stays_tied_when_the_model_is_moved_or_copied():
    for model in (make().to(torch.float64), copy.deepcopy(make()), pickle.loads(pickle.dumps(make()))):
        assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_gives_the_same_and_is_independent(copied):
    model, ids = make(), tokens()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    again = copied(model)
    with torch.no_grad():
        expected = model(ids).logits
        assert gap(again(ids).logits, expected) == 0
        again.transformer.wte.weight.zero_()
        again.config.vocab_size = 5
        assert gap(model(ids).logits, expected) == 0
    assert model.config.vocab_size == 31


def test_the_base_model_and_the_dummy_inputs_are_found():
    model = make()
    assert model.base_model is model.transformer
    assert make(GPTNeoModel).base_model.main_input_name == "input_ids"
    assert model(**model.dummy_inputs).logits.shape == (2, 3, 31)
    assert model.max_positions == 40


def test_only_the_language_model_can_generate():
    assert [model_class.can_generate() for model_class in CLASSES] == [False, True, False, False, False]
    assert make(GPTNeoModel).generation_config is None
    with pytest.raises(TypeError, match="GPTNeoModel has no language model head"):
        make(GPTNeoModel).next_token_logits(tokens())


def test_input_gradients_reach_adapters_on_a_frozen_model():
    model = make().requires_grad_(False)
    assert not model(tokens()).logits.requires_grad
    model.enable_input_require_grads()
    model.enable_input_require_grads()  # a second time changes nothing
    assert model(tokens()).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(tokens()).logits.requires_grad
    model.disable_input_require_grads()


def test_input_gradients_stay_on_after_resizing():
    model = make().requires_grad_(False)
    model.enable_input_require_grads()
    model.resize_token_embeddings(40)
    assert model(tokens()).logits.requires_grad
    model.disable_input_require_grads()
    assert not model(tokens()).logits.requires_grad


def test_a_model_on_the_meta_device_is_made_without_weights():
    with torch.device("meta"):
        model = GPTNeoForCausalLM(GPTNeoConfig())
    assert model.num_parameters() == 1_315_575_808
    assert all(weight.is_meta for weight in model.parameters())


def test_nothing_warns_in_a_common_training_step():
    model, ids = make().train(), tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
