"""A device that this machine has not: every way of asking for it gives an error that names what it has."""

import re
from types import SimpleNamespace

import pytest
import torch
import typer

from gpt_neo_models import gap, make, tokens
from triptych import GPTNeoForCausalLM
from triptych.cli.device import device_named
from triptych.runtime import devices

ABSENT = "cuda:77"  # on any machine


@pytest.mark.parametrize("device", [ABSENT, 77, torch.device(ABSENT), "hpu"])
def test_loading_to_it_names_what_the_machine_has(tmp_path, device):
    make().save_pretrained(tmp_path)
    has = f"It has {devices.machine()}; choose from that. (PyTorch: "
    rule = re.escape(f"device_map must be a device of this machine; got {device!r}. {has}")
    for device_map in (device, {"": device}):
        with pytest.raises(ValueError, match=rule):
            GPTNeoForCausalLM.from_pretrained(tmp_path, device_map=device_map)


def test_a_device_map_that_is_none_still_names_the_strategies(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"device_map must be one of auto, balanced, .*; got 'everywhere'"):
        GPTNeoForCausalLM.from_pretrained(tmp_path, device_map="everywhere")


def test_a_model_that_is_moved_there_names_what_the_machine_has_and_stays_as_it_was():
    model = make()
    expected = model(tokens()).logits
    has = f"It has {devices.machine()}; choose from that. (PyTorch: "
    rule = re.escape(f"A model can be moved to a device of this machine only. {has}")
    for move in (
        lambda: model.to(ABSENT),
        lambda: model.cuda(77),
        lambda: model.to(device=ABSENT, dtype=torch.float16),
    ):
        with pytest.raises(ValueError, match=rule):
            move()
    assert model.device.type == "cpu"
    assert gap(model(tokens()).logits, expected) == 0


def test_a_move_that_fails_for_another_reason_says_that_one():
    model = make().to("meta")
    with pytest.raises(NotImplementedError, match="meta"):
        model.to("cpu")


def test_the_command_line_names_what_the_machine_has():
    rule = re.escape(f"--device must be a device of this machine; got '{ABSENT}'. It has {devices.machine()}; choose")
    with pytest.raises(typer.BadParameter, match=rule):
        device_named(ABSENT)
    assert device_named("cpu") == torch.device("cpu")


def test_what_the_machine_has_is_told_by_name(monkeypatch):
    def some(*names: str) -> SimpleNamespace:
        return SimpleNamespace(device_count=lambda: len(names), get_device_name=names.__getitem__)

    monkeypatch.setattr(torch, "xpu", some())
    monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(torch, "cuda", some())
    assert devices.machine() == "only the CPU"
    monkeypatch.setattr(torch, "cuda", some("NVIDIA H100", "NVIDIA A100"))
    assert devices.machine() == "the CPU and cuda:0 (NVIDIA H100), cuda:1 (NVIDIA A100)"
    monkeypatch.setattr(torch, "cuda", some())
    monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: True))
    assert devices.machine() == "the CPU and mps"


@pytest.mark.parametrize("dtype", ["int8", torch.int8, "float8_e4m3fn", "int4"])
def test_a_dtype_of_few_bits_is_refused_and_the_error_names_quantization(tmp_path, dtype):
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of 16 bits or more .* pass quantization='int8'"):
        GPTNeoForCausalLM.from_pretrained(tmp_path, torch_dtype=dtype)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has it")
def test_what_pytorch_goes_on_to_say_is_left_out() -> None:
    with pytest.raises(ValueError, match="MPS") as caught:
        devices.check_device("mps")
    assert len(str(caught.value)) < 300
