"""What low_cpu_mem_usage promises, measured in a process of its own: peak memory at most 1.1 times the weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triptych.models.gpt_neo.configuration import GPTNeoConfig
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM

MEASURE = """
import json, os, resource, sys, torch
from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM
torch.set_num_threads(1)
folder, options = sys.argv[1], json.loads(sys.argv[2])
GPTNeoForCausalLM.from_pretrained(folder + "/small", **options)
def peak():  # bytes
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
if os.path.exists("/proc/self/clear_refs"):
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak of importing
before = peak()
model = GPTNeoForCausalLM.from_pretrained(folder, **options)
for parameter in model.parameters():
    parameter.detach().view(-1)[::256].sum()  # bring every page in
print(json.dumps([peak() - before, sum(p.nbytes for p in model.parameters())]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """About 100 MB of weights, a third of them in one matrix, and a small model beside them."""
    target = tmp_path_factory.mktemp("memory")
    for path, width, vocabulary in ((target, 512, 18_000), (target / "small", 16, 50)):
        config = GPTNeoConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_layers=6,
            num_heads=4,
            attention_types=[[["global", "local"], 3]],
            max_position_embeddings=64,
        )
        with torch.device("meta"):
            model = GPTNeoForCausalLM(config)
        model = model.to_empty(device="cpu")
        model.tie_weights()
        for parameter in model.parameters():
            torch.nn.init.constant_(parameter, 0.5)
        model.save_pretrained(path, max_shard_size="40MB")
    return target


@pytest.mark.parametrize(
    "options",
    [
        {"low_cpu_mem_usage": True},
        {"low_cpu_mem_usage": True, "torch_dtype": "float16"},
        {"low_cpu_mem_usage": True, "torch_dtype": "float64"},
        {},
    ],
    ids=str,
)
def test_the_peak_is_at_most_1_1_times_the_weights(folder, options):
    command = [sys.executable, "-c", MEASURE, str(folder), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, weights = json.loads(done.stdout)
    assert weights > 45e6
    assert peak / weights <= 1.1


def test_loading_does_not_import_pytorchs_compiler(folder):
    """That takes a second, and filling memory that is not there used to need it."""
    code = (
        "import sys; from triptych.models.gpt_neo.modeling_torch import GPTNeoForCausalLM\n"
        "GPTNeoForCausalLM.from_pretrained(sys.argv[1]); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder / "small"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
