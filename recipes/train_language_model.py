"""Train a GPT Neo or an OpenAI GPT on a folder of text files, from nothing to a model that `triptych generate` can use.

    python recipes/train_language_model.py TRAIN_FOLDER --valid VALID_FOLDER --out runs/tales-neo
    python recipes/train_language_model.py TRAIN_FOLDER --valid VALID_FOLDER --out runs/tales-gpt --family openai-gpt

Learns a vocabulary in the family's own format, packs the texts into one long row of ids, trains with Lightning (on
whatever it finds: a CPU, a GPU or several), and writes a folder with the weights in float16, the tokenizer, the loss
curve and the scores on the validation texts. A run that was stopped goes on where it was when the same command is
given again.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch
import typer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tokenizers import ByteLevelBPETokenizer, CharBPETokenizer
from tokenizers.normalizers import BertNormalizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from curves import draw
from triptych import (
    GPT2TokenizerFast,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    OpenAIGPTTokenizerFast,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

END, UNKNOWN = "<|endoftext|>", "<unk>"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the command line says of the model."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    window_size: int
    length: int
    dropout: float


@dataclass(frozen=True, slots=True)
class Family:
    """What a family does in a way of its own."""

    trainer: Callable[[], Any]  # learns a vocabulary and merges
    special_tokens: list[str]  # the first ids of the vocabulary
    tokenizer: type[PreTrainedTokenizerFast]
    seen: Callable[[str], str]  # the text that is left of a text in its ids
    network: Callable[[Sizes, int], PreTrainedModel]  # of these sizes and this end token
    options: dict[str, Any]  # of every call of the model


def gpt_neo(sizes: Sizes, end: int) -> GPTNeoForCausalLM:
    """Global and local layers in turn."""
    if sizes.num_layers % 2:
        raise typer.BadParameter(
            f"Global and local layers alternate, so --num-layers must be even; got {sizes.num_layers}."
        )
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=sizes.vocab_size,
            max_position_embeddings=sizes.length,
            hidden_size=sizes.hidden_size,
            num_layers=sizes.num_layers,
            num_heads=sizes.num_heads,
            attention_types=[[["global", "local"], sizes.num_layers // 2]],
            window_size=sizes.window_size,
            resid_dropout=sizes.dropout,
            embed_dropout=sizes.dropout,
            attention_dropout=sizes.dropout,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


def openai_gpt(sizes: Sizes, end: int) -> OpenAIGPTLMHeadModel:
    """Post-norm blocks, each looking at all that came before."""
    return OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(
            vocab_size=sizes.vocab_size,
            n_positions=sizes.length,
            n_embd=sizes.hidden_size,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            resid_pdrop=sizes.dropout,
            embd_pdrop=sizes.dropout,
            attn_pdrop=sizes.dropout,
            bos_token_id=end,
            eos_token_id=end,
        )
    )


LOWER_CASE = BertNormalizer(lowercase=True)


def lower_case_bpe() -> CharBPETokenizer:
    """A learner of words as OpenAIGPTTokenizerFast splits them; a word's last piece ends in `</w>`."""
    bpe = CharBPETokenizer(unk_token=UNKNOWN)
    bpe.normalizer = LOWER_CASE
    return bpe


def lower_case(text: str) -> str:
    """Without capitals, accents and line breaks: OpenAI GPT's ids tell nothing of them."""
    return " ".join(LOWER_CASE.normalize_str(text).split())


FAMILIES = {
    "gpt_neo": Family(ByteLevelBPETokenizer, [END], GPT2TokenizerFast, str, gpt_neo, {"use_cache": False}),
    "openai-gpt": Family(
        lower_case_bpe,
        [UNKNOWN, END],
        OpenAIGPTTokenizerFast,
        lower_case,
        openai_gpt,
        {},
    ),
}


def learn_vocabulary(family: Family, files: list[Path], vocab_size: int, folder: Path) -> PreTrainedTokenizerFast:
    """A vocabulary in `folder`; that of a run that goes on is taken as it is."""
    if not (folder / "vocab.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        bpe = family.trainer()
        bpe.train([str(file) for file in files], vocab_size=vocab_size, special_tokens=family.special_tokens)
        bpe.save_model(str(folder))
    return family.tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), bos_token=END, eos_token=END)


def pack(files: list[Path], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """All texts in one row of ids, each ended by END."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    end = tokenizer.eos_token_id
    return np.concatenate([np.array([*row, end], dtype=np.int64) for row in tokenizer(texts, verbose=False).input_ids])


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

    def __init__(
        self, model: PreTrainedModel, options: dict[str, Any], peak_rate: float, warmup: int, steps: int
    ) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.peak_rate, self.warmup, self.steps = peak_rate, warmup, steps

    def on_train_start(self) -> None:
        """Draw other places of the row after a stop than before it."""
        torch.manual_seed(torch.initial_seed() + self.global_step)

    def training_step(self, batch: Tensor, index: int) -> Tensor:  # (B, T) -> ()
        loss = self.model(batch, labels=batch, **self.options).loss
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Tensor, index: int) -> None:
        self.log("valid_loss", self.model(batch, labels=batch, **self.options).loss, prog_bar=True)

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
def score(model: PreTrainedModel, options: dict[str, Any], ids: np.ndarray, num_bytes: int) -> dict[str, float]:
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
            nats += float(model(window, labels=labels, **options).loss) * counted
    return {"perplexity": math.exp(nats / (len(row) - 1)), "bits_per_byte": nats / math.log(2) / num_bytes}


def main(
    train: Annotated[Path, typer.Argument(help="Folder of .txt files to learn from.")],
    valid: Annotated[Path, typer.Option(help="Folder of .txt files to be scored on.")],
    out: Annotated[Path, typer.Option(help="Folder for the model; a stopped run goes on from here.")],
    family: Annotated[str, typer.Option(help=" or ".join(FAMILIES) + ".")] = "gpt_neo",
    vocab_size: int = 4096,
    hidden_size: int = 256,
    num_layers: int = 4,
    num_heads: int = 8,
    window_size: Annotated[int, typer.Option(help="What GPT Neo's local layers see.")] = 128,
    dropout: float = 0.0,
    length: Annotated[int, typer.Option(help="Tokens in a row, and positions of the model.")] = 512,
    batch_size: int = 8,
    steps: int = 5000,
    peak_rate: float = 2e-3,
    warmup: int = 200,
    precision: Annotated[str, typer.Option(help="Lightning's name: 32-true, bf16-mixed, …")] = "bf16-mixed",
    seed: int = 0,
) -> None:
    """Train a model of a new vocabulary on a folder of text files."""
    L.seed_everything(seed)
    if family not in FAMILIES:
        raise typer.BadParameter(f"--family must be one of {', '.join(FAMILIES)}; got {family!r}.")
    own = FAMILIES[family]
    train_files, valid_files = sorted(train.glob("*.txt")), sorted(valid.glob("*.txt"))
    tokenizer = learn_vocabulary(own, train_files, vocab_size, out)
    if len(tokenizer) != vocab_size:
        raise typer.BadParameter(
            f"{out} has a vocabulary of {len(tokenizer)}. Pass that as --vocab-size, or another --out."
        )
    train_ids, valid_ids = pack(train_files, tokenizer), pack(valid_files, tokenizer)
    typer.echo(f"{len(train_ids):,} tokens to learn from, {len(valid_ids):,} to be scored on")

    sizes = Sizes(vocab_size, hidden_size, num_layers, num_heads, window_size, length, dropout)
    training = Training(own.network(sizes, tokenizer.eos_token_id), own.options, peak_rate, warmup, steps)
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
    valid_bytes = sum(len(own.seen(file.read_text(encoding="utf-8")).encode()) for file in valid_files)
    scores = score(type(model).from_pretrained(out, torch_dtype=torch.float32), own.options, valid_ids, valid_bytes)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    draw(out / "logs", ("train_loss", "valid_loss"), out / "loss.png", "cross-entropy (nats per token)")
    typer.echo(f"perplexity {scores['perplexity']:.2f}, {scores['bits_per_byte']:.3f} bits per byte")


if __name__ == "__main__":
    typer.run(main)
