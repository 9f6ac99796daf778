"""`triptych generate PROMPT`: continue a prompt, word by word as it is written."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych import pretrained
from triptych.cli import explanation
from triptych.cli.device import device_named
from triptych.cli.flags import errors_in_flags, refuse_with
from triptych.cli.paths import require_folder

if TYPE_CHECKING:
    from torch import Tensor

    from triptych import PreTrainedTokenizerBase, TextStreamer

DEFAULT_LENGTH = 200
DEFAULTS = {"temperature": 0.7, "top_k": 0, "top_p": 0.9}  # of sampling


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to continue; read from a pipe when not given.")] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A folder, a hub name, or a model in the box.")
    ] = pretrained.DEFAULT,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", "-n", min=1, help=f"Tokens to write; {DEFAULT_LENGTH} or what fits if not given."
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always take the likeliest token; no chance.")] = False,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="Below 1 is safer, above 1 is wilder; 0.7 if not given."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among the k likeliest tokens; all if not given, or 0.")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Choose among the likeliest tokens whose chances add up to p; 0.9 if not given."),
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(min=0, help="Write no run of n tokens twice; 0 allows it.")] = 0,
    samples: Annotated[int, typer.Option(help="Write this many continuations.", min=1)] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="Stop after this text; may be given several times.")] = None,
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JSON that follows the JSON schema in this file.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Write a text that this regular expression matches.")] = None,
    max_time: Annotated[float | None, typer.Option(min=0, help="Stop after this many seconds.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how likely each token was, and what else could have stood there.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write that as a page for the browser, too.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto takes a GPU when there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for that of the files.")] = "float32",
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="int8 or int4: weights of 8 or 4 bits, which take less memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead, at the end.")] = False,
) -> None:
    """Continue a prompt with a language model, printed as it is written."""
    text = prompt if prompt is not None else _from_pipe()
    options = _choice(greedy, samples, {"temperature": temperature, "top_k": top_k, "top_p": top_p})
    options |= {"repetition_penalty": repetition_penalty, "no_repeat_ngram_size": no_repeat_ngram_size}
    options |= {"max_time": max_time, "stop_strings": stop or None}
    grammar = _grammar(json_schema, regex)
    options |= grammar
    if html is not None:
        require_folder(html.parent, "--html")
        if html.is_dir():
            raise typer.BadParameter(f"--html names the file to write, and {html} is a folder. Try {html}/page.html.")
    with errors_in_flags():
        _refuse_model(model)
        _check(options)

    import torch  # after the arguments are known to be right: help and mistakes are quick

    from triptych import AutoModelForCausalLM, AutoTokenizer, TextStreamer

    place = device_named(device, quantization)
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(text, return_tensors="pt").to(place)
    length = inputs.input_ids.shape[1]
    if length == 0:
        raise typer.BadParameter("The prompt is empty. Give at least one character.")
    with errors_in_flags():
        network = AutoModelForCausalLM.from_pretrained(
            model,
            torch_dtype=dtype,
            low_cpu_mem_usage=True,
            quantization=quantization,
            device_map=place if quantization else None,
        ).to(place)
    if seed is None:
        seed = torch.seed() % 2**32
    torch.manual_seed(seed)

    explained = explain or html is not None
    streamed = not as_json and not explain and samples == 1
    # what cleaning takes out of a text, a grammar may have asked for
    decoding: dict[str, Any] = {"clean_up_tokenization_spaces": False} if grammar else {}
    decoding["skip_special_tokens"] = True
    options |= {
        "max_new_tokens": max_new_tokens or _room(network.max_positions, length),
        "pad_token_id": tokenizer.eos_token_id,
        "return_dict_in_generate": True,
        "output_scores": explained,
    }
    if streamed:
        options["streamer"] = _AfterPrompt(text, tokenizer, TextStreamer(tokenizer, skip_prompt=True, **decoding))

    start = time.perf_counter()
    with errors_in_flags():
        out = network.generate(**inputs, **options, tokenizer=tokenizer)
    seconds = time.perf_counter() - start

    new = [_new_ids(row, length, tokenizer.eos_token_id) for row in out.sequences]
    last = int(inputs.input_ids[0, -1])
    written = [
        _gap(tokenizer, text, last, row[0]) + completion
        for row, completion in zip(new, tokenizer.batch_decode(new, **decoding), strict=True)
    ]
    count = sum(map(len, new))
    chance = None if greedy else seed
    facts: dict[str, Any] = {
        "model": model,
        "prompt": text,
        "completions": written,
        "seed": chance,
        "new_tokens": count,
        "seconds": round(seconds, 3),
    }
    if grammar:
        facts["complete"] = [row[-1] == tokenizer.eos_token_id for row in new]
    if explained:
        texts = explanation.explain_all(network, tokenizer, out, new, length)
        if html is not None:
            explanation.write_page(html, texts, facts, options)
            facts["html"] = str(html)
        if explain:
            facts["tokens"] = [[token.to_dict() for token in tokens] for tokens in texts]
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    if explain:
        explanation.show(texts)
    elif not streamed:
        _show_all(text, written)
    _tell(facts)


def _show_all(prompt: str, completions: list[str]) -> None:
    for number, completion in enumerate(completions, 1):
        if len(completions) > 1:
            typer.secho(f"[{number}]", dim=True)
        _show_prompt(prompt)
        typer.echo(completion)


def _tell(facts: dict[str, Any]) -> None:
    """What is worth knowing beside the text."""
    if not all(facts.get("complete", ())):
        typer.secho("The text was cut off before it was complete. Raise --max-new-tokens.", err=True)
    if "html" in facts:
        typer.secho(f"written to {facts['html']}", dim=True, err=True)
    if sys.stderr.isatty():
        count, seconds = facts["new_tokens"], facts["seconds"]
        speed = f"{count} tokens in {seconds:.1f} s, {count / max(seconds, 1e-3):.0f} tokens/s"
        typer.secho(speed if facts["seed"] is None else f"{speed}, seed {facts['seed']}", dim=True, err=True)


def _choice(greedy: bool, samples: int, given: dict[str, Any]) -> dict[str, Any]:
    """The options of how tokens are chosen; `given` are those of sampling, None where they were not.

    Raises: typer.BadParameter for options of sampling beside --greedy.
    """
    if not greedy:
        chance = {name: DEFAULTS[name] if value is None else value for name, value in given.items()}
        return {"do_sample": True, "num_return_sequences": samples, **chance}
    named = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    named["--samples"] = samples if samples > 1 else None
    refuse_with("--greedy", "always takes the likeliest token", named)
    return {"do_sample": False}


def _grammar(json_schema: Path | None, regex: str | None) -> dict[str, Any]:
    """The option that the text is to follow; none is the rule.

    Raises: typer.BadParameter for two at once; OSError or ValueError for a schema or expression that cannot be read.
    """
    from triptych.files import read_json
    from triptych.generation.grammar import check

    if json_schema is None and regex is None:
        return {}
    if json_schema is not None and regex is not None:
        raise typer.BadParameter("A text follows --json-schema or --regex, not both. Leave one of them out.")
    asked = {"regex": regex} if json_schema is None else {"json_schema": read_json(json_schema)}
    with errors_in_flags():
        check(**asked)
    return asked


def _refuse_model(model: str) -> None:
    """Refuse a model that looks at pictures, which writes nonsense without one.

    Raises: typer.BadParameter naming the command that it is for.
    """
    from triptych import AutoConfig

    if AutoConfig.from_pretrained(model).model_type == "fuyu":
        raise typer.BadParameter(f"{model} answers about a picture. Run: triptych caption PICTURE --model {model}")


def _check(options: dict[str, Any]) -> None:
    """Refuse options that are out of their range, before the model is loaded.

    Raises: ValueError.
    """
    import torch

    from triptych import GenerationConfig
    from triptych.generation import pipeline_torch

    plain = {name: value for name, value in options.items() if name not in ("json_schema", "regex")}
    pipeline_torch.transforms(pipeline_torch.Call(GenerationConfig(**plain), torch.zeros(1, 1).long()), None)


def _from_pipe() -> str:
    if sys.stdin.isatty():
        raise typer.BadParameter('A prompt is needed: triptych generate "Once upon a time", or pipe one in.')
    return sys.stdin.read().rstrip("\n")


def _room(positions: int | None, prompt_length: int) -> int:
    """How much to write when not told: what fits behind the prompt; 1 lets `generate` say that nothing does."""
    return DEFAULT_LENGTH if positions is None else max(1, min(DEFAULT_LENGTH, positions - prompt_length))


class _AfterPrompt:
    """A streamer that shows the prompt when `generate` has found nothing wrong with the call, then what is written."""

    def __init__(self, prompt: str, tokenizer: "PreTrainedTokenizerBase", streamer: "TextStreamer") -> None:
        self._prompt, self._tokenizer, self._streamer = prompt, tokenizer, streamer
        self._puts = 0
        self._last = 0

    def put(self, ids: "Tensor") -> None:
        """Take the prompt's ids, then each new one."""
        self._puts += 1
        if self._puts == 1:
            _show_prompt(self._prompt)
            self._last = int(ids.flatten()[-1])
        elif self._puts == 2:
            typer.echo(_gap(self._tokenizer, self._prompt, self._last, int(ids.flatten()[0])), nl=False)
        self._streamer.put(ids)

    def end(self) -> None:
        """Print what is left."""
        if self._puts:
            self._streamer.end()


def _show_prompt(text: str) -> None:
    typer.secho(text, nl=False, bold=True)
    sys.stdout.flush()


def _gap(tokenizer: "PreTrainedTokenizerBase", prompt: str, last: int, first: int) -> str:
    """The space between the prompt and the first new token, where tokens do not begin with their own (OpenAI GPT)."""
    both, left, right = (tokenizer.decode(ids, skip_special_tokens=True) for ids in ([last, first], [last], [first]))
    is_gap = left and right and both == f"{left} {right}" and not prompt[-1].isspace()
    return " " if is_gap else ""


def _new_ids(row: "Tensor", prompt_length: int, end: int | None) -> list[int]:
    """The ids written after the prompt, up to and with the first end token; behind it is only padding."""
    ids: list[int] = row[prompt_length:].tolist()
    return ids[: ids.index(end) + 1] if end in ids else ids
