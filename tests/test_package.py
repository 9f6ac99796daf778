"""The layout that readers and users rely on: one guess, quick import, no framework where none is needed."""

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

import triptych
from triptych import frameworks

PACKAGE = Path(triptych.__file__).parent
FRAMEWORK_OF_SUFFIX = {"_torch": {"torch"}, "_tf": {"tensorflow", "keras"}, "_flax": {"jax", "flax"}}
DISTRIBUTIONS = {"PIL": "pillow", "tensorflow": "tensorflow-cpu"}  # where the name to install is another
FRAMEWORKS = set().union(*FRAMEWORK_OF_SUFFIX.values()) | {"accelerate"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_loads_no_framework():
    loaded = run("import sys, triptych; print(*sys.modules)").split()
    assert FRAMEWORKS.isdisjoint(loaded)
    assert {"numpy", "tokenizers", "huggingface_hub", "typer"}.isdisjoint(loaded)


def test_configurations_and_tokenizers_load_no_framework():
    loaded = run(
        "import sys; from triptych import GPTNeoConfig, GPT2TokenizerFast; GPTNeoConfig(); print(*sys.modules)"
    ).split()
    assert FRAMEWORKS.isdisjoint(loaded)


def test_the_list_of_public_names_is_sorted_and_every_name_is_there():
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    listed = [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    modules = [node.module for node in stub.body if isinstance(node, ast.ImportFrom)]
    assert modules == sorted(modules)
    assert sorted(triptych.__all__) == sorted(listed)
    assert len(set(listed)) == len(listed)
    old_names = {f"{way}DecoderOnlyOutput" for way in ("BeamSample", "BeamSearch", "GreedySearch", "Sample")}
    for name in set(triptych.__all__) - old_names:
        assert getattr(triptych, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GPT5"):
        _ = triptych.GPT5


@pytest.mark.parametrize("name", sorted(set(triptych.__all__) - {"AddedToken"}))  # that one is tokenizers' own
def test_a_class_is_found_in_one_guess(name):
    """The prefix picks the folder, TF or Flax the suffix, and the role the stem."""
    path = Path(sys.modules[getattr(triptych, name).__module__].__file__).relative_to(PACKAGE)
    families = {
        "Fuyu": "fuyu",
        "GPT2": "gpt2",
        "GPTNeo": "gpt_neo",
        "Llama": "llama",
        "OpenAIGPT": "openai_gpt",
        "Persimmon": "persimmon",
    }
    bare = re.sub("^(TF|Flax)", "", name)
    folder = next((folder for prefix, folder in families.items() if bare.startswith(prefix)), None)
    if folder is None:
        assert path.parts[0] != "models"
        return
    role = "modeling_" + next((suffix for suffix in ("TF", "Flax") if name.startswith(suffix)), "torch").lower()
    for ending, stem in (
        ("TokenizerFast", "tokenization_fast"),
        ("Tokenizer", "tokenization"),
        ("Config", "configuration"),
        ("BatchFeature", "image_processing"),
        ("DataCollator", "collating"),
        ("ImageProcessor", "image_processing"),
        ("BatchEncoding", "processing"),
        ("Processor", "processing"),
    ):
        if name.endswith(ending):
            role = stem
            break
    assert path == Path("models", folder, f"{role}.py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_suffix_allows_a_framework(path):
    allowed = next((names for suffix, names in FRAMEWORK_OF_SUFFIX.items() if path.stem.endswith(suffix)), set())
    if "runtime" in path.relative_to(PACKAGE).parts:
        allowed = {"torch"}
    tree = ast.parse(path.read_text())
    delayed = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    imported = set()
    for node in ast.walk(tree):
        if id(node) in delayed:
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported & FRAMEWORKS <= allowed
    assert "transformers" not in imported


def test_a_missing_framework_names_the_extra_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import triptych\n"
        "try: triptych.GPTNeoForCausalLM\n"
        "except ImportError as error: print(error)"
    )
    assert 'pip install "triptych[torch]"' in run(code)


def test_every_optional_library_is_in_the_extra_that_its_error_names():
    declared = requires("triptych")
    for library, extra in frameworks.EXTRAS.items():
        assert any(
            re.match(rf"{DISTRIBUTIONS.get(library, library)}\b", line)
            and re.search(rf"extra == ['\"]{extra}['\"]", line)
            for line in declared
        ), library


def test_all_tracked_files_together_stay_small():
    root = Path(__file__).parents[1]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    files = [root / name for name in tracked.stdout.split("\0") if name]
    assert sum(path.stat().st_size for path in files if path.exists()) < 50e6


@pytest.mark.skipif("CI" not in os.environ, reason="only continuous integration has to have them all")
def test_continuous_integration_has_every_framework_so_that_no_test_is_left_out():
    needed = {name for name, extra in frameworks.EXTRAS.items() if extra != "train"}
    assert {name for name in needed if not frameworks.is_available(name)} == set()
