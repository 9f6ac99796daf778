"""`triptych generate PROMPT`: continue a prompt, word by word as it is written."""

import json
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych import pretrained
from triptych.cli.device import device_named

if TYPE_CHECKING:
    from torch import Tensor

    from triptych import PreTrainedTokenizerBase, TextStreamer

DEFAULT_LENGTH = 200


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
        float, typer.Option("--temperature", "-t", help="Below 1 is safer, above 1 is wilder.")
    ] = 0.7,
    top_k: Annotated[int, typer.Option(help="Choose among the k likeliest tokens; 0 for all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Choose among the likeliest tokens whose chances add up to p.")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less.")] = 1.0,
    no_repeat_ngram_size: Annotated[int, typer.Option(help="Write no run of n tokens twice; 0 allows it.")] = 0,
    samples: Annotated[int, typer.Option(help="Write this many continuations.", min=1)] = 1,
    stop: Annotated[list[str] | None, typer.Option(help="Stop after this text; may be given several times.")] = None,
    max_time: Annotated[float | None, typer.Option(help="Stop after this many seconds.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, …; auto takes a GPU when there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or auto for that of the files.")] = "float32",
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="int8: a quarter of the memory and faster, on a CPU.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead, at the end.")] = False,
) -> None:
    """Continue a prompt with a language model, printed as it is written."""
    text = prompt if prompt is not None else _from_pipe()

    import torch  # after the arguments are known to be right: help and mistakes are quick

    from triptych import AutoModelForCausalLM, AutoTokenizer, TextStreamer

    place = device_named(device, quantization)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(
        model, torch_dtype=dtype, low_cpu_mem_usage=True, quantization=quantization
    ).to(place)
    inputs = tokenizer(text, return_tensors="pt").to(place)
    if inputs.input_ids.shape[1] == 0:
        raise typer.BadParameter("The prompt is empty. Give at least one character.")
    if seed is None:
        seed = torch.seed() % 2**32
    torch.manual_seed(seed)

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens or _room(network.max_positions, inputs.input_ids.shape[1]),
        "do_sample": not greedy,
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram_size,
        "num_return_sequences": samples,
        "max_time": max_time,
        "pad_token_id": tokenizer.eos_token_id,
    }
    if not greedy:
        options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    if stop:
        options |= {"stop_strings": stop, "tokenizer": tokenizer}
    if not as_json and samples == 1:
        options["streamer"] = _AfterPrompt(
            text, tokenizer, TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        )

    start = time.perf_counter()
    ids = network.generate(**inputs, **options)
    seconds = time.perf_counter() - start

    new = [_new_ids(row, inputs.input_ids.shape[1], tokenizer.eos_token_id) for row in ids]
    last = int(inputs.input_ids[0, -1])
    written = [
        _gap(tokenizer, text, last, row[0]) + completion
        for row, completion in zip(new, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True)
    ]
    count = sum(map(len, new))
    if as_json:
        facts = {
            "model": model,
            "prompt": text,
            "completions": written,
            "seed": None if greedy else seed,
            "new_tokens": count,
            "seconds": round(seconds, 3),
        }
        typer.echo(json.dumps(facts, ensure_ascii=False))
        return
    for number, completion in enumerate(written, 1):
        if samples > 1:
            typer.secho(f"[{number}]", dim=True)
            _show_prompt(text)
            typer.echo(completion)
    if sys.stderr.isatty():
        chance = "" if greedy else f", seed {seed}"
        typer.secho(f"{count} tokens in {seconds:.1f} s, {count / seconds:.0f} tokens/s{chance}", dim=True, err=True)


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
