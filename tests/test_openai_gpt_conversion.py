"""GPT as OpenAI published it → a folder that loads: names, numbers, damage."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.numpy import load_file

from triptych import AutoModelForCausalLM, AutoTokenizer, OpenAIGPTModel, OpenAIGPTTokenizer
from triptych.checkpoints.renaming import Row, rename, rows_of
from triptych.errors import CheckpointError, InvalidFileError, MissingFileError, SaveError
from triptych.models.openai_gpt.conversion import ENCODER, MERGES, OPENAI_RELEASE, PARTS, SHAPES, convert

VOCABULARY = Path(__file__).parent / "golden" / "openai_gpt_tokenizers"
P, V, C, L = 12, 1078, 64, 3

# The names in the order of the release, written out: positions, tokens, then layer by layer.
LAYER = (
    ("attn.c_attn.weight", (C, 3 * C)),
    ("attn.c_attn.bias", (3 * C,)),
    ("attn.c_proj.weight", (C, C)),
    ("attn.c_proj.bias", (C,)),
    ("ln_1.weight", (C,)),
    ("ln_1.bias", (C,)),
    ("mlp.c_fc.weight", (C, 4 * C)),
    ("mlp.c_fc.bias", (4 * C,)),
    ("mlp.c_proj.weight", (4 * C, C)),
    ("mlp.c_proj.bias", (C,)),
    ("ln_2.weight", (C,)),
    ("ln_2.bias", (C,)),
)
NAMES = [("positions_embed.weight", (P, C)), ("tokens_embed.weight", (V, C))]
NAMES += [(f"h.{n}.{name}", shape) for n in range(L) for name, shape in LAYER]


def weights():
    """Published name → array, in the order of the release."""
    draw = np.random.default_rng(0)
    return {name: draw.standard_normal(shape).astype(np.float32) * 0.1 for name, shape in NAMES}


def write_release(folder):
    """The weights in the layout of the release."""
    arrays = weights()
    is_matrix = {name: array.ndim == 2 and name.startswith("h.") for name, array in arrays.items()}
    shapes = [[1, *array.shape] if is_matrix[name] else list(array.shape) for name, array in arrays.items()]
    (folder / SHAPES).write_text(json.dumps(shapes))
    row = np.concatenate([array.ravel() for array in arrays.values()])
    for name, part in zip(PARTS, np.array_split(row, len(PARTS)), strict=True):
        np.save(folder / name, part)
    (folder / ENCODER).write_bytes((VOCABULARY / "vocab.json").read_bytes())
    (folder / MERGES).write_bytes((VOCABULARY / "merges.txt").read_bytes())


@pytest.fixture
def release(tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    write_release(folder)
    return folder


def test_every_tensor_gets_its_published_name_and_its_numbers(release, tmp_path):
    config = convert(release, tmp_path / "out")
    written, expected = load_file(tmp_path / "out" / "model.safetensors"), weights()
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(written[name], array), name
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == (L, C, 1, P)
    assert config.vocab_size == V


def test_a_converted_folder_loads_as_a_model_and_its_tokenizers(release, tmp_path):
    convert(release, tmp_path / "out", heads=4)
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(found.values())
    assert type(model).__name__ == "OpenAIGPTLMHeadModel"
    assert model.config.n_head == 4
    slow = OpenAIGPTTokenizer.from_pretrained(tmp_path / "out")
    assert slow.pre_tokenizer == "spacy"
    fast = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (fast.model_max_length, len(fast), len(slow)) == (P, V, V)
    with torch.no_grad():
        logits = model.eval()(**fast("The old man and the sea", return_tensors="pt")).logits
    assert torch.isfinite(logits).all()
    bare = OpenAIGPTModel.from_pretrained(tmp_path / "out")
    assert torch.equal(bare.h[1].mlp.c_fc.weight, torch.from_numpy(weights()["h.1.mlp.c_fc.weight"]))


def test_the_pre_tokenizer_that_the_files_ask_for_can_be_chosen(release, tmp_path):
    convert(release, tmp_path, pre_tokenizer="basic")
    assert OpenAIGPTTokenizer.from_pretrained(tmp_path).pre_tokenizer == "basic"


def test_older_weights_and_tokens_in_the_target_are_replaced(release, tmp_path):
    for name in ("pytorch_model.bin", "added_tokens.json"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "notes.txt").write_text("mine")
    convert(release, tmp_path)
    assert not (tmp_path / "pytorch_model.bin").exists()
    assert not (tmp_path / "added_tokens.json").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"


MEASURE = """
import json, os, resource, sys
from triptych.models.openai_gpt.conversion import convert
def peak():  # bytes
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
convert(sys.argv[1], sys.argv[3])  # a small one, so that what follows is the weights alone
if os.path.exists("/proc/self/clear_refs"):
    open("/proc/self/clear_refs", "w").write("5")
before = peak()
convert(sys.argv[2], sys.argv[4])
print(peak() - before)
"""


def test_converting_needs_much_less_memory_than_the_weights(release, tmp_path):
    large, width = tmp_path / "large", 1024
    large.mkdir()
    for name in (ENCODER, MERGES):
        (large / name).write_bytes((release / name).read_bytes())
    shapes = [
        [width * size // C if size % C == 0 else size for size in shape]
        for shape in json.loads((release / SHAPES).read_text())
    ]
    (large / SHAPES).write_text(json.dumps(shapes))
    count = sum(map(math.prod, shapes))
    for name, part in zip(PARTS, np.array_split(np.zeros(count, np.float32), len(PARTS)), strict=True):
        np.save(large / name, part)
    command = [sys.executable, "-c", MEASURE, release, large, tmp_path / "out_small", tmp_path / "out_large"]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert count * 4 > 150e6
    assert peak < 0.5 * count * 4


# Damage: what is wrong is named, and nothing is written.


class Boom:
    def __reduce__(self):
        return (print, ("code from a .npy file ran",))


def edit_shapes(change):
    def damage(folder):
        shapes = json.loads((folder / SHAPES).read_text())
        (folder / SHAPES).write_text(json.dumps(change(shapes)))

    return damage


def replace_part(part):
    return lambda folder: np.save(folder / PARTS[2], part, allow_pickle=True)


def cut_part(folder):
    path = folder / PARTS[3]
    path.write_bytes(path.read_bytes()[:-400])


def shorten_part(folder):
    np.save(folder / PARTS[3], np.load(folder / PARTS[3])[:-7])


def drop_token(folder):
    vocabulary = json.loads((folder / ENCODER).read_text())
    (folder / ENCODER).write_text(json.dumps({t: i for t, i in vocabulary.items() if t != "\n</w>"}))


COUNT = sum(int(np.prod(shape)) for _, shape in NAMES)
DAMAGES = {
    "no shapes": (lambda f: (f / SHAPES).unlink(), MissingFileError, r"params_shapes\.json.*does not exist"),
    "shapes are no JSON": (lambda f: (f / SHAPES).write_text("[["), InvalidFileError, r"params_shapes\.json.*JSON"),
    "shapes are an object": (edit_shapes(lambda s: {"a": s}), InvalidFileError, "list of shapes"),
    "a shape of text": (edit_shapes(lambda s: [["x"], *s[1:]]), InvalidFileError, "list of shapes"),
    "a negative size": (edit_shapes(lambda s: [[-1, 4], *s[1:]]), InvalidFileError, "list of shapes"),
    "a shape too few": (edit_shapes(lambda s: s[:-1]), InvalidFileError, "2 shapes and 12 more for each layer.*37"),
    "no layers": (edit_shapes(lambda s: s[:2]), InvalidFileError, "and lists 2"),
    "a flat table": (edit_shapes(lambda s: [[P * C], *s[1:]]), InvalidFileError, "positions must have two axes"),
    "another shape": (
        edit_shapes(lambda s: [*s[:4], [1, 2 * C, C], *s[5:]]),
        CheckpointError,
        r"h0/attn/c_proj/w must have the shape \(1, C, C\) = \(1, 64, 64\), and has \(1, 128, 64\)",
    ),
    "parts missing": (
        lambda f: [(f / PARTS[k]).unlink() for k in (4, 9)],
        MissingFileError,
        r"lacks params_4\.npy, params_9\.npy",
    ),
    "sizes do not add up": (shorten_part, CheckpointError, f"{COUNT:,} numbers.*hold {COUNT - 7:,}"),
    "a part cut short": (cut_part, InvalidFileError, r"params_3\.npy"),
    "a part of text": (lambda f: (f / PARTS[1]).write_text("no"), InvalidFileError, r"params_1\.npy"),
    "an empty part": (lambda f: (f / PARTS[1]).write_bytes(b""), InvalidFileError, r"params_1\.npy"),
    "a pickle": (
        lambda f: (f / PARTS[5]).write_bytes(pickle.dumps(Boom())),
        InvalidFileError,
        r"params_5\.npy.*pickled objects are never read",
    ),
    "objects": (replace_part(np.array([Boom()])), InvalidFileError, r"params_2\.npy"),
    "doubles": (replace_part(np.ones(5)), InvalidFileError, r"params_2\.npy.*float32.*float64 of shape \(5,\)"),
    "a matrix": (replace_part(np.ones((5, 1), np.float32)), InvalidFileError, r"params_2\.npy.*\(5, 1\)"),
    "no vocabulary": (lambda f: (f / ENCODER).unlink(), MissingFileError, r"encoder_bpe_40000\.json"),
    "no merges": (lambda f: (f / MERGES).unlink(), MissingFileError, r"vocab_40000\.bpe"),
    "merges that do not fit": (
        lambda f: (f / MERGES).write_text("#version: 0.2\nt h\nqq zz\n"),
        InvalidFileError,
        r"Line 3 of .*vocab_40000\.bpe.*'qq zz'.*fit the vocabulary",
    ),
    "a vocabulary of another size": (drop_token, CheckpointError, r"has 1077 tokens, and the model.*has 1078"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_release_is_refused_by_name_and_nothing_is_written(name, release, tmp_path, capsys):
    damage, error, message = DAMAGES[name]
    damage(release)
    with pytest.raises(error, match=message):
        convert(release, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "heads must divide the width 64, and 5 does not"),
        ({"heads": 0}, "heads must divide the width 64, and 0 does not"),
        ({"pre_tokenizer": "nltk"}, "one of spacy, basic, not 'nltk'"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(options, message, release, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert(release, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_width_that_says_no_number_of_heads_asks_for_it(release, tmp_path):
    shapes = [[P, 48], [V, 48], [1, 48, 144], [144], [1, 48, 48], [48], [48], [48], [1, 48, 192], [192]]
    (release / SHAPES).write_text(json.dumps([*shapes, [1, 192, 48], [48], [48], [48]]))
    with pytest.raises(ValueError, match=r"the width is 48.*--heads"):
        convert(release, tmp_path / "out")


def test_an_interrupted_conversion_leaves_the_target_as_it_was(release, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"old")

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("triptych.configuration.PretrainedConfig.save_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(release, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"old"


def test_a_target_that_is_a_file_is_refused(release, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SaveError, match="is a file"):
        convert(release, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# The table and what applies it.


@given(st.integers(1, 5))
def test_the_table_names_every_tensor_once_for_any_number_of_layers(layers):
    rows = rows_of(OPENAI_RELEASE, layers)
    assert len(rows) == 2 + 12 * layers
    assert len({row.published for row in rows}) == len({row.original for row in rows}) == len(rows)
    assert [row.original for row in rows[:3]] == ["positions", "tokens", "h0/attn/c_attn/w"]
    assert rows[-1].published == f"h.{layers - 1}.ln_2.bias"


def test_a_tensor_that_is_missing_unused_or_of_another_shape_is_refused():
    rows = [Row("x.weight", "x/w", "1 C 3", "drop leading axis"), Row("x.bias", "x/b", "3")]
    arrays = {"x/w": np.arange(6.0).reshape(1, 2, 3), "x/b": np.zeros(3)}
    renamed = rename(arrays, rows, {"C": 2}, "here")
    assert renamed["x.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert list(renamed) == ["x.weight", "x.bias"]
    with pytest.raises(CheckpointError, match="here lacks x/b"):
        rename({"x/w": arrays["x/w"]}, rows, {"C": 2}, "here")
    with pytest.raises(CheckpointError, match="holds what no row of the table names: y, z"):
        rename(arrays | {"z": arrays["x/b"], "y": arrays["x/b"]}, rows, {"C": 2}, "here")
    with pytest.raises(
        CheckpointError, match=r"x/w must have the shape \(1, C, 3\) = \(1, 5, 3\), and has \(1, 2, 3\)"
    ):
        rename(arrays, rows, {"C": 5}, "here")


# The command.


def test_the_command_converts_and_tells_what_it_made(release, tmp_path, run):
    facts = json.loads(run("convert", "openai-gpt", release, tmp_path / "out", "--heads", 2, "--json").out)
    assert facts["config"]["n_head"] == 2
    assert facts["files"] == {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt", "tokenizer.json"} <= facts["files"].keys()
    assert "3 layers of 64 wide, 1 heads" in run("convert", "openai-gpt", release, tmp_path / "again").out


def test_a_mistake_at_the_command_is_one_line(release, tmp_path, run):
    (release / PARTS[0]).unlink()
    done = run("convert", "openai-gpt", release, tmp_path / "out", code=1)
    assert "params_0.npy" in done.err
    assert done.err.count("\n") == 1
    assert "openai-gpt" in run("convert", "--help").out
