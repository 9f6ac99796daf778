"""`synced_gpus`: processes whose texts end at different times run their models equally often."""

import os
import subprocess
import sys
from pathlib import Path

PROCESS = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from gpt_neo_models import make
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
model, runs = make(), []
model.transformer.register_forward_hook(lambda *_: runs.append(1))
ids = torch.tensor([[5, 6, 7]])
for way in ({}, {"penalty_alpha": 0.6, "top_k": 3}, {"prompt_lookup_num_tokens": 3}, {"guidance_scale": 1.5},
            {"num_beams": 2}):
    runs.clear()
    options = {"max_new_tokens": 3 + 6 * rank, "eos_token_id": None} | way
    text = model.generate(ids, synced_gpus=True, **options)
    counts = [torch.zeros(1) for _ in range(2)]
    dist.all_gather(counts, torch.tensor([float(len(runs))]))
    assert counts[0] == counts[1], (way, counts)
    assert text.tolist() == model.generate(ids, **options).tolist(), way
print("in step")
"""


def test_processes_run_their_models_equally_often_whatever_the_strategy(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [str(tmp_path / "meeting"), str(Path(__file__).parent)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert out == "in step\n"
