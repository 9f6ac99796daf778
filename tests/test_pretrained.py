"""The models in the box: loaded by name, small, and doing what the reference does with the same files."""

import json
import math
import re

import pytest
import torch

from triptych import AutoModelForCausalLM, AutoTokenizer, OpenAIGPTTokenizer, pretrained

NAMES = ["triptych/tales-gpt", "triptych/tales-neo"]  # those that write; test_shapes_fuyu.py is about the other


@pytest.fixture(scope="module")
def recorded(golden):
    return json.loads((golden / "pretrained.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return AutoModelForCausalLM.from_pretrained(name, torch_dtype=torch.float32).eval()


def test_the_box_holds_a_model_of_each_family_that_there_is(recorded):
    assert pretrained.names() == ["triptych/shapes-fuyu", *NAMES]
    assert sorted(recorded["models"]) == [name.partition("/")[2] for name in NAMES]


def test_a_model_in_the_box_is_at_most_ten_megabytes_and_its_weights_are_all_used(name):
    folder = pretrained.folder(name)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10e6
    model, found = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    assert not any(found.values())
    assert next(model.parameters()).dtype == torch.float32  # the documented default; the files hold half
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "float16"


def test_the_card_gives_the_figures_of_the_files(name, model):
    card = (pretrained.folder(name) / "README.md").read_text(encoding="utf-8")
    assert f"{model.num_parameters():,} parameters" in card
    assert f"{model.config.vocab_size:,} tokens" in card
    assert f"{model.config.max_position_embeddings} positions" in card
    assert re.search(r"perplexity +\| +\d+\.\d", card)
    assert re.search(r"bits per byte +\| +1\.\d{3}", card)


@pytest.mark.parametrize("fast", [True, False])
def test_texts_get_the_ids_that_the_reference_gives(name, fast, recorded):
    tokenizer = AutoTokenizer.from_pretrained(name, use_fast=fast)
    expected = recorded["models"][name.partition("/")[2]]
    assert [tokenizer(text).input_ids for text in recorded["texts"]] == expected["ids"]
    assert tokenizer.decode(expected["generated"]) == expected["text"]


def test_a_held_out_text_gets_the_loss_that_the_reference_gives_and_less_than_chance(name, model, recorded):
    expected = recorded["models"][name.partition("/")[2]]
    ids = torch.tensor([expected["ids"][1]])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
        jumbled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        assert loss < float(model(jumbled, labels=jumbled).loss) - 1  # it has learned what follows what
    assert loss == pytest.approx(expected["loss"], abs=2e-5)
    assert loss < 0.6 * math.log(model.config.vocab_size)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_text_is_what_the_reference_writes(name, model, use_cache, recorded):
    expected = recorded["models"][name.partition("/")[2]]
    prompt = torch.tensor([expected["ids"][0]])
    ids = model.generate(prompt, max_new_tokens=40, do_sample=False, use_cache=use_cache)
    assert ids[0].tolist() == expected["generated"]


def test_the_command_line_writes_with_a_model_of_the_box(name, run, recorded):
    prompt = recorded["texts"][0]
    out = run("generate", prompt, "--model", name, "--greedy", "-n", 40).out
    facts = json.loads(run("generate", prompt, "--model", name, "--greedy", "-n", 40, "--json").out)
    assert facts["model"] == name
    assert out == f"{prompt}{facts['completions'][0]}\n"
    assert out.strip().lower() == recorded["models"][name.partition("/")[2]]["text"].strip().lower()


def test_openai_gpt_says_how_it_splits_text_and_puts_spaces_between_words(run):
    assert OpenAIGPTTokenizer.from_pretrained("triptych/tales-gpt").pre_tokenizer == "basic"
    facts = json.loads(
        run("generate", "The Captain", "--model", "triptych/tales-gpt", "--seed", 1, "-n", 5, "--json").out
    )
    assert facts["completions"][0].startswith((" ", ",", "."))
