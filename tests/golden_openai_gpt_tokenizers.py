"""Writes the golden files of GPT's tokenizers: what the reference makes of many texts and options.

    REFERENCE_PYTHON tests/golden_openai_gpt_tokenizers.py ENCODER_JSON VOCAB_BPE tests/golden/openai_gpt_tokenizers

Run it twice: with an interpreter that has ftfy and spaCy beside the reference (spacy.json), and with one that lacks
spaCy (everything else). The two files are encoder_bpe_40000.json and vocab_40000.bpe of openai/finetune-transformer-lm.
The tests import the tables of this file, so both sides run the same calls.
"""

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

from golden_tokenizers import (
    SHORT,
    TEXTS as GENERAL,
    differs_on_purpose,
    outcome,
    random_calls,
    random_texts,
    token_of,
    write,
)

KEPT_MERGES = 600

# The names are those that `random_calls` draws from.
SETUPS = {
    "plain": {},
    "pad": {"init": {"pad_token": "<unk>", "model_max_length": 11}},
    "added": {
        "init": {"pad_token": "[PAD]", "mask_token": "<Mask>"},
        "special": {"additional_special_tokens": ["<a>", {"content": "<B>", "lstrip": True}], "cls_token": "[CLS]"},
        "tokens": [
            "NewWord",
            {"content": "Strip", "lstrip": True, "rstrip": True},
            {"content": "lft", "lstrip": True},
            {"content": "exact", "normalized": False},
            "hello",
            "日本",
        ],
    },
    "bos": {"init": {"bos_token": "_start_", "eos_token": "_end_", "pad_token": "!"}},
    "prefix": {"init": {"pad_token": "[PAD]", "unk_token": "<unk>"}},
}

TEXTS = [
    *GENERAL,
    *SHORT,
    "Hello, World! É naïve ½ don't I'm <unk> <UNK>",
    "a\nb \n c\n\n\n  d",
    "\n \n",
    "ab\n\n",
    "e.g.\n\n\tfoo",
    "— – ― … ´ ’ “q” „x‟ a--b ~~ !! ?!?! +++ ,,(x) [[y]] {z} a|b a_b a/b\\c ** a''b--c '' a;;b:c",
    "a-+b --\n-- (((a))) \"'x'\" a—b",
    "tab\tx\u00a0y\u2003z a\rb\r\nc\x0bd\x0ce\u2028f\u2029g\u0085h",
    "x%y #z @w $5.00 &amp; <b> a=b ^ `c` :-) a.b U.S. 3:30pm 10km Mr. O'Neill's can't won't gonna",
    "schÃ¶n â€œquotedâ€\x9d ﬁ ﬂuﬀ Ａｂｃ",
    "ΣΑΣ ΟΔΥΣΣΕΥΣ İSTANBUL ǅ ẞ STRASSE K Å",
    "\u037e \u1ffd \u1fef \u2126 \u212b \uf900 \u2f801 \U0002f800",
    "\u0378 a\u0378b \u200b c\ue000d \U000e0001 \ufdd0 \uffff",
    "e\u0301\u0327 a\u0328\u0301 한국어 \u1100\u1161 क्षि กำ",
    "$+<=>^`|~ ©®™ €£¥ §¶ «x» ‹y› ¿Qué? ¡Sí!",
    "中文字x 㐀 𠀀 ｶﾀｶﾅ ー・「」",
    "The United States of America (U.S.A.) bought 3,000,000 shares at $12.50/share on 4/5/2018, i.e. Q2.",
    "\"Well,\" said he, \"it's 'quite' all-right -- isn't it?\" ... and then--nothing!",
    "In the beginning\nthere was _nothing_ at all.\n\n\n* * *\n\nThen, 1) came; 2) went...",
    " newword NEWWORD NewWordstripSTRIP  strip  lft  LFT Exact exact 日本 "
    "[CLS] [cls] <a> <A> <B> <b> <Mask> <mask>[PAD]",
    "supercalifragilisticexpialidocious antidisestablishmentarianism " + "na" * 80,
]


def cut_vocabulary(encoder, merges):
    """The characters and the first KEPT_MERGES merges of a vocabulary, with ids without gaps."""
    results = {left + right for left, right in merges}
    kept = {left + right for left, right in merges[:KEPT_MERGES]}
    tokens = [token for token in sorted(encoder, key=encoder.get) if token not in results or token in kept]
    return {token: token_id for token_id, token in enumerate(tokens)}, merges[:KEPT_MERGES]


def build(cls, added_token, setup, vocab_file, merges_file, **options):
    """The tokenizer that a row of SETUPS describes."""
    setup = SETUPS[setup]
    tokenizer = cls(vocab_file, merges_file, **setup.get("init", {}), **options)
    special = {
        role: [token_of(token, added_token) for token in value] if isinstance(value, list) else value
        for role, value in setup.get("special", {}).items()
    }
    if special:
        tokenizer.add_special_tokens(special)
    if "tokens" in setup:
        tokenizer.add_tokens([token_of(token, added_token) for token in setup["tokens"]])
    return tokenizer


def all_texts():
    """The texts above and many of characters from all over Unicode."""
    return TEXTS + random_texts(120, seed=5)


def rows_of(tokenizers):
    """Each text with its ids and what they decode to, by the tokenizer's name."""
    for text in all_texts():
        row = {"text": text}
        for name, tokenizer in tokenizers.items():
            ids = tokenizer(text, verbose=False)["input_ids"]
            row[name] = {"ids": ids}
            if text in TEXTS and not name.startswith("real"):
                row[name]["decoded"] = tokenizer.decode(ids)
                row[name]["skipped"] = tokenizer.decode(
                    ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
        yield row


def calls_of(make):
    """Each random call with what it gives, or that it is refused."""
    for call in random_calls(150, seed=6):
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


def main(encoder_file, bpe_file, folder):
    """Run the reference and write the files that this interpreter can."""
    from transformers import AddedToken, OpenAIGPTTokenizer, OpenAIGPTTokenizerFast

    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    encoder = json.loads(Path(encoder_file).read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in Path(bpe_file).read_text(encoding="utf-8").split("\n")[1:-1]]
    vocabulary, kept = cut_vocabulary(encoder, merges)
    small = (str(folder / "vocab.json"), str(folder / "merges.txt"))
    Path(small[0]).write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, kept), ""]
    Path(small[1]).write_text("\n".join(lines), encoding="utf-8")

    real = OpenAIGPTTokenizer(encoder_file, bpe_file)

    def make(setup, fast):
        return build(OpenAIGPTTokenizerFast if fast else OpenAIGPTTokenizer, AddedToken, setup, *small)

    slow = {name: make(name, False) for name in ("plain", "added")}
    if importlib.util.find_spec("spacy"):
        write(folder / "spacy.json", rows_of(slow | {"real": real}))
        return
    fast = {f"{name} fast": make(name, True) for name in ("plain", "added")}
    write(folder / "basic.json", rows_of(slow | {"real": real} | fast))
    write(folder / "calls.json", calls_of(cache(make)))
    fast["added fast"].save_pretrained(folder / "saved_fast")
    slow["added"].save_pretrained(folder / "saved_slow")
    for name in ("saved_fast", "saved_slow"):
        again = OpenAIGPTTokenizer.from_pretrained(folder / name)
        write(folder / f"{name}.json", ({"text": text, "ids": again(text)["input_ids"]} for text in TEXTS))


if __name__ == "__main__":
    main(*sys.argv[1:])
