"""The benchmark harness: it compares the right way round, says what is missed, and its engine answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(HARNESS))

import bench  # noqa: E402
import report  # noqa: E402


def test_a_ratio_is_taken_over_the_better_reference_whichever_way_is_better():
    speed = bench.Result("speed", "tokens/s", True, {"triptych": 30.0, "reference": 10.0, "transformers": 20.0})
    speed.want_ratio(1.5)
    speed.want_ratio(1.6)
    cost = bench.Result("cost", "s", False, {"triptych": 2.0, "reference": 5.0, "transformers": 4.0})
    cost.want_ratio(2.0)
    cost.want_ratio(2.0, over=3.0, name="another")
    assert [reached for _, reached in speed.wanted] == [True, False]
    assert cost.wanted == [("2 × the reference: 2.00 ×", True), ("2 × another: 1.50 ×", False)]


def test_the_fraction_of_the_limit_is_below_one_whichever_way_is_better():
    assert bench.Result("", "tokens/s", True, {"triptych": 30.0}, limit=40.0).fraction == 0.75
    assert bench.Result("", "s", False, {"triptych": 4.0}, limit=3.0).fraction == 0.75
    assert bench.Result("", "s", False, {"reference": 4.0}, limit=3.0).fraction is None


def test_the_page_says_what_was_missed_and_what_was_not_measured(tmp_path):
    missed = bench.Result("slow thing", "s", False, {"triptych": 4.0, "reference": 5.0}, limit=1.0)
    missed.want_ratio(2)
    absent = bench.Result("absent thing", "s", False, {"reference": 5.0})
    absent.want_ratio(2)
    facts = report.machine(20e9, 150e9, 2)
    text = report.page([missed, absent], facts, {"reference": "transformers 4.37.2"}, ["openvino gave no figure: why"])
    rows = {line.split(" | ")[0][2:]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["slow thing"].endswith("| 4 | 5 | 25% | 2 × the reference: 1.25 × | no |")
    assert rows["absent thing"].endswith("|  | 5 |  |  | not measured |")
    assert "openvino gave no figure: why" in text
    assert "20.0 GB/s" in text


def test_an_engine_makes_loads_and_decodes_the_same_for_all(tmp_path):
    command = [sys.executable, str(HARNESS / "engines" / "pytorch.py"), "triptych"]
    kinds = [[["global", "local"], 1]]
    fields = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": kinds, "vocab_size": 50}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as engine:

        def ask(operation, **arguments):
            engine.stdin.write(json.dumps({"do": operation} | arguments) + "\n")
            engine.stdin.flush()
            return json.loads(engine.stdout.readline())

        assert ask("make", family="gpt_neo", folder=str(tmp_path), fields=fields) == {}
        loaded = ask("load", name="tiny", family="gpt_neo", folder=str(tmp_path))
        assert loaded["weights"] == 4 * (50 * 16 + 2048 * 16 + 2 * (12 * 16 * 16 + 4 * 16 + 16 + 4 * 16 + 16) + 2 * 16)
        first, again = (ask("decode", name="tiny", prompts=[[1, 2, 3]], new=5) for _ in range(2))
        assert len(first["ids"][0]) == 5
        assert first["ids"] == again["ids"]
        assert min(first["first"], first["rest"]) > 0
        held = ask("cache", name="tiny", prompts=[[1] * 1000])["bytes"]
        assert held == 2 * 4 * 16 * (1000 + 256 + 128)
        assert ask("train", name="tiny", rows=2, length=20)["loss"] == pytest.approx(3.9, abs=0.2)
        assert ask("decode", name="missing", prompts=[[1]], new=1) == {"error": "KeyError: 'missing'"}
