"""What `--explain` shows: a text coloured by how likely each token was, and the runners-up; in a terminal or a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.generation.explain_torch import ExplainedToken

Texts = list[list["ExplainedToken"]]
RUNNERS_UP = 5


@dataclass(frozen=True)
class Band:
    """A range of probabilities, from `least` up to the band before, with its name on the page and its colours."""

    least: float
    label: str
    style: str  # in a terminal


BANDS = (
    Band(0.5, "50 % and more", ""),
    Band(0.2, "20 – 50 %", "cyan"),
    Band(0.05, "5 – 20 %", "yellow"),
    Band(0.01, "1 – 5 %", "dark_orange"),
    Band(0.0, "under 1 %", "bold red"),
)


def band(probability: float | None) -> int:
    """The number of a probability's band, 0 for the likeliest; none is likely."""
    return 0 if probability is None else next(n for n, each in enumerate(BANDS) if probability >= each.least)


def percent(probability: float | None) -> str:
    """A probability for people: two digits, and none where there is none."""
    if probability is None:
        return "–"
    digits = f"{100 * probability:.0f}" if probability >= 0.0995 else f"{100 * probability:.2g}"
    return f"{digits if probability >= 0.0001 else '<0.01'}\N{NO-BREAK SPACE}%"


def visible(text: str) -> str:
    """A token's text in one line, without characters that a terminal or a browser would obey."""
    text = text.replace("\n", "↵").replace("\t", "⇥")
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def readable(text: str) -> str:
    """Text as it is, but for control characters other than line breaks and tabs."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def explain_all(network: Any, tokenizer: Any, out: Any, new: Sequence[list[int]], prompt_length: int) -> Texts:
    """Each text that `generate` returned, explained; `new` holds the ids behind the prompt, without padding."""
    from triptych.generation.explain_torch import explain

    return [
        explain(
            network,
            tokenizer,
            out.sequences[row, : prompt_length + len(ids)],
            prompt_length,
            RUNNERS_UP,
            [scores[row] for scores in out.scores],
        )
        for row, ids in enumerate(new)
    ]


# -- in a terminal ---------------------------------------------------------------------------------------------------


def show(texts: Texts) -> None:
    """Print each text in colours, the legend, and a line for each new token; no colours where there is no terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for number, tokens in enumerate(texts, 1):
        if len(texts) > 1:
            console.print(Text(f"[{number}]", "dim"))
        line = Text()
        for token in tokens:
            style = BANDS[band(token.probability)].style
            line.append(readable(token.text), f"{style} underline".strip() if token.is_prompt else style)
        console.print(line, soft_wrap=True)
        console.print()
    console.print(Text(" · ").join(Text(each.label, each.style) for each in BANDS), Text("   prompt", "underline"))
    for number, tokens in enumerate(texts, 1):
        console.print()
        if len(texts) > 1:
            console.print(Text(f"[{number}]", "dim"))
        for token in tokens:
            if not token.is_prompt:
                console.print(_line(token), soft_wrap=True)


def _line(token: "ExplainedToken") -> Any:
    from rich.text import Text

    style = BANDS[band(token.probability)].style
    line = Text(f"{percent(token.probability):>8}  ", style)
    line.append(f"{visible(token.text) or '…':<14}", f"{style} bold")
    others = [each for each in token.alternatives if each.id != token.id][: RUNNERS_UP - 1]
    line.append("  " + "  ".join(f"{visible(each.text)} {percent(each.probability)}" for each in others), "dim")
    return line


# -- as a page -------------------------------------------------------------------------------------------------------


def write_page(path: Path, texts: Texts, facts: dict[str, Any], options: dict[str, Any]) -> None:
    """Write the page, whole or not at all.

    Raises: OSError when it cannot be written.
    """
    from triptych.files import staged_folder

    with staged_folder(path.parent) as stage:
        (stage / path.name).write_text(page(texts, facts, options), encoding="utf-8", newline="\n")


def page(texts: Texts, facts: dict[str, Any], options: dict[str, Any]) -> str:
    """One file of HTML that needs nothing else; everything that comes from the model or the user is escaped."""
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    legend = "".join(f'<li><span class="t b{n}">{escape(each.label)}</span></li>' for n, each in enumerate(BANDS))
    articles = "\n".join(_article(number, tokens, len(texts)) for number, tokens in enumerate(texts))
    shown = {"model": facts["model"]} | _told(options) | {"seed": facts["seed"], "new tokens": facts["new_tokens"]}
    rows = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(readable(str(value)))}</dd></div>"
        for name, value in shown.items()
        if value is not None
    )
    # inside a script element no < may stand, or the text could end the element
    data = json.dumps([[_data(token) for token in tokens] for tokens in texts], ensure_ascii=False)
    return template.substitute(
        title=escape(visible(facts["prompt"])[:60]),
        facts=rows,
        legend=legend,
        articles=articles,
        data=data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )


def _told(options: dict[str, Any]) -> dict[str, Any]:
    """The options that shaped the text, in words."""
    if not options["do_sample"]:
        return {"decoding": "greedy"}
    named = {"temperature": options["temperature"], "top-k": options["top_k"] or None, "top-p": options["top_p"]}
    return {"decoding": "sampling"} | named


def _article(number: int, tokens: list["ExplainedToken"], count: int) -> str:
    from triptych.generation.explain_torch import perplexity

    spans = []
    for place, token in enumerate(tokens):
        kind = f"t b{band(token.probability)}{' p' if token.is_prompt else ''}"
        broken = escape(readable(token.text)).replace("\n", '<i class="nl">↵</i>\n') or '<i class="nl">·</i>'
        spans.append(f'<span class="{kind}" data-at="{number},{place}" tabindex="0">{broken}</span>')
    value = perplexity(tokens)
    note = "" if value is None else f"perplexity {value:.1f}: like choosing among {value:.1f} equally likely tokens"
    head = f"<h2>{number + 1}</h2>" if count > 1 else ""
    return f'<article>{head}<p class="text">{"".join(spans)}</p><p class="note">{note}</p></article>'


def _data(token: "ExplainedToken") -> list[Any]:
    """What the card of a token shows: text, chance, rank, drawn with, and [text, chance, is it] of the likeliest."""
    return [
        visible(token.text),
        percent(token.probability),
        token.rank,
        None if token.drawn_with is None else percent(token.drawn_with),
        [
            [visible(each.text), percent(each.probability), round(each.probability, 4), each.id == token.id]
            for each in token.alternatives
        ],
    ]
