"""Fine-tune a GPT to sort texts into classes, beside a bag-of-words logistic regression on the same split.

    python recipes/finetune_openai_gpt.py MODEL TEXTS.jsonl --out runs/polarity

TEXTS.jsonl has one {"text": …, "label": …} on a line. As in Radford et al., 2018: each text becomes [start] text
[extract], a linear head reads the last hidden state at the extract token, and the loss is the task's plus half of the
language model's. The rates and sizes are options; their defaults are the paper's (section 4.1). Writes the fine-tuned
model, its tokenizer and scores.json with both accuracies on the texts that were held out.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import lightning as L
import torch
import torch.nn.functional as F
import typer
from lightning.pytorch.loggers import CSVLogger
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from triptych import AutoTokenizer, OpenAIGPTForSequenceClassification, PreTrainedTokenizerBase
from triptych.models.openai_gpt import tasks
from triptych.models.openai_gpt.tasks_torch import fine_tuning_loss

Text = tuple[str, str]  # the text and its label
Row = tuple[list[int], int]  # its ids and the number of its label
Batch = dict[str, Tensor]


def read_split(file: Path, valid_part: float, seed: int) -> tuple[list[Text], list[Text]]:
    """The texts in a random order that the seed decides: those to learn from, those held out."""
    lines = file.read_text(encoding="utf-8").splitlines()
    texts = [(row["text"], str(row["label"])) for row in map(json.loads, filter(None, lines))]
    random.Random(seed).shuffle(texts)
    held_out = round(len(texts) * valid_part)
    return texts[held_out:], texts[:held_out]


def bag_of_words_accuracy(train: list[Text], valid: list[Text]) -> float:
    """Logistic regression on the counts of words; how strongly it is held back is chosen on the training texts."""
    model = GridSearchCV(
        make_pipeline(CountVectorizer(token_pattern=r"\S+"), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": [0.03, 0.1, 0.3, 1.0, 3.0]},
        cv=5,
    )
    model.fit(*zip(*train, strict=True))
    return float(model.score(*zip(*valid, strict=True)))


def rows_of(
    texts: list[Text], labels: dict[str, int], tokenizer: PreTrainedTokenizerBase, marks: tasks.Marks, length: int
) -> list[Row]:
    """[start] text [extract], cut to `length`, with the number of its label."""
    ids = tokenizer([text for text, _ in texts], verbose=False).input_ids
    return [
        (tasks.classification(row, marks, length), labels[label]) for row, (_, label) in zip(ids, texts, strict=True)
    ]


class LikeLengths(Sampler[list[int]]):
    """Batches of rows about as long as each other, so that little is padding; others in every epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.random = lengths, batch_size, random.Random(seed)

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # Rows of one length come in any order, and a length may be off by a little: batches differ.
        order = sorted(range(len(self.lengths)), key=lambda row: self.lengths[row] + self.random.uniform(0, 8))
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        self.random.shuffle(batches)
        return iter(batches)


def loader(rows: list[Row], batch_size: int, pad_token_id: int, seed: int) -> DataLoader:
    """Batches of `input_ids` and `attention_mask` (B, T) and `labels` (B,), each as long as its longest row."""

    def collate(batch: list[Row]) -> Batch:
        padded = tasks.pad([ids for ids, _ in batch], pad_token_id)
        return {
            "input_ids": torch.tensor(padded["input_ids"]),
            "attention_mask": torch.tensor(padded["attention_mask"]),
            "labels": torch.tensor([label for _, label in batch]),
        }

    sampler = LikeLengths([len(ids) for ids, _ in rows], batch_size, seed)
    return DataLoader(rows, batch_sampler=sampler, collate_fn=collate)


class FineTuning(L.LightningModule):
    """The paper's objective; Adam with a short warm-up and then a straight line down to zero."""

    def __init__(
        self, model: OpenAIGPTForSequenceClassification, peak_rate: float, warmup: float, lm_weight: float
    ) -> None:
        super().__init__()
        self.model, self.peak_rate, self.warmup, self.lm_weight = model, peak_rate, warmup, lm_weight

    def training_step(self, batch: Batch, index: int) -> Tensor:  # -> ()
        out = self.model(**batch, output_hidden_states=True)
        words = self.model.transformer.tokens_embed.weight  # (V, C), also the language model's head
        lm_logits = F.linear(out.hidden_states[-1], words)  # (B, T, V)
        loss = fine_tuning_loss(out.loss, lm_logits, batch["input_ids"], batch["attention_mask"], self.lm_weight)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        right = self.model(**batch).logits.argmax(-1) == batch["labels"]
        self.log("valid_accuracy", right.float().mean(), prog_bar=True, batch_size=len(right))

    def configure_optimizers(self) -> dict:
        matrices = [p for p in self.parameters() if p.dim() > 1]
        vectors = [p for p in self.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.peak_rate)
        steps = self.trainer.estimated_stepping_batches
        start = max(1, round(self.warmup * steps))

        def rate(step: int) -> float:
            return min((step + 1) / start, max(0.0, 1 - step / steps))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.inference_mode()
def accuracy(model: OpenAIGPTForSequenceClassification, batches: DataLoader) -> float:
    """The part of the texts that the model gives their own label."""
    model.eval()
    right = count = 0
    for batch in batches:
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
        count += len(labels)
    return right / count


def main(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a GPT with a language model head.")],
    texts: Annotated[Path, typer.Argument(help='JSONL file of {"text", "label"}.')],
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned model and scores.json.")],
    valid_part: Annotated[float, typer.Option(help="Part of the texts that is held out.")] = 0.1,
    epochs: int = 3,
    batch_size: int = 32,
    peak_rate: float = 6.25e-5,
    warmup: Annotated[float, typer.Option(help="Part of the steps in which the rate grows.")] = 0.002,
    lm_weight: Annotated[float, typer.Option(help="Weight of the language model's loss.")] = 0.5,
    dropout: Annotated[float, typer.Option(help="Of attention, embeddings and sums, while learning.")] = 0.1,
    max_length: Annotated[
        int | None, typer.Option(help="Cut texts to this; the model's positions if not given.")
    ] = None,
    max_steps: Annotated[int, typer.Option(help="Stop after so many steps; -1 for all epochs.")] = -1,
    precision: Annotated[str, typer.Option(help="Lightning's name: 32-true, bf16-mixed, …")] = "32-true",
    seed: int = 0,
) -> None:
    """Fine-tune a GPT on labelled texts and compare it with a bag of words."""
    L.seed_everything(seed)
    train, valid = read_split(texts, valid_part, seed)
    names = sorted({label for _, label in train})
    labels = {name: number for number, name in enumerate(names)}
    typer.echo(f"{len(train):,} texts to learn from, {len(valid):,} held out; classes: {', '.join(names)}")
    bag_of_words = bag_of_words_accuracy(train, valid)
    typer.echo(f"bag of words: {bag_of_words:.4f}")

    tokenizer = AutoTokenizer.from_pretrained(model)
    marks = tasks.add_marks(tokenizer)
    if "pad_token" not in tokenizer.special_tokens_map:
        tokenizer.add_special_tokens({"pad_token": "_pad_"})
    network = OpenAIGPTForSequenceClassification.from_pretrained(
        model,
        torch_dtype=torch.float32,
        id2label=dict(enumerate(names)),
        label2id=labels,
        pad_token_id=tokenizer.pad_token_id,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
    )
    network.resize_token_embeddings(len(tokenizer))
    network.train()
    length = min(max_length or network.config.n_positions, network.config.n_positions)
    train_rows, valid_rows = (rows_of(part, labels, tokenizer, marks, length) for part in (train, valid))
    train_batches, valid_batches = (
        loader(rows, batch_size, tokenizer.pad_token_id, seed) for rows in (train_rows, valid_rows)
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        max_steps=max_steps,
        precision=precision,
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        logger=CSVLogger(out, name="logs"),
        enable_checkpointing=False,
        use_distributed_sampler=False,  # the batches are made here
    )
    trainer.fit(FineTuning(network, peak_rate, warmup, lm_weight), train_batches, valid_batches)

    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    found = accuracy(OpenAIGPTForSequenceClassification.from_pretrained(out), valid_batches)
    scores = {"accuracy": found, "bag_of_words": bag_of_words, "train": len(train), "valid": len(valid), "seed": seed}
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"accuracy on {len(valid):,} held-out texts: GPT {found:.4f}, bag of words {bag_of_words:.4f}")


if __name__ == "__main__":
    typer.run(main)
