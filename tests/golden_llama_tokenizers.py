"""Writes the golden files of Llama's tokenizers: what the reference makes of many texts and options.

    REFERENCE_PYTHON tests/golden_llama_tokenizers.py tests/golden/llama_tokenizers

The models are trained here, by sentencepiece, if the folder lacks them: on this repository's README.md and
CONTRIBUTING.md and the texts of golden_tokenizers.py. The tests import the tables of this file, so both sides run the
same calls.
"""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path

from golden_tokenizers import (
    SHORT,
    TEXTS as GENERAL,
    differs_on_purpose,
    outcome,
    plain,
    random_calls,
    random_texts,
    signatures,
    token_of,
)

ROOT = Path(__file__).parents[1]

# Adept's vocabulary has these as pieces of their own.
SYMBOLS = ["|ENDOFTEXT|", "|SPEAKER|", "|NEWLINE|", "<box>", "</box>", "<0x00>", "<0x01>"]
COMMON = {"hard_vocab_limit": False, "minloglevel": 2, "num_threads": 1, "character_coverage": 0.995}
KEEPING = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True}
MODELS = {
    "bpe": KEEPING
    | {"model_type": "bpe", "vocab_size": 620, "split_digits": True, "allow_whitespace_only_pieces": True},
    "unigram": KEEPING | {"model_type": "unigram", "vocab_size": 620, "user_defined_symbols": SYMBOLS[:5]},
    # Unlike any published one: it has no bytes, changes characters, drops white space and puts none in front.
    "changing": {"model_type": "unigram", "vocab_size": 300, "user_defined_symbols": SYMBOLS[1:3]}
    | {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
}
CHANGES = ["41\t61", "C9\t65", "FB01\t66 69", "D\t20"]  # A → a, É → e, ﬁ → fi, carriage return → space

FUYU = {"bos_token": "|ENDOFTEXT|", "eos_token": "|ENDOFTEXT|"}
ADDED = {
    "special": {"additional_special_tokens": ["<a>", {"content": "<b>", "lstrip": True}], "cls_token": "[CLS]"},
    "tokens": [
        "newword",
        {"content": "strip", "lstrip": True, "rstrip": True},
        {"content": "Lft", "lstrip": True},
        {"content": "Rgt", "rstrip": True},
        {"content": "NORM", "normalized": False},
        "hello",
        "two words",
        "日本",
    ],
}
# A tokenizer: its model, what its constructor gets, then what is added. The last four are those of `random_calls`.
SETUPS = {
    "bpe": {"model": "bpe"},
    "bpe later": {"model": "bpe", "init": {"legacy": False}},
    "unigram": {"model": "unigram", "init": FUYU},
    "unigram later": {"model": "unigram", "init": FUYU | {"legacy": False}},
    "changing": {"model": "changing"},
    "changing later": {"model": "changing", "init": {"legacy": False}},
    "added later": {"model": "unigram", "init": {"pad_token": "[PAD]", "legacy": False}, **ADDED},
    "pad": {"model": "unigram", "init": FUYU | {"pad_token": "<unk>", "model_max_length": 11}},
    "added": {"model": "bpe", "init": {"pad_token": "[PAD]", "mask_token": "<mask>"}, **ADDED},
    "bos": {"model": "unigram", "init": {"pad_token": "!", "add_eos_token": True, "legacy": False}},
    "prefix": {"model": "bpe", "init": {"pad_token": "[PAD]", "add_bos_token": False, "add_eos_token": True}},
}
# Folder → the tokenizer that is saved there, and whether the fast one.
SAVED = {"saved_bpe": ("added", True), "saved_unigram": ("unigram", True), "saved_slow": ("added later", False)}
CALLS_ONLY = ("pad", "bos", "prefix")

TEXTS = [
    *GENERAL,
    *SHORT,
    "<0x0A> <0x0a> <0x41><0xE4><0xB8><0xAD> x<0xFF>",
    "▁ ▁▁a ▁b▁ c▁▁",
    "<s> a</s>b <s></s> <unk>c d<unk> </s>",
    "<s>", "</s> ", " <unk>", "<s>a", "<s> a", "<s>  a", " <s> a",
    "|ENDOFTEXT|", "a |SPEAKER|\n |NEWLINE|b|NEWLINE||ENDOFTEXT| |SPEAKER", "<box>1, 2, 3, 4</box><0x00>",
    "[CLS]a [CLS] b  <mask>c", "newword", " newword", "anewword newwordb  newword.", "two words and two  words",
    "Rgt aRgt Rgt  b Rgtc", "aLft  Lft", "Generate a coco-style caption.\n",
    "ﬁ É A\r\nB", "日", "日本語 日本", "\ufeffx", "é e\u0301 \u00a0 \u3000", "a\tb\t\tc \n\n \n", "0123456789 1 22 333",
    "   ", "a ", " a", "  a  b  ", "\n a", " \n", "'s n't . , ! ?", "é" * 40, "😀" * 12,
]  # fmt: skip


def build(cls, added_token, setup, folder):
    """The tokenizer that a row of SETUPS describes."""
    setup = SETUPS[setup]
    init = {"legacy": True} | setup.get("init", {})
    tokenizer = cls(str(Path(folder, f"{setup['model']}.model")), **init)
    special = {
        role: [token_of(token, added_token) for token in value] if isinstance(value, list) else value
        for role, value in setup.get("special", {}).items()
    }
    if special:
        tokenizer.add_special_tokens(special)
    if "tokens" in setup:
        tokenizer.add_tokens([token_of(token, added_token) for token in setup["tokens"]])
    return tokenizer


def made_of(tokenizer, text):
    """What a tokenizer makes of a text, and of the ids again."""
    ids = tokenizer(text, verbose=False)["input_ids"]
    if tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids)) != ids:
        raise AssertionError(f"{text!r}: the tokens are not those of the ids")
    made = [ids, tokenizer.decode(ids)]
    made.append(tokenizer.decode(ids, skip_special_tokens=True))
    made.append(tokenizer.decode(ids, clean_up_tokenization_spaces=True, spaces_between_special_tokens=False))
    tokens = tokenizer.tokenize(text)
    made.append(tokenizer.convert_tokens_to_string(tokens) if tokens else "")  # the reference fails without any
    if tokenizer.is_fast and len(text) < 40:
        made.append(plain(tokenizer(text, return_offsets_mapping=True)["offset_mapping"]))
    return made


def rows_of(tokenizers, texts):
    """Each text with what each tokenizer makes of it; values that come again in a row are written once."""
    for text in texts:
        values, names = [text], {}
        for name, tokenizer in tokenizers.items():
            made = made_of(tokenizer, text)
            values += [value for n, value in enumerate(made) if value not in values and value not in made[:n]]
            names.setdefault(json.dumps([values.index(value) for value in made]), []).append(name)
        yield {"values": values, "made": [[json.loads(places), same] for places, same in names.items()]}


def made_by(rows, name):
    """Each text of the rows with what the tokenizer of that name made of it."""
    for row in rows:
        places = next(places for places, names in row["made"] if name in names)
        yield row["values"][0], [row["values"][place] for place in places]


def differs_here(call, tokenizer):
    """An empty second text is one, as in a batch; the reference's fast tokenizer takes it for none when alone.

    And newer engines refuse a stride that is too large for the length even where no text is cut.
    """
    options = call["options"]
    alone = call["args"][1:] == [""]
    room = options.get("max_length", tokenizer.model_max_length) - tokenizer.num_special_tokens_to_add()
    return call["fast"] and (alone or options.get("stride", 0) >= max(room, 1))


def calls_of(make):
    """Each random call with what it gives, or that it is refused."""
    for call in random_calls(110, seed=12):
        tokenizer = make(call["setup"], call["fast"])
        if differs_on_purpose(call, tokenizer) or differs_here(call, tokenizer):
            continue
        try:
            call["outcome"] = outcome(tokenizer, call)
        except BaseException as error:  # the engine's panics are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            call["refused"] = type(error).__name__
        yield call


def facts_of(tokenizer):
    """Sizes, special tokens, how rows are built, and the names of the options that are saved."""
    return {
        "vocab_size": tokenizer.vocab_size,
        "len": len(tokenizer),
        "special": tokenizer.special_tokens_map,
        "ids": tokenizer.all_special_ids,
        "sides": [tokenizer.padding_side, tokenizer.truncation_side],
        "added": tokenizer.get_added_vocab(),
        "built": tokenizer.build_inputs_with_special_tokens([5, 6], [7]),
        "types": tokenizer.create_token_type_ids_from_sequences([5, 6], [7]),
        "mask": None if tokenizer.is_fast else tokenizer.get_special_tokens_mask([5, 6], [7]),
        "saved": sorted(tokenizer.init_kwargs.keys() - {"vocab_file"}),
    }


def write(path, items):
    """One JSON file, one item per line, so that a change shows as such."""
    lines = ",\n".join(json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def train(folder):
    """Train the models that are not there."""
    import sentencepiece

    documents = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")]
    lines = [line for text in (*documents, *TEXTS) for line in text.split("\n") if line.strip()]
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write("".join(f"{rule}\n" for rule in CHANGES))
        rules.flush()
        for name, options in MODELS.items():
            if not (folder / f"{name}.model").exists():
                changes = {"normalization_rule_tsv": rules.name} if name == "changing" else {}
                with (folder / f"{name}.model").open("wb") as file:
                    sentencepiece.SentencePieceTrainer.train(
                        sentence_iterator=iter(lines), model_writer=file, **COMMON, **options, **changes
                    )


def main(folder):
    """Run the reference and write the files."""
    from transformers import AddedToken, LlamaTokenizer, LlamaTokenizerFast

    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    train(folder)

    @cache
    def make(setup, fast):
        return build(LlamaTokenizerFast if fast else LlamaTokenizer, AddedToken, setup, folder)

    names = [f"{name} {kind}" for name in SETUPS if name not in CALLS_ONLY for kind in ("slow", "fast")]
    tokenizers = {name: make(name[:-5], name.endswith("fast")) for name in names}
    write(folder / "texts.json", rows_of(tokenizers, TEXTS))
    some = {f"{name} {kind}": tokenizers[f"{name} {kind}"] for name in MODELS for kind in ("slow", "fast")}
    write(folder / "characters.json", rows_of(some, random_texts(24, seed=11)))
    table = signatures([LlamaTokenizer, LlamaTokenizerFast])
    write(folder / "signatures.json", [[name, methods] for name, methods in table.items()])
    for saved, (name, fast) in SAVED.items():
        make(name, fast).save_pretrained(folder / saved)
        (folder / saved / "tokenizer.model").unlink()  # a copy of the model above
    kinds = (("slow", False), ("fast", True))
    facts = ([f"{name} {kind}", facts_of(make(name, fast))] for name in SETUPS for kind, fast in kinds)
    write(folder / "facts.json", facts)
    write(folder / "calls.json", calls_of(make))  # last, as they set the sides


if __name__ == "__main__":
    main(*sys.argv[1:])
