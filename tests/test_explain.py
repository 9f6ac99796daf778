"""How likely each token was, and what else could have stood there: as a library, in the terminal, as a page."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from triptych import AutoModelForCausalLM, AutoTokenizer, explain
from triptych.cli import explanation


@pytest.fixture(scope="module", params=["tales-neo", "tales-gpt"])
def written(request):
    """A model, its tokenizer, a text of it and the scores that it was drawn with."""
    model = AutoModelForCausalLM.from_pretrained(f"triptych/{request.param}", torch_dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(f"triptych/{request.param}")
    inputs = tokenizer("The naïve old king – said", return_tensors="pt")
    torch.manual_seed(0)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "max_new_tokens": 30, "eos_token_id": None}
    out = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
    return model, tokenizer, out.sequences[0], inputs.input_ids.shape[1], [scores[0] for scores in out.scores]


def test_the_numbers_are_those_of_the_model(written):
    model, tokenizer, ids, length, scores = written
    tokens = explain(model, tokenizer, ids, prompt_length=length, top=4, scores=scores)
    assert [token.id for token in tokens] == ids.tolist()
    assert [token.is_prompt for token in tokens] == [place < length for place in range(len(ids))]
    first, *rest = tokens
    assert (first.probability, first.rank, first.drawn_with, first.alternatives) == (None, None, None, ())
    for place, token in enumerate(rest, 1):
        with torch.no_grad():
            chances = model(ids[None, :place]).logits[0, -1].softmax(dim=-1)
        assert token.probability == pytest.approx(float(chances[token.id]), rel=1e-3, abs=1e-7)
        best = chances.topk(4)
        assert [each.id for each in token.alternatives] == best.indices.tolist()
        assert [each.probability for each in token.alternatives] == pytest.approx(best.values.tolist(), rel=1e-3)
        if token.rank <= 4:
            assert token.alternatives[token.rank - 1].id == token.id
        drawn = None if place < length else float(scores[place - length].softmax(dim=-1)[token.id])
        assert token.drawn_with == (None if drawn is None else pytest.approx(drawn))
    assert sum(token.drawn_with > token.probability for token in tokens[length:]) > 15  # 0.7 sharpens


def test_the_texts_of_the_tokens_are_the_text(written):
    model, tokenizer, ids, length, _ = written
    tokens = explain(model, tokenizer, ids, prompt_length=length)
    assert "".join(token.text for token in tokens) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_is_shown_once():
    model = AutoModelForCausalLM.from_pretrained("triptych/tales-neo", torch_dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained("triptych/tales-neo")
    ids = tokenizer("a 😀ab", return_tensors="pt").input_ids[0]
    texts = [token.text for token in explain(model, tokenizer, ids)]
    assert len(ids) > 5
    assert "".join(texts) == "a 😀ab"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts)


def test_what_is_no_text_is_refused(written):
    model, tokenizer, ids, _, scores = written
    with pytest.raises(ValueError, match=r"one text, of shape \(length,\)"):
        explain(model, tokenizer, ids[None])
    with pytest.raises(ValueError, match="one text"):
        explain(model, tokenizer, [])
    with pytest.raises(ValueError, match="prompt_length"):
        explain(model, tokenizer, ids, scores=scores)
    with pytest.raises(ValueError, match="top"):
        explain(model, tokenizer, ids, top=0)


ARGUMENTS = ("generate", "Once upon a time", "-n", 12, "--seed", 3, "--explain")


def test_the_command_shows_the_text_and_a_line_for_each_new_token(run):
    plain = run("generate", "Once upon a time", "-n", 12, "--seed", 3).out.strip()
    shown = run(*ARGUMENTS).out
    facts = json.loads(run(*ARGUMENTS, "--json").out)
    assert "\x1b" not in shown  # no terminal, no colours
    text, _, lines = shown.partition("\n\n50")
    assert text.strip() == plain
    (tokens,) = facts["tokens"]
    assert "".join(token["text"] for token in tokens).strip() == plain
    listed = [line for line in lines.splitlines()[2:] if line]
    assert len(listed) == 12
    for line, token in zip(listed, tokens[-12:], strict=True):
        assert line.lstrip().startswith(explanation.percent(token["probability"]))
        runner_up = next(each for each in token["alternatives"] if each["id"] != token["id"])
        assert explanation.visible(runner_up["text"]) in line


def test_several_texts_are_explained_one_by_one(run):
    facts = json.loads(run(*ARGUMENTS, "--samples", 2, "--json").out)
    for tokens, completion in zip(facts["tokens"], facts["completions"], strict=True):
        assert "".join(token["text"] for token in tokens) == "Once upon a time" + completion
    assert "[2]" in run(*ARGUMENTS, "--samples", 2).out


class Page(HTMLParser):
    """The text of the page's articles, its elements and the data for the cards."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text, self.data = [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        tag, attrs = self.open[-1] if self.open else ("", {})
        if tag == "span" and "data-at" in attrs:
            self.text += data
        if attrs.get("id") == "tokens":
            self.data += data


def test_the_page_shows_the_text_needs_nothing_else_and_lets_nothing_run(run, tmp_path):
    file = tmp_path / "page.html"
    prompt = "</script><script>alert(1)</script> <b>&amp; $x \x07 said"
    shown = run("generate", prompt, "-n", 10, "--seed", 1, "--html", file)
    assert "page.html" in shown.err
    html = file.read_text(encoding="utf-8")
    page = Page(html)
    assert not page.open
    assert page.text.startswith(prompt.replace("\x07", "\N{REPLACEMENT CHARACTER}"))
    assert not {"b", "img", "link", "iframe"} & {tag for tag, _ in page.elements} - {"b"}
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not any({"src", "href"} & attrs.keys() for _, attrs in page.elements)
    assert not re.search(r"https?:|url\(|@import|fetch\(", html)
    ((*tokens,),) = json.loads(page.data)
    assert "".join(token[0] for token in tokens).startswith("</script>")
    assert all(sum(own for *_, own in token[4]) == (token[2] <= len(token[4])) for token in tokens[1:])
    assert "prefers-color-scheme: dark" in html
    for band in explanation.BANDS:
        assert band.label in html


def test_the_page_comes_with_json_too(run, tmp_path):
    facts = json.loads(run("generate", "Hi", "-n", 3, "--json", "--html", tmp_path / "page.html").out)
    assert facts["html"] == str(tmp_path / "page.html")
    assert "tokens" not in facts
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    ("probability", "told"),
    [
        (None, "–"),
        (1.0, "100 %"),
        (0.5, "50 %"),
        (0.0996, "10 %"),
        (0.0123, "1.2 %"),
        (0.00011, "0.011 %"),
        (1e-9, "<0.01 %"),
    ],
)
def test_probabilities_are_told_in_two_digits(probability, told):
    assert explanation.percent(probability).replace("\N{NO-BREAK SPACE}", " ") == told


def test_json_and_expressions_on_the_command_line(run, tmp_path):
    schema = {"type": "object", "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 0}}}
    (tmp_path / "schema.json").write_text(json.dumps(schema | {"required": ["age"], "additionalProperties": False}))
    arguments = ("generate", "The king:", "--seed", 1, "--json-schema", tmp_path / "schema.json")
    facts = json.loads(run(*arguments, "--json", "--samples", 2).out)
    assert facts["complete"] == [True, True]
    assert all(0 <= json.loads(text)["age"] <= 99 for text in facts["completions"])
    written = run("generate", "The king said", "--regex", " (yes|no), [a-z]+!", "--greedy").out
    assert re.fullmatch("The king said (yes|no), [a-z]+!\n", written)
    cut = run("generate", "The king said", "--regex", "[a-z]{40} .", "-n", 2)
    assert "cut off" in cut.err
