"""The documentation's Python runs as it stands, and prints what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

PAGES = (
    "README.md",
    *(
        f"docs/{page}.md"
        for page in ("decoding", "explain", "flax", "fuyu", "grammars", "quantization", "tensorflow", "watermarks")
    ),
)


@pytest.mark.filterwarnings("ignore:Not all weights:triptych.errors.LoadingWarning")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras reads weights so
@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, capsys):
    blocks = BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    promised = re.findall(r"^print\(.*\)  # (.+)$", "".join(blocks), re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    for promise, line in zip(promised, printed, strict=False):
        assert re.fullmatch(re.escape(promise).replace("…", r"\d+"), line)
