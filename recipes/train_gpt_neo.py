"""Train a GPT Neo on a folder of text files, from nothing to a model that `triptych generate` can use.

    python recipes/train_gpt_neo.py TRAIN_FOLDER --valid VALID_FOLDER --out runs/tales-neo

Learns a byte-level BPE vocabulary, packs the texts into one long row of ids, trains with Lightning (on whatever it
finds: a CPU, a GPU or several), and writes a folder with the weights in float16, the tokenizer, the loss curve and
the scores on the validation texts. A run that was stopped goes on where it was when the same command is given again.
"""

import csv
import json
import math
from pathlib import Path
from typing import Annotated

import lightning as L
import matplotlib as mpl
import numpy as np
import torch
import typer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triptych import GPT2TokenizerFast, GPTNeoConfig, GPTNeoForCausalLM

mpl.use("Agg")
import matplotlib.pyplot as plt

END = "<|endoftext|>"


def learn_vocabulary(files: list[Path], vocab_size: int, folder: Path) -> GPT2TokenizerFast:
    """A byte-level BPE vocabulary in `folder`; that of a run that goes on is taken as it is."""
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        bpe = ByteLevelBPETokenizer()
        bpe.train([str(file) for file in files], vocab_size=vocab_size, special_tokens=[END])
        bpe.save_model(str(folder))
    return GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def pack(files: list[Path], tokenizer: GPT2TokenizerFast) -> tuple[np.ndarray, int]:
    """All texts in one row of ids, each ended by END; and how many bytes of UTF-8 they were."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    end = tokenizer.eos_token_id
    ids = [np.array([*row, end], dtype=np.int64) for row in tokenizer(texts).input_ids]
    return np.concatenate(ids), sum(len(text.encode()) for text in texts)


class Windows(Dataset[Tensor]):
    """`length` ids from each of `count` places in the row; the places differ from epoch to epoch."""

    def __init__(self, ids: np.ndarray, length: int, count: int) -> None:
        self.ids, self.length, self.count = torch.from_numpy(ids), length, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        start = int(torch.randint(len(self.ids) - self.length + 1, ()))
        return self.ids[start : start + self.length]


class Training(L.LightningModule):
    """Next-token cross-entropy; AdamW; a short warm-up and then a straight line down to zero."""

    def __init__(self, model: GPTNeoForCausalLM, peak_rate: float, warmup: int, steps: int) -> None:
        super().__init__()
        self.model, self.peak_rate, self.warmup, self.steps = model, peak_rate, warmup, steps

    def on_train_start(self) -> None:
        """Draw other places of the row after a stop than before it."""
        torch.manual_seed(torch.initial_seed() + self.global_step)

    def training_step(self, batch: Tensor, index: int) -> Tensor:  # (B, T) -> ()
        loss = self.model(batch, labels=batch, use_cache=False).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("valid_loss", self.model(batch, labels=batch, use_cache=False).loss, prog_bar=True)

    def configure_optimizers(self) -> dict:
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.peak_rate, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate at a step, as a part of its peak."""
        return min((step + 1) / self.warmup, max(0.0, 1 - step / self.steps))


@torch.inference_mode()
def score(model: GPTNeoForCausalLM, ids: np.ndarray, num_bytes: int) -> dict[str, float]:
    """Perplexity per token and bits per byte of a row of ids, each seen after half a window or more, but the first."""
    model.eval()
    length = model.config.max_position_embeddings
    row, nats, stride = torch.from_numpy(ids).to(model.device), 0.0, length // 2
    for start in range(0, len(row) - 1, stride):
        window = row[start : start + length][None]
        labels = window.clone()
        if start:
            labels[:, : length - stride] = -100
        counted = int((labels[:, 1:] != -100).sum())
        if counted:
            nats += float(model(window, labels=labels, use_cache=False).loss) * counted
    return {"perplexity": math.exp(nats / (len(row) - 1)), "bits_per_byte": nats / math.log(2) / num_bytes}


def draw_losses(metrics: list[Path], picture: Path) -> None:
    """The loss curves of Lightning's CSV files, one for each start of the run, as a PNG."""
    rows = [row for file in metrics for row in csv.DictReader(file.open(encoding="utf-8"))]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, style in (("train_loss", {"lw": 0.8}), ("valid_loss", {"marker": "o", "ms": 3})):
        points = sorted((int(row["step"]), float(row[name])) for row in rows if row.get(name))
        axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), **style) if points else None
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


def main(
    train: Annotated[Path, typer.Argument(help="Folder of .txt files to learn from.")],
    valid: Annotated[Path, typer.Option(help="Folder of .txt files to be scored on.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; a stopped run goes on from here.")],
    vocab_size: int = 4096,
    hidden_size: int = 256,
    num_layers: int = 4,
    num_heads: int = 8,
    window_size: int = 128,
    length: Annotated[int, typer.Option(help="Tokens in a row, and positions of the model.")] = 512,
    batch_size: int = 8,
    steps: int = 5000,
    peak_rate: float = 2e-3,
    warmup: int = 200,
    precision: Annotated[str, typer.Option(help="Lightning's name: 32-true, bf16-mixed, …")] = "bf16-mixed",
    seed: int = 0,
) -> None:
    """Train a GPT Neo of a new vocabulary on a folder of text files."""
    L.seed_everything(seed)
    if num_layers % 2:
        raise typer.BadParameter(f"Global and local layers alternate, so --num-layers must be even; got {num_layers}.")
    tokenizer = learn_vocabulary(sorted(train.glob("*.txt")), vocab_size, out)
    if len(tokenizer) != vocab_size:
        raise typer.BadParameter(
            f"{out} has a vocabulary of {len(tokenizer)}. Pass that as --vocab-size, or another --out."
        )
    train_ids, _ = pack(sorted(train.glob("*.txt")), tokenizer)
    valid_ids, valid_bytes = pack(sorted(valid.glob("*.txt")), tokenizer)
    typer.echo(f"{len(train_ids):,} tokens to learn from, {len(valid_ids):,} to be scored on")

    config = GPTNeoConfig(
        vocab_size=vocab_size,
        max_position_embeddings=length,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        attention_types=[[["global", "local"], num_layers // 2]],
        window_size=window_size,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    training = Training(GPTNeoForCausalLM(config), peak_rate, warmup, steps)
    typer.echo(f"{training.model.num_parameters():,} parameters")

    rows = len(valid_ids) // length
    every = max(1, min(250, steps // 4))
    trainer = L.Trainer(
        max_steps=steps,
        precision=precision,
        gradient_clip_val=1.0,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        limit_val_batches=20,
        log_every_n_steps=max(1, min(10, steps // 20)),
        logger=CSVLogger(out, name="logs"),  # a new version_N for each start
        callbacks=[ModelCheckpoint(out / "checkpoints", every_n_train_steps=every, save_last=True)],
    )
    trainer.fit(
        training,
        DataLoader(Windows(train_ids, length, len(train_ids) // length), batch_size),
        DataLoader(torch.from_numpy(valid_ids[: rows * length]).view(rows, length), batch_size),
        ckpt_path="last",
    )

    model = training.model
    model.half().save_pretrained(out)
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(out)
    scores = score(GPTNeoForCausalLM.from_pretrained(out), valid_ids, valid_bytes)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    draw_losses(sorted(out.glob("logs/version_*/metrics.csv")), out / "loss.png")
    typer.echo(f"perplexity {scores['perplexity']:.2f}, {scores['bits_per_byte']:.3f} bits per byte")


if __name__ == "__main__":
    typer.run(main)
