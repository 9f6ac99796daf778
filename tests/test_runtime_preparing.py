"""Prepared decoding: the numbers of `forward`, and an end to it when the model is no longer what it was."""

import copy
import pickle
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gpt_neo_models
from decoding_models import FAMILIES, by_forward, decoder, is_prepared, written
from gpt_neo_models import tokens
from triptych.runtime import packing, preparing


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


def assert_as_forward(model: Any, ids: torch.Tensor, new: int = 8, **options: Any) -> None:
    got, scores = written(model, ids, new, **options)
    assert is_prepared(model)
    want, true_scores = by_forward(model, ids, new, **options)
    assert torch.equal(got, want)
    assert (scores - true_scores).abs().max() < 2e-5


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_prepared_model_writes_what_forward_writes(model: Any, rows: int) -> None:
    assert_as_forward(model, tokens(rows, 5))


def test_left_padding(model: Any) -> None:
    ids = tokens(3, 6)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :1] = 0
    assert_as_forward(model, ids, attention_mask=mask)


def test_several_sequences_per_prompt(model: Any) -> None:
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 8, "eos_token_id": None}
    torch.manual_seed(0)
    got = model.generate(tokens(2, 5), **options)
    assert is_prepared(model)
    model.prepare_decoding(False)
    torch.manual_seed(0)
    assert torch.equal(got, model.generate(tokens(2, 5), **options))


@pytest.mark.parametrize("family", ["gpt_neo", "fuyu"])  # GPT's documented forward takes no past
def test_given_past_key_values_are_continued_and_stay_as_they_are(family: str) -> None:
    model = FAMILIES[family]()
    ids = tokens(2, 7)
    past = model.generate(ids[:, :5], max_new_tokens=1, eos_token_id=None, return_dict_in_generate=True).past_key_values
    before = [key.clone() for key, _ in past]
    legacy = tuple((key.clone(), value.clone()) for key, value in past)
    assert_as_forward(model, ids, past_key_values=past)
    assert all(torch.equal(key, then) for (key, _), then in zip(past, before, strict=True))
    assert_as_forward(model, ids, past_key_values=legacy)


@pytest.mark.parametrize("prefix", [1, 2, 3, 4, 254, 255, 256, 257, 2040])
def test_every_prefix_around_the_window(prefix: int) -> None:
    window = 256 if prefix > 100 else 3
    model = gpt_neo_models.make(max_position_embeddings=2048, window_size=window)
    ids = tokens(1, prefix)
    got = model.generate(ids, max_new_tokens=6, eos_token_id=None)  # the windowed cache
    assert is_prepared(model)
    assert torch.equal(got, by_forward(model, ids, 6)[0])
    assert_as_forward(model, ids, 6)  # the documented cache


@pytest.mark.parametrize("function", ["gelu_new", "gelu", "relu", "silu", "relu2"])
def test_activation_functions_and_eager_attention(function: str) -> None:
    model = gpt_neo_models.make(activation_function=function)
    model.config._attn_implementation = "eager"
    assert_as_forward(model, tokens(2, 5))


@pytest.mark.parametrize("family", ["gpt_neo", "openai_gpt"])
def test_pruned_heads(family: str) -> None:
    model = FAMILIES[family]()
    model.prune_heads({0: [1]})
    assert_as_forward(model, tokens(2, 5))


def change_in_place(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def change_by_optimizer(model: Any) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=tokens(2, 6), labels=tokens(2, 6)).loss.backward()
    optimizer.step()
    model.eval()


def change_by_loading(model: Any) -> None:
    model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()})


def change_of_a_parameter(model: Any) -> None:
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 1.5)


def change_of_size(model: Any) -> None:
    model.resize_token_embeddings(40)


def change_of_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def change_through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def change_of_a_row_through_data(model: Any) -> None:
    head = model.get_output_embeddings()
    head.weight.data[5] += 1  # as one does for a token


def change_by_merging_an_adapter(model: Any) -> None:
    for module in model.modules():
        if type(module).__name__ in ("Linear", "Conv1D"):
            wide = torch.randn(len(module.weight), 1), torch.randn(1, module.weight.shape[1])
            module.weight.data += 0.1 * wide[0] @ wide[1]


def change_of_settings(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.5


CHANGES = [
    change_in_place,
    change_by_optimizer,
    change_by_loading,
    change_of_a_parameter,
    change_of_size,
    change_of_data,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_prepared_anew(model: Any, change: Any) -> None:
    before = written(model, tokens(2, 5))[1]
    assert is_prepared(model)
    change(model)
    assert not is_prepared(model)
    assert_as_forward(model, tokens(2, 5))
    after = written(model, tokens(2, 5))[1]
    assert after.shape != before.shape or (after - before).abs().max() > 1e-3


UNRECORDED = [change_through_data, change_of_a_row_through_data, change_by_merging_an_adapter, change_of_settings]


@pytest.mark.parametrize("change", UNRECORDED)
def test_changes_that_pytorch_does_not_record_are_seen_by_the_next_generate(model: Any, change: Any) -> None:
    before = written(model, tokens(2, 5))[1]
    change(model)
    assert_as_forward(model, tokens(2, 5))
    assert (written(model, tokens(2, 5))[1] - before).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (4, 4), (1, 5), (8, 1)])
def test_a_sample_of_a_matrix_has_a_number_of_each_row_and_column(shape: tuple[int, int]) -> None:
    sample = preparing._sample(torch.arange(shape[0] * shape[1]).view(shape))
    assert {int(each) // shape[1] for each in sample} == set(range(shape[0]))
    assert {int(each) % shape[1] for each in sample} == set(range(shape[1]))


def test_methods_that_are_replaced_and_hooks_for_all_modules_are_called(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(model, tokens(2, 5))
    block = next(each for each in model.modules() if type(each).__name__ in model._no_split_modules)
    published = type(block.mlp).forward
    with monkeypatch.context() as patch:
        patch.setattr(type(block.mlp), "forward", lambda self, x: published(self, x) * 2)
        got = written(model, tokens(2, 5))
        assert not is_prepared(model)
        assert torch.equal(got[1], by_forward(model, tokens(2, 5))[1])
    assert_as_forward(model, tokens(2, 5))
    seen: list[Any] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    written(model, tokens(2, 5))
    handle.remove()
    assert seen.count(block) == 8


def test_layers_with_and_without_a_bias_are_fused() -> None:
    model = gpt_neo_models.make()
    for block in model.transformer.h:
        block.attn.attention.q_proj = nn.Linear(12, 12).eval()
    assert_as_forward(model, tokens(2, 5))


def test_another_dtype_goes_through_forward_and_back(model: Any) -> None:
    ids = tokens(2, 5)
    want = written(model, ids)[0]
    model.bfloat16()
    assert not is_prepared(model)
    written(model, ids)
    assert not is_prepared(model)
    model.float()
    assert_as_forward(model, ids)
    assert want.shape == (*ids.shape[:1], 13)


def test_hooks_and_forwards_of_ones_own_are_called_at_every_token(model: Any) -> None:
    written(model, tokens(2, 5))
    seen = []
    block = next(each for each in model.modules() if type(each).__name__ in model._no_split_modules)
    handle = block.register_forward_hook(lambda *_: seen.append(1))
    written(model, tokens(2, 5))
    assert len(seen) == 8
    handle.remove()
    assert_as_forward(model, tokens(2, 5))
    head = model.get_output_embeddings()
    head.forward = lambda x: nn.Linear.forward(head, x) * 2
    double = written(model, tokens(2, 5))[1]
    del head.forward
    assert (double - 2 * written(model, tokens(2, 5))[1])[0].abs().max() < 1e-4


class _Louder(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


def test_layers_of_ones_own_are_not_replaced() -> None:
    model = gpt_neo_models.make()
    plain = written(model, tokens(2, 5))[1]
    louder = _Louder(12, 31, bias=False)
    louder.weight = model.lm_head.weight
    model.lm_head = louder
    scores = written(model, tokens(2, 5))[1]
    assert not is_prepared(model)
    assert (scores[0] - 2 * plain[0]).abs().max() < 1e-4


def test_states_and_weights_that_are_asked_for_come_from_forward(model: Any) -> None:
    out = model.generate(
        tokens(1, 4),
        max_new_tokens=3,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert [states[-1].shape[1] for states in out.hidden_states] == [4, 1, 1]
    assert out.attentions[-1][0].shape[-1] == 6


def test_copies_and_pickles_leave_the_packed_weights_behind(model: Any) -> None:
    ids = tokens(2, 5)
    want = written(model, ids)[0]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert decoder(other)._prepared is None
        change_in_place(model)  # the copy is a model of its own
        assert torch.equal(written(other, ids)[0], want)


def test_preparing_shows_nowhere_and_can_be_undone(model: Any) -> None:
    before = list(model.state_dict())
    written(model, tokens(2, 5))
    assert list(model.state_dict()) == before
    model.prepare_decoding(False)
    written(model, tokens(2, 5))
    assert decoder(model)._prepared is None
    model.prepare_decoding()
    assert_as_forward(model, tokens(2, 5))
    model.train()
    assert decoder(model)._prepared is None


def test_gradients_flow_through_a_prepared_model(model: Any) -> None:
    written(model, tokens(2, 5))
    model(input_ids=tokens(2, 6), labels=tokens(2, 6)).loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "vision" not in name)


def test_a_copy_that_takes_too_much_of_the_memory_is_not_made(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "available_memory", lambda: 1000)
    ids = tokens(2, 5)
    got = written(model, ids)
    assert not is_prepared(model)
    assert torch.equal(got[0], by_forward(model, ids)[0])
    model.prepare_decoding(True)  # the user wants it
    assert_as_forward(model, ids)


def test_packing_that_fails_warns_once_and_writes_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    want = by_forward(model, tokens(2, 5))[0]

    def fail(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(packing, "_rows", fail)
    with pytest.warns(UserWarning, match="no such instruction"):
        got = written(model, tokens(2, 5))[0]
    assert torch.equal(got, want)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(written(model, tokens(2, 5))[0], want)


def test_a_processor_that_cannot_multiply_packed_weights_is_found_out_while_packing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = gpt_neo_models.make()
    want = by_forward(model, tokens(2, 5))[0]
    monkeypatch.setitem(packing._FUSED, packing.gelu_tanh, ("no such function", ""))
    with pytest.warns(UserWarning, match="could not be packed"):
        assert torch.equal(written(model, tokens(2, 5))[0], want)


@pytest.mark.parametrize(
    "files",
    [
        {"memory.max": "5000", "memory.current": "1500", "memory.stat": "anon 7\ninactive_file 400"},
        {
            "memory/memory.limit_in_bytes": "5000",
            "memory/memory.usage_in_bytes": "1500",
            "memory/memory.stat": "cache 7\ntotal_inactive_file 400",
        },
    ],
)
def test_what_a_container_allows_counts(files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_CONTROL_GROUPS", tmp_path)
    machine = packing.available_memory()
    assert machine is None or machine > 5000
    (tmp_path / "memory").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert packing.available_memory() == 3900
    (tmp_path / next(iter(files))).write_text("max\n")
    assert packing.available_memory() != 3900


def test_threads_that_start_at_once_prepare_a_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt_neo_models.make()
    made, start = [], threading.Barrier(4)
    prepare = preparing._prepare
    monkeypatch.setattr(preparing, "_prepare", lambda *each: made.append(1) or time.sleep(0.1) or prepare(*each))

    def write() -> None:
        start.wait()
        written(model, tokens(1, 4), 2)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_threads_share_a_model(model: Any) -> None:
    prompts = [tokens(1, 4, seed) for seed in range(6)]
    want = [by_forward(model, ids)[0] for ids in prompts]
    model.prepare_decoding()
    got: dict[int, torch.Tensor] = {}

    def write(index: int) -> None:
        got[index] = written(model, prompts[index])[0]

    threads = [threading.Thread(target=write, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[index], each) for index, each in enumerate(want))
