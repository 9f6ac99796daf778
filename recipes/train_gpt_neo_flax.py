"""Train a GPT Neo with JAX and Optax on a folder of text files, from nothing to a model that every framework can load.

    python recipes/train_gpt_neo_flax.py TRAIN_FOLDER --valid VALID_FOLDER --out runs/tales-flax

Learns a vocabulary, packs the texts into one long row of ids, and trains on all devices that JAX finds: each takes a
part of the batch and, with --split-model N, N of them share the model. A run that was stopped goes on where it was when
the same command is given again. Needs the extra `flax` alone.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from flax import serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import ByteLevelBPETokenizer

from triptych import FlaxGPTNeoForCausalLM, GPT2TokenizerFast, GPTNeoConfig
from triptych.losses_flax import next_token_loss

END = "<|endoftext|>"
CHECKPOINT = "checkpoint.msgpack"


def learn_vocabulary(files: list[Path], vocab_size: int, folder: Path) -> GPT2TokenizerFast:
    """A vocabulary in `folder`; that of a run that goes on is taken as it is."""
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        bpe = ByteLevelBPETokenizer()
        bpe.train([str(file) for file in files], vocab_size=vocab_size, special_tokens=[END], show_progress=False)
        bpe.save_model(str(folder))
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), bos_token=END, eos_token=END)


def pack(files: list[Path], tokenizer: GPT2TokenizerFast) -> np.ndarray:
    """All texts in one row of ids, each ended by END."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    rows = tokenizer(texts, verbose=False).input_ids
    return np.concatenate([np.array([*row, tokenizer.eos_token_id], dtype=np.int32) for row in rows])


def windows(ids: np.ndarray, length: int, count: int, seed: int, step: int) -> np.ndarray:
    """`count` windows (count, length) from places that follow from the seed and the step, before and after a stop."""
    starts = np.random.default_rng((seed, step)).integers(0, len(ids) - length + 1, count)
    return np.stack([ids[start : start + length] for start in starts])


def optimizer(peak_rate: float, warmup: int, steps: int) -> optax.GradientTransformation:
    """AdamW; a short warm-up and then a straight line down to zero; no decay of biases and norms."""
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, peak_rate, warmup), optax.linear_schedule(peak_rate, 0.0, max(1, steps - warmup))],
        [warmup],
    )
    matrices = lambda params: jax.tree_util.tree_map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.1, mask=matrices)
    )


def make_step(model: FlaxGPTNeoForCausalLM, transform: optax.GradientTransformation) -> Callable[..., Any]:
    """One step of training as a compiled function of (params, state of the optimizer, batch (B, T), key)."""

    def loss_of(params: Any, batch: jax.Array, key: Any) -> jax.Array:
        return next_token_loss(model(batch, params=params, dropout_rng=key, train=True).logits, batch)

    def step(params: Any, state: Any, batch: jax.Array, key: Any) -> tuple[Any, Any, jax.Array]:
        loss, gradients = jax.value_and_grad(loss_of)(params, batch, key)
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def mean_loss(model: FlaxGPTNeoForCausalLM, params: Any, ids: np.ndarray, length: int, batch_size: int) -> float:
    """The loss (nats per token) on the first windows of a row of ids, at most 20 batches."""
    rows = ids[: len(ids) // length * length].reshape(-1, length)[: 20 * batch_size]
    rows = rows[: max(1, len(rows) // batch_size) * batch_size]
    losses = [
        float(next_token_loss(model(rows[start : start + batch_size], params=params).logits, rows[start:][:batch_size]))
        for start in range(0, len(rows), batch_size)
    ]
    return float(np.mean(losses))


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Written beside and renamed, so that a stop in the middle leaves the last one."""
    beside = folder / f"{CHECKPOINT}.new"
    beside.write_bytes(serialization.to_bytes(jax.device_get(state)))
    beside.replace(folder / CHECKPOINT)


def main(
    train: Annotated[Path, typer.Argument(help="Folder of .txt files to learn from.")],
    valid: Annotated[Path, typer.Option(help="Folder of .txt files to be scored on.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; a stopped run goes on from here.")],
    vocab_size: int = 4096,
    hidden_size: int = 256,
    num_layers: int = 4,
    num_heads: int = 8,
    window_size: Annotated[int, typer.Option(help="What the local layers see.")] = 128,
    dropout: float = 0.0,
    length: Annotated[int, typer.Option(help="Tokens in a row, and positions of the model.")] = 512,
    batch_size: int = 8,
    steps: int = 5000,
    peak_rate: float = 2e-3,
    warmup: int = 200,
    every: Annotated[int, typer.Option(help="Steps from one checkpoint and score to the next.")] = 250,
    half: Annotated[bool, typer.Option(help="Compute in bfloat16; parameters stay in float32.")] = False,
    split_model: Annotated[int, typer.Option(help="How many devices share a model.")] = 1,
    seed: int = 0,
) -> None:
    """Train a GPT Neo of a new vocabulary on a folder of text files."""
    train_files, valid_files = sorted(train.glob("*.txt")), sorted(valid.glob("*.txt"))
    if not train_files or not valid_files:
        raise typer.BadParameter(f"Both folders must hold .txt files; got {len(train_files)} and {len(valid_files)}.")
    tokenizer = learn_vocabulary(train_files, vocab_size, out)
    train_ids, valid_ids = pack(train_files, tokenizer), pack(valid_files, tokenizer)
    if min(len(train_ids), len(valid_ids)) < length:
        raise typer.BadParameter(f"Both folders must hold {length} tokens or more. Pass more text or a lower --length.")
    config = GPTNeoConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        attention_types=[[["global", "local"], num_layers // 2]],
        window_size=window_size,
        resid_dropout=dropout,
        embed_dropout=dropout,
        attention_dropout=dropout,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = FlaxGPTNeoForCausalLM(config, seed=seed, dtype=jnp.bfloat16 if half else jnp.float32)
    typer.echo(
        f"{len(train_ids):,} tokens to learn from, {model.num_params():,} parameters, {len(jax.devices())} devices"
    )

    transform = optimizer(peak_rate, warmup, steps)
    state = {"step": 0, "params": model.params, "optimizer": transform.init(model.params)}
    if (out / CHECKPOINT).exists():
        state = serialization.from_bytes(state, (out / CHECKPOINT).read_bytes())
        typer.echo(f"going on after step {state['step']}")
    mesh = Mesh(np.array(jax.devices()).reshape(-1, split_model), ("data", "model"))
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    params, optimizer_state = model.shard_params(mesh, state["params"]), state["optimizer"]
    step_of, log = make_step(model, transform), (out / "log.jsonl").open("a", encoding="utf-8")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, log:
        bar = progress.add_task("training", total=steps, completed=state["step"])
        for step in range(state["step"], steps):
            batch = jax.device_put(windows(train_ids, length, batch_size, seed, step), by_rows)
            key = jax.random.fold_in(jax.random.PRNGKey(seed), step)
            params, optimizer_state, loss = step_of(params, optimizer_state, batch, key)
            progress.update(bar, advance=1)
            if (step + 1) % every == 0 or step + 1 == steps:
                scores = {"step": step + 1, "train_loss": float(loss)}
                scores["valid_loss"] = mean_loss(model, params, valid_ids, length, batch_size)
                log.write(json.dumps(scores) + "\n")
                log.flush()
                progress.update(bar, description=f"loss {scores['train_loss']:.3f}, valid {scores['valid_loss']:.3f}")
                save_checkpoint(out, {"step": step + 1, "params": params, "optimizer": optimizer_state})

    model.save_pretrained(out, params=jax.device_get(params))
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(out)
    typer.echo(f"saved in {out}; write with it: triptych generate --model {out} 'Once upon a time'")


if __name__ == "__main__":
    typer.run(main)
