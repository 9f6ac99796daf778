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
import results  # noqa: E402
import rows_built  # noqa: E402
import shapes  # noqa: E402


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


MACHINE = {
    "cpu": "Some CPU",
    "threads": 2,
    "system": "Linux",
    "date": "2026-11-28",
    "limits": {"cpu": {"bandwidth": 20e9, "rate": 150e9, "dtype": "float32"}},
}
GPU = {"gpu": "Some GPU", "driver": "1.2", "cuda": "13.0", "clocks": "at most", "dtype": "bfloat16"}


def rows_of(page):
    return {line.split(" | ")[0][2:]: line for line in page.splitlines() if line.startswith("| ")}


def test_the_page_says_what_was_missed_and_what_was_not_measured():
    missed = bench.Result("slow thing", "s", False, {"triptych": 4.0, "reference": 5.0}, limit=1.0)
    missed.want_ratio(2)
    absent = bench.Result("absent thing", "s", False, {"reference": 5.0})
    absent.want_ratio(2)
    run = results.Run(MACHINE, {"reference": "transformers 4.37.2"}, ["openvino gave no figure: why"], {})
    run.rows = {"slow": [missed], "absent": [absent]}
    text = report.page([run], report.unmeasured([run]))
    rows = rows_of(text)
    assert rows["slow thing"].endswith("| 4 | 5 | 25% | 2 × the reference: 1.25 × | no |")
    assert rows["absent thing"].endswith("|  | 5 |  | 2 × the reference | not measured |")
    assert "openvino gave no figure: why" in text
    assert "20.0 GB/s" in text
    title = "decode, 1.3 B, bfloat16, 1 row"
    assert rows[title] == f"| {title} | tokens/s |  | 75% of the limit; 10 × the reference | not measured |"
    assert any(name.startswith("Fuyu-8B") and "3 × the reference" in line for name, line in rows.items())


def test_runs_on_several_machines_are_kept_and_each_row_is_the_newest(tmp_path):
    def run(date, **rows):
        lines = {name: [bench.Result(f"{name} of {date}", "s", False, {"triptych": 1.0})] for name in rows}
        return results.Run(MACHINE | {"date": date}, {"triptych": "0.1"}, [], lines)

    runs = []
    for newer in (run("1", a=1, b=1), run("2", b=1), run("3", **{"gpu-prefill": 1}), run("4")):
        runs = results.with_newer(runs, newer)
    runs[-1].machine = runs[-1].machine | {"limits": {"cuda": GPU | {"bandwidth": 3e12, "rate": 9e14}}}
    runs[-1].rows["gpu-prefill"][0].want_ratio(2, over=3.0)
    results.write(runs, tmp_path / "results.json")
    assert results.read(tmp_path / "results.json") == runs
    assert [list(each.rows) for each in runs] == [["a"], ["b"], ["gpu-prefill"]]
    text = report.page(runs, report.unmeasured(runs))
    assert "Some GPU (driver 1.2, CUDA 13.0; at most): 3,000.0 GB/s" in text
    assert "prefill, 1.3 B" not in text.split("## Not measured")[1]
    assert "decode, 1.3 B" in text.split("## Not measured")[1]
    assert results.read(tmp_path / "none.json") == []


TINY = {
    "gpt_neo": shapes.Shape("tiny", "gpt_neo", 64, 2, 2, 300, window=256),
    "fuyu": shapes.Shape("tiny Fuyu", "fuyu", 64, 2, 2, 300),
}
ON_GPU = {
    "decode": lambda bench: rows_built.decode(bench, 2, [TINY["gpt_neo"]]),
    "prefill": lambda bench: rows_built.prefill(bench, TINY["gpt_neo"], length=40),
    "quantized": lambda bench: rows_built.quantized(bench, TINY["gpt_neo"]),
    "fuyu": lambda bench: rows_built.fuyu_on_gpu(bench, TINY["fuyu"], size=(60, 90)),
}


@pytest.fixture(scope="module")
def small_bench(tmp_path_factory):
    """One engine, ours, for which the CPU is the GPU."""
    pythons = {"triptych": Path(sys.executable)}
    made = bench.Bench(pythons, tmp_path_factory.mktemp("bench"), threads=1, rounds=1, quick=True)
    made.measure_machine("cpu", part=256)
    made.gpu = "cpu"
    yield made
    made.stop()


@pytest.mark.parametrize("row", ON_GPU)
def test_the_rows_of_a_gpu_run_on_any_device(small_bench, row):
    lines = ON_GPU[row](small_bench)
    assert small_bench.notes == []
    for line in lines:
        assert line.figures["triptych"] > 0
        assert line.limit > 0
        judged = [reached for text, reached in line.wanted if "ids below the best" in text]
        assert judged == [True]  # by one pass over the whole text
    assert len(lines) == {"decode": 2, "prefill": 1, "quantized": 2, "fuyu": 2}[row]


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
