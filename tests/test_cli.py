"""The command line, as a person and as a program meets it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import triptych
from triptych import GPTNeoConfig, GPTNeoForCausalLM

TRIPTYCH = str(Path(sys.executable).parent / "triptych")


def test_generate_continues_the_prompt_and_the_same_seed_writes_the_same_text(run):
    first = run("generate", "Once upon a time", "-n", 12, "--seed", 3).out
    assert first.startswith("Once upon a time")
    assert len(first.strip()) > len("Once upon a time")
    assert run("generate", "Once upon a time", "-n", 12, "--seed", 3).out == first


def test_a_prompt_comes_through_a_pipe_and_json_says_the_same_as_the_text(run):
    text = run("generate", "--greedy", "-n", 8, stdin="The old man\n").out
    facts = json.loads(run("generate", "--greedy", "-n", 8, "--json", stdin="The old man\n").out)
    assert facts["prompt"] == "The old man"
    assert facts["model"] == "triptych/tales-neo"
    assert facts["new_tokens"] == 8
    assert facts["seed"] is None
    assert text.strip() == (facts["prompt"] + facts["completions"][0]).strip()


def test_several_samples_of_one_seed_differ_from_each_other(run):
    facts = json.loads(run("generate", "The sea", "-n", 12, "--samples", 3, "--seed", 1, "--json").out)
    assert len(set(facts["completions"])) == 3


def test_writing_stops_after_a_stop_text(run):
    facts = json.loads(run("generate", "He said", "-n", 60, "--seed", 0, "--stop", "e", "--json").out)
    assert "e" in facts["completions"][0]
    assert facts["new_tokens"] < 60


def test_inspect_tells_the_facts_of_the_model_in_the_box(run):
    facts = json.loads(run("inspect", "--json").out)
    assert facts["family"] == "gpt_neo"
    assert facts["architectures"] == ["GPTNeoForCausalLM"]
    assert facts["dtypes"] == ["float16"]
    folder = Path(facts["folder"])
    assert facts["files"] == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sum(facts["files"].values()) < 10e6
    shown = run("inspect").out
    assert f"{facts['parameters']:,}" in shown
    assert "model.safetensors" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("generate", "Hi", "--model", "no/such/model/here"), 1, "no/such/model/here"),
        (("generate", "Hi", "--temperature", "-1"), 1, "--temperature must be"),
        (("generate", "Hi", "--top-p", "1.5"), 1, "--top-p is a probability"),
        (("generate", "Hi", "-n", "100000"), 1, "pass --max-new-tokens 5"),
        (("generate", "Hi", "--temperature", "0"), 1, "pass --greedy"),
        (("generate", "Hi", "--greedy", "--temperature", "2"), 2, "Leave out --greedy or --temperature"),
        (("generate", "Hi", "--greedy", "--top-k", "2", "--samples", "3"), 2, "--top-k and --samples"),
        (("generate", "Hi", "--temprature", "2"), 2, "Possible options: --temperature"),
        (("generate", "Hi", "--stop", ""), 1, "--stop"),
        (("generate", "Hi", "--model", "triptych/shapes-fuyu"), 2, "caption"),
        (("generate", "Hi", "--html", "/no/such/folder/page.html"), 2, "--html"),
        (("generate", "Hi", "--html", "/"), 2, "is a folder"),
        (("generate", "Hi", "--regex", "a(b"), 1, "--regex 'a(b'"),
        (("generate", "Hi", "--json-schema", "/no/such/schema.json"), 1, "/no/such/schema.json"),
        (("generate", "Hi", "--json-schema", "x", "--regex", "a"), 2, "not both"),
        (("convert", "openai-gpt", ".", "/no/such/folder/out"), 2, "mkdir -p"),
        (("generate", "Hi", "-n", "0"), 2, "max-new-tokens"),
        (("generate", "Hi", "--dtype", "float3"), 1, "float3"),
        (("generate", "Hi", "--device", "gpu9"), 2, "gpu9"),
        (("generate", ""), 2, "empty"),
        (("generate", "Hi", "--colour", "red"), 2, "--colour"),
        (("inspect", "/no/such/folder"), 1, "/no/such/folder"),
        (("paint",), 2, "paint"),
    ],
)
def test_a_mistake_is_one_clear_line_and_no_traceback(run, arguments, code, words):
    done = run(*arguments, code=code)
    assert words in " ".join(done.err.replace("│", "").split())
    assert not done.out
    assert "Traceback" not in done.err
    if code == 1:
        assert done.err.count("\n") == 1


def test_the_version_is_told(run):
    assert run("--version").out == f"triptych {triptych.__version__}\n"


def test_help_loads_no_framework():
    script = (
        "import sys; from triptych.cli import app\n"
        "try: app(['generate', '--help'])\n"
        "except SystemExit: print('LOADED', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "Continue a prompt" in out
    loaded = out.partition("LOADED")[2].split()
    assert {"torch", "numpy", "huggingface_hub", "tokenizers"}.isdisjoint(loaded)


def test_a_reader_that_leaves_early_is_no_error():
    command = f"{TRIPTYCH} generate 'Once upon a time' -n 40 --seed 1 | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "Once "
    assert not done.stderr


def test_inspect_reads_bin_files_and_shows_names_as_they_are(run, tmp_path):
    folder = tmp_path / "[bold]m[/x]"
    config = GPTNeoConfig(
        vocab_size=10,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        attention_types=[[["global"], 1]],
        architectures=["[/red]"],
    )
    GPTNeoForCausalLM(config).save_pretrained(folder, safe_serialization=False)
    (folder / "a[red]b\x1b[2J.txt").touch()
    shown = run("inspect", folder).out
    assert "[bold]m[/x]" in shown.replace("\n", "")
    assert "a[red]b" in shown
    assert "pytorch_model.bin" in shown
    assert "\x1b" not in shown


def test_an_error_that_nobody_foresaw_is_one_line_too(run, monkeypatch):
    monkeypatch.setattr(sys.modules["triptych.cli.inspect"], "describe", lambda model: {}["family"])
    assert run("inspect", code=1).err == "Error: KeyError: 'family'\n"
    monkeypatch.setenv("TRIPTYCH_TRACEBACK", "1")
    with pytest.raises(KeyError):
        run("inspect")
