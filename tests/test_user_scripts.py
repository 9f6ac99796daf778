"""Things that scripts written for the documented release do, beyond the documented pages' examples."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from triptych import (
    AutoModelForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoForSequenceClassification,
    GPTNeoModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from triptych.activations_torch import ACTIVATIONS
from triptych.errors import LoadingWarning
from triptych.runtime.attention import AttentionMask


def make(**fields) -> GPTNeoForCausalLM:
    torch.manual_seed(0)
    known = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "window_size": 5,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 2]],
        "bos_token_id": 0,
        "eos_token_id": None,
        "initializer_range": 0.3,
    }
    return GPTNeoForCausalLM(GPTNeoConfig(**(known | fields))).eval()


@pytest.fixture
def model() -> GPTNeoForCausalLM:
    return make()


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.tensor([[3, 7, 11, 2, 5]])


def test_text_sampled_in_the_middle_of_a_checkpointed_training_run_is_the_models_own(model, prompt):
    expected = model.generate(prompt, max_new_tokens=10)
    model.gradient_checkpointing_enable()
    model.train()
    torch.testing.assert_close(model.generate(prompt, max_new_tokens=10), expected)


def test_gradient_checkpointing_can_be_asked_for_in_the_configuration(model, tmp_path):
    model.config.gradient_checkpointing = False  # as the published files have it
    model.save_pretrained(tmp_path)
    loaded = GPTNeoForCausalLM.from_pretrained(tmp_path, gradient_checkpointing=True, use_cache=False)
    assert loaded.is_gradient_checkpointing
    assert "gradient_checkpointing" not in loaded.config.to_dict()
    assert not GPTNeoForCausalLM.from_pretrained(tmp_path, gradient_checkpointing=False).is_gradient_checkpointing


class AlwaysSeven(GPTNeoForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., 7] = 1e4
        return out


class OpenAIGPTAlwaysSeven(OpenAIGPTLMHeadModel):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., 7] = 1e4
        return out


def test_generate_calls_a_users_own_forward(model, prompt):
    other_family = OpenAIGPTConfig(vocab_size=50, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    for own in (AlwaysSeven(model.config), OpenAIGPTAlwaysSeven(other_family)):
        assert own.generate(prompt, max_new_tokens=3)[0, -3:].tolist() == [7, 7, 7]


def test_generate_calls_hooks_on_the_model(model, prompt):
    expected, seen = model.generate(prompt, max_new_tokens=3), []
    handle = model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.shape[1]))
    torch.testing.assert_close(model.generate(prompt, max_new_tokens=3), expected)
    assert seen == [5, 1, 1]
    handle.remove()
    model.generate(prompt, max_new_tokens=3)
    assert len(seen) == 3


def test_generate_calls_a_forward_that_was_put_on_the_model(model, prompt):
    expected, calls, forward = model.generate(prompt, max_new_tokens=4), [], model.forward

    def counted(*args, **kwargs):
        calls.append(1)
        return forward(*args, **kwargs)

    model.forward = counted
    torch.testing.assert_close(model.generate(prompt, max_new_tokens=4), expected)
    assert len(calls) == 4


def test_hooks_on_attention_and_activation_modules_fire(model, prompt):
    seen = []
    for name, module in model.transformer.h[1].named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.append(name))
    model(prompt)
    assert {"attn", "attn.attention", "mlp", "mlp.act", "ln_1"} <= set(seen)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_a_model_of_any_activation_can_be_pickled_and_copied(name, prompt):
    model = make(activation_function=name)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        torch.testing.assert_close(other(prompt).logits, model(prompt).logits, rtol=0, atol=0)


def test_threads_that_continue_one_past_do_not_disturb_each_other(model):
    ids = torch.randint(0, 50, (1, 40))
    with torch.no_grad():
        past = model(ids[:, :20]).past_key_values
        past = model(ids[:, 20:21], past_key_values=past).past_key_values  # now there is room behind it
        tails = torch.randint(0, 50, (24, 1, 1))
        alone = [model(torch.cat((ids[:, :21], tail), dim=1)).logits[:, -1] for tail in tails]

        def go_on(tail: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return model(tail, past_key_values=past).logits[:, -1]

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(go_on, tails))
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def test_models_loaded_in_several_threads_each_get_their_dtype(model, tmp_path):
    model.save_pretrained(tmp_path)
    wanted = [torch.float16, torch.float32, torch.bfloat16, torch.float64] * 4
    with ThreadPoolExecutor(4) as pool:
        loaded = pool.map(lambda dtype: GPTNeoForCausalLM.from_pretrained(tmp_path, torch_dtype=dtype), wanted)
        assert [model.dtype for model in loaded] == wanted
    assert torch.get_default_dtype() is torch.float32


class WithOwnHead(GPTNeoForCausalLM):
    def __init__(self, config: GPTNeoConfig) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.ones(2))
        self.mixer = nn.MultiheadAttention(8, 2)
        self.register_buffer("scale", torch.full((2,), 3.0))


@pytest.mark.filterwarnings("ignore::triptych.errors.LoadingWarning")
def test_what_a_users_own_constructor_computed_is_kept_where_the_checkpoint_has_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = WithOwnHead.from_pretrained(tmp_path)
    assert loaded.gain.tolist() == [1, 1]
    assert loaded.scale.tolist() == [3, 3]
    assert loaded.mixer.in_proj_weight.std() > 0.05


class WithTeacher(GPTNeoForCausalLM):
    def __init__(self, config: GPTNeoConfig, teacher: str) -> None:
        super().__init__(config)
        self.teacher = GPTNeoModel.from_pretrained(teacher)


@pytest.mark.filterwarnings("ignore::triptych.errors.LoadingWarning")
def test_a_constructor_may_load_another_model(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = WithTeacher.from_pretrained(tmp_path, teacher=str(tmp_path))
    torch.testing.assert_close(loaded.teacher.wte.weight, model.transformer.wte.weight, rtol=0, atol=0)


class WithOptions(GPTNeoForCausalLM):
    def __init__(self, config: GPTNeoConfig, **options: float) -> None:
        super().__init__(config)
        self.options = options


def test_a_constructor_with_any_keyword_arguments_gets_them(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert WithOptions.from_pretrained(tmp_path, alpha=3).options == {"alpha": 3}


def test_two_models_made_from_one_configuration_do_not_share_it(model):
    first, second = (AutoModelForCausalLM.from_config(model.config) for _ in range(2))
    first.resize_token_embeddings(60)
    assert (second.config.vocab_size, model.config.vocab_size) == (50, 50)
    assert AutoModelForCausalLM.from_config(model.config, torch_dtype="bfloat16").dtype is torch.bfloat16


def test_ids_of_choices_keep_their_axes(model):
    ids = torch.randint(0, 50, (2, 3, 6))
    out = model(ids, attention_mask=torch.ones(2, 3, 6), labels=ids)
    flat = model(ids.flatten(0, 1), labels=ids.flatten(0, 1))
    assert out.logits.shape == (2, 3, 6, 50)
    torch.testing.assert_close(out.logits.flatten(0, 1), flat.logits)
    torch.testing.assert_close(out.loss, flat.loss)


def test_masks_follow_layers_to_their_device():
    padding = torch.tensor([[0, 1, 1]])
    mask = AttentionMask.of(padding, 1, 3, 0, torch.device("cpu"))
    there = mask.on(torch.device("meta"))
    assert there.padding.device.type == there.dense(2).device.type == "meta"
    assert mask.on(torch.device("meta")) is there
    assert mask.on(torch.device("cpu")) is mask


def test_an_unknown_problem_type_is_refused_where_it_is_used(model):
    classifier = GPTNeoForSequenceClassification(model.config)
    classifier.config.problem_type = "classification"
    with pytest.raises(ValueError, match=r"problem_type must be one of .* got 'classification'"):
        classifier(torch.tensor([[1, 2]]), labels=torch.tensor([1]))


def test_names_of_tensors_cannot_write_to_the_terminal(model, tmp_path):
    strange = {**model.state_dict(), "evil\x1b[2J": torch.zeros(1)}
    with pytest.warns(LoadingWarning) as found:
        GPTNeoForCausalLM.from_pretrained(None, config=model.config, state_dict=strange)
    assert "\x1b" not in str(found[0].message)
