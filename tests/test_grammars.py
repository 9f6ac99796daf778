"""Texts that follow a grammar: a JSON schema or a regular expression, in every way of decoding."""

import json
import re
import sys

import pydantic
import pytest
import torch
from hypothesis import given, settings, strategies as st

from triptych import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GrammarLogitsProcessor, OpenAIGPTTokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
        "friends": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "friends"],
    "additionalProperties": False,
}


class Animal(pydantic.BaseModel, extra="forbid"):
    kind: str = pydantic.Field(max_length=8)
    legs: int = pydantic.Field(ge=0, le=100)


@pytest.fixture(scope="module")
def load():
    known = {}

    def load(name):
        if name not in known:
            model = AutoModelForCausalLM.from_pretrained(f"triptych/{name}", torch_dtype="float32")
            known[name] = (model, AutoTokenizer.from_pretrained(f"triptych/{name}"))
        return known[name]

    return load


def written(model, tokenizer, prompt="The king said:", /, **options):
    """The new texts."""
    inputs = tokenizer(prompt, return_tensors="pt")
    options = {"max_new_tokens": 120, "pad_token_id": tokenizer.eos_token_id, "tokenizer": tokenizer} | options
    ids = model.generate(**inputs, **options)
    return texts(tokenizer, ids[:, inputs.input_ids.shape[1] :])


def texts(tokenizer, ids):
    return tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def is_animal(text):
    value = json.loads(text)
    assert value.keys() == SCHEMA["properties"].keys()
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    assert value["kind"] in ("cat", "dog")
    assert len(value["friends"]) <= 2
    return value


def test_json_follows_its_schema_greedily_and_sampled(load):
    model, tokenizer = load("tales-neo")
    for text in written(model, tokenizer, json_schema=SCHEMA):
        is_animal(text)
    torch.manual_seed(0)
    sampled = written(model, tokenizer, json_schema=json.dumps(SCHEMA), do_sample=True, num_return_sequences=8)
    assert len({json.dumps(is_animal(text)) for text in sampled}) > 4


def test_a_pydantic_class_is_a_schema(load):
    (text,) = written(*load("tales-neo"), json_schema=Animal)
    assert Animal.model_validate_json(text).legs >= 0


REGEXES = {
    "tales-neo": (
        r"[A-Z][a-z]{2,8}( [a-z]{1,9}){2,5}\.",
        r"^(yes|no|maybe)$",
        r"\d{4}-\d\d-\d\d",
        r"(a|b){0,9}c\$",
        r'"[^"]{0,9}"',
    ),
    "tales-gpt": (r"[a-z]+( [a-z]+){2,4} \.", r"yes|no", r"(the|a) (king|queen) [a-z ]{4,12}[a-z]", r"[a-z]{3}$"),
}


@pytest.mark.parametrize(("name", "regex"), [(name, regex) for name, several in REGEXES.items() for regex in several])
def test_the_whole_text_matches_a_regular_expression(load, name, regex):
    model, tokenizer = load(name)
    torch.manual_seed(0)
    for text in written(model, tokenizer, regex=regex, do_sample=True, num_return_sequences=6, top_k=0):
        assert re.fullmatch(regex, text), text


PIECES = st.sampled_from(["a", "the", "[a-f]", r"\d", " ", "(yes|no)", "(he|she|it)", "é", "x?", r"\.", "[^a-z]", "\n"])
REPEATED = st.tuples(PIECES, st.sampled_from(["", "?", "{2}", "{1,3}"])).map(lambda pair: f"(?:{pair[0]}){pair[1]}")


@given(regex=st.lists(REPEATED, min_size=1, max_size=6).map("".join), seed=st.integers(0, 99), greedy=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_regular_expression_is_matched_with_any_seed(load, regex, seed, greedy):
    model, tokenizer = load("tales-neo")
    torch.manual_seed(seed)
    more = {} if greedy else {"do_sample": True, "temperature": 1.5, "num_return_sequences": 3}
    for text in written(model, tokenizer, regex=regex, **more):
        assert re.fullmatch(regex, text), text


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_any_seed_writes_json(load, seed):
    torch.manual_seed(seed)
    for text in written(
        *load("tales-neo"), json_schema=SCHEMA, do_sample=True, temperature=1.3, num_return_sequences=2
    ):
        is_animal(text)


def test_a_batch_gives_what_each_row_gives_alone(load):
    model, tokenizer = load("tales-neo")
    tokenizer = AutoTokenizer.from_pretrained("triptych/tales-neo", pad_token="<|endoftext|>", padding_side="left")
    prompts = ["The king said:", "A very long list of animals and their names, one by one:"]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    ids = model.generate(**batch, json_schema=SCHEMA, tokenizer=tokenizer, max_new_tokens=120, pad_token_id=0)
    alone = [written(model, tokenizer, prompt, json_schema=SCHEMA)[0] for prompt in prompts]
    assert texts(tokenizer, ids[:, batch.input_ids.shape[1] :]) == alone


def test_rows_may_change_places_be_repeated_and_go_back(load):
    """What beams and assisted decoding do between two steps."""
    _, tokenizer = load("tales-neo")
    grammar = GrammarLogitsProcessor(tokenizer, regex=r"(ab|ba){3}", prompt_length=1)
    a, b, end = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "<|endoftext|>"))

    def allowed(*rows):
        scores = grammar(torch.tensor([[7, *row] for row in rows]), torch.zeros(len(rows), len(tokenizer)))
        return [set(row.isfinite().nonzero().flatten().tolist()) & {a, b, end} for row in scores]

    assert allowed([a], [b], [a]) == [{b}, {a}, {b}]
    assert allowed([b, a], [a, b]) == [{a, b}, {a, b}]
    assert allowed([a, b, a, b, b], [b, a, b, a, a]) == [{a}, {b}]
    assert allowed([b]) == [{a}]
    assert allowed([a, b, a, b, b, a], [b, a, b, a, a, b], [b, b, a, a, b, a]) == [{end}, {end}, {end}]  # one is astray
    assert allowed([a, b, a, b, b, a, end, end]) == [{end}]
    assert allowed([a, b, a, b], [b, a, b, a], [b, a, a, b]) == [{a, b}, {a, b}, {a, b}]


def test_sentencepiece_texts_follow_a_grammar_too():
    """The tokenizer of a Fuyu, without the model: the likeliest token is one drawn at random."""
    tokenizer = AutoTokenizer.from_pretrained("triptych/shapes-fuyu")
    prompt = torch.tensor([[5, 6]])
    for seed, regex in enumerate((r"(red|blue) (circle|square)s?", r"\d{2,3} é", r"[a-z ]{2,6}\n")):
        grammar = GrammarLogitsProcessor(tokenizer, regex=regex, prompt_length=2)
        torch.manual_seed(seed)
        ids = prompt
        while ids[0, -1] != tokenizer.eos_token_id:
            ids = torch.cat([ids, grammar(ids, torch.randn(1, 500)).argmax(dim=1, keepdim=True)], dim=1)
            assert ids.shape[1] < 40
        (text,) = texts(tokenizer, ids[:, 2:])
        assert re.fullmatch(regex, text), text


def test_the_slow_tokenizer_has_the_same_grammar(load):
    model, tokenizer = load("tales-gpt")
    slow = OpenAIGPTTokenizer.from_pretrained("triptych/tales-gpt")
    assert written(model, slow, regex="(he|she) [a-z]+") == written(model, tokenizer, regex="(he|she) [a-z]+")


def test_a_text_that_is_cut_off_is_the_beginning_of_one_that_follows_the_grammar(load):
    (text,) = written(*load("tales-neo"), json_schema=SCHEMA, max_new_tokens=5)
    assert text.startswith("{")
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        json.loads(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regex": "a(b"}, "unclosed group"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": "a)(b"}, "unopened group"),
        ({"json_schema": {"type": "horse"}}, "horse"),
        ({"json_schema": "{"}, "json_schema must be JSON"),
        ({"json_schema": False}, "no text follows"),
        ({"json_schema": SCHEMA, "regex": "a"}, "exactly one"),
        ({"regex": "a", "tokenizer": None}, "tokenizer="),
        ({"regex": "a", "min_new_tokens": 9}, "min_new_tokens"),
        ({"regex": "a", "eos_token_id": 4096}, "eos_token_id"),
    ],
)
def test_what_cannot_be_followed_is_said(load, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        written(*load("tales-neo"), **options)


def test_wrong_types_are_said(load):
    for options in ({"regex": re.compile("a")}, {"json_schema": [1]}, {"json_schema": "[1]"}):
        with pytest.raises(TypeError, match=next(iter(options))):
            written(*load("tales-neo"), **options)


def test_a_character_that_the_vocabulary_lacks_is_named(load):
    with pytest.raises(ValueError, match=re.escape("'{'")):
        written(*load("tales-gpt"), json_schema=SCHEMA)


def test_a_missing_library_names_the_extra(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=re.escape("triptych[grammar]")):
        written(*load("tales-neo"), regex="a")


def test_the_options_are_kept_in_the_file(tmp_path):
    GenerationConfig(json_schema=Animal).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).json_schema == Animal.model_json_schema()
