"""Fine-tune a GPT to sort texts into classes with TensorFlow: Keras' `fit()`, its progress bar, its checkpoints.

    python recipes/finetune_openai_gpt_tf.py MODEL TEXTS.jsonl --out runs/polarity-tf

TEXTS.jsonl has one {"text": …, "label": …} on a line. As in Radford et al., 2018: each text becomes [start] text
[extract], a linear head reads the last hidden state at the extract token, and the loss is the task's plus half of the
language model's. Writes the fine-tuned model, which PyTorch loads too, its tokenizer and scores.json with the accuracy
on the texts that were held out. A run that was stopped goes on after its last whole epoch when the same command is
given again, and ends where it would have ended. Needs the extra `tf` alone.
"""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
import typer

from triptych import AutoTokenizer, PreTrainedTokenizerBase, TFOpenAIGPTForSequenceClassification
from triptych.losses_tf import IGNORED, next_token_loss
from triptych.models.openai_gpt import tasks

Text = tuple[str, str]  # the text and its label
Row = tuple[list[int], int]  # its ids and the number of its label
Inputs = dict[str, Any]  # input_ids and attention_mask (B, T)


def read_split(file: Path, valid_part: float, seed: int) -> tuple[list[Text], list[Text]]:
    """The texts in a random order that the seed decides: those to learn from, those held out."""
    lines = file.read_text(encoding="utf-8").splitlines()
    texts = [(row["text"], str(row["label"])) for row in map(json.loads, filter(None, lines))]
    random.Random(seed).shuffle(texts)
    held_out = round(len(texts) * valid_part)
    return texts[held_out:], texts[:held_out]


def rows_of(
    texts: list[Text], labels: dict[str, int], tokenizer: PreTrainedTokenizerBase, marks: tasks.Marks, length: int
) -> list[Row]:
    """[start] text [extract], cut to `length`, with the number of its label."""
    ids = tokenizer([text for text, _ in texts], verbose=False).input_ids
    return [
        (tasks.classification(row, marks, length), labels[label]) for row, (_, label) in zip(ids, texts, strict=True)
    ]


class Batches:
    """Rows in batches of about one length, so that little is padding, in an order that seed and epoch decide."""

    def __init__(self, rows: list[Row], batch_size: int, pad_token_id: int, seed: int) -> None:
        self.rows, self.batch_size, self.pad, self.seed = rows, batch_size, pad_token_id, seed

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, number: int) -> Iterator[tuple[Inputs, np.ndarray]]:
        """The batches of that epoch: inputs, and labels (B,)."""
        order = random.Random(f"{self.seed} {number}")
        rows = sorted(self.rows, key=lambda row: len(row[0]) + order.uniform(0, 8))
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        order.shuffle(batches)
        for batch in batches:
            padded = tasks.pad([ids for ids, _ in batch], self.pad)
            inputs = {name: np.array(padded[name], np.int32) for name in ("input_ids", "attention_mask")}
            yield inputs, np.array([label for _, label in batch], np.int32)

    def dataset(self, steps_taken: Any = None) -> tf.data.Dataset:
        """The batches of epoch after epoch; which it is follows from the optimizer's steps, after a stop too."""

        def generate() -> Iterator[tuple[Inputs, np.ndarray]]:
            return self.epoch(0 if steps_taken is None else int(steps_taken) // len(self))

        ids = tf.TensorSpec([None, None], tf.int32)
        signature = ({"input_ids": ids, "attention_mask": ids}, tf.TensorSpec([None], tf.int32))
        batches = tf.data.Dataset.from_generator(generate, output_signature=signature)
        return batches.apply(tf.data.experimental.assert_cardinality(len(self)))


class FineTuning(keras.Model):
    """The paper's objective: a classifier that also goes on predicting the tokens while it learns."""

    def __init__(self, classifier: TFOpenAIGPTForSequenceClassification, lm_weight: float) -> None:
        super().__init__()
        self.classifier, self.lm_weight = classifier, lm_weight
        self.built = True

    def call(self, inputs: Inputs, training: bool = False) -> Any:  # -> (B, N)
        out = self.classifier(inputs, output_hidden_states=True, training=training)
        if training and self.lm_weight:
            words = self.classifier.get_input_embeddings().weight  # (V, C), also the language model's head
            x = out.hidden_states[-1]  # (B, T, C)
            lm_logits = tf.matmul(x, tf.cast(words.value, x.dtype), transpose_b=True)
            labels = tf.where(inputs["attention_mask"] == 0, IGNORED, inputs["input_ids"])
            self.add_loss(self.lm_weight * next_token_loss(lm_logits, labels)[0])
        return out.logits


class ShortWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """Up to the peak in a part of the steps, and then a straight line down to zero."""

    def __init__(self, peak_rate: float, warmup: float, steps: int) -> None:
        self.peak_rate, self.start, self.steps = peak_rate, max(1, round(warmup * steps)), steps

    def __call__(self, step: Any) -> Any:
        step = tf.cast(step, tf.float32)
        return self.peak_rate * tf.minimum((step + 1) / self.start, tf.maximum(0.0, 1 - step / self.steps))


class DropoutByEpoch(keras.callbacks.Callback):
    """What dropout drops follows from seed and epoch, as Keras' checkpoints do not keep the state of its generators."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        states = [v for v in self.model.variables if v.name == "seed_generator_state"]
        for number, state in enumerate(states):
            state.assign(np.random.SeedSequence((self.seed, epoch, number)).generate_state(2))


def optimizer_of(model: keras.Model, schedule: ShortWarmup) -> keras.optimizers.Optimizer:
    """AdamW with clipped gradients; no decay of biases and norms."""
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, epsilon=1e-8, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_list=[v for v in model.trainable_variables if len(v.shape) <= 1])
    return optimizer


def log_into(file: Path) -> Callable[[int, dict[str, float]], None]:
    """Writes losses and accuracies behind those of earlier epochs, an epoch a line."""

    def log(epoch: int, logs: dict[str, float]) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"epoch": epoch, **logs}) + "\n")

    return log


def accuracy(model: TFOpenAIGPTForSequenceClassification, batches: Batches) -> float:
    """The part of the texts that the model gives their own label."""
    model.compile(metrics=["accuracy"])
    return float(model.evaluate(batches.dataset(), return_dict=True, verbose=0)["accuracy"])


def main(
    model: Annotated[str, typer.Argument(help="Folder or hub name of a GPT with a language model head.")],
    texts: Annotated[Path, typer.Argument(help='JSONL file of {"text", "label"}.')],
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned model, scores.json and checkpoints.")],
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
    precision: Annotated[str, typer.Option(help="A policy of Keras: float32, mixed_bfloat16, …")] = "float32",
    seed: int = 0,
) -> None:
    """Fine-tune a GPT on labelled texts."""
    keras.utils.set_random_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    train, valid = read_split(texts, valid_part, seed)
    names = sorted({label for _, label in train})
    labels = {name: number for number, name in enumerate(names)}
    typer.echo(f"{len(train):,} texts to learn from, {len(valid):,} held out; classes: {', '.join(names)}")

    tokenizer = AutoTokenizer.from_pretrained(model)
    marks = tasks.add_marks(tokenizer)
    if "pad_token" not in tokenizer.special_tokens_map:
        tokenizer.add_special_tokens({"pad_token": "_pad_"})
    classifier = TFOpenAIGPTForSequenceClassification.from_pretrained(
        model,
        dtype=precision,
        id2label=dict(enumerate(names)),
        label2id=labels,
        pad_token_id=tokenizer.pad_token_id,
        attn_pdrop=dropout,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
    )
    classifier.resize_token_embeddings(len(tokenizer))
    length = min(max_length or classifier.config.n_positions, classifier.config.n_positions)
    train_batches, valid_batches = (
        Batches(rows_of(part, labels, tokenizer, marks, length), batch_size, tokenizer.pad_token_id, seed)
        for part in (train, valid)
    )
    learner = FineTuning(classifier, lm_weight)
    schedule = ShortWarmup(peak_rate, warmup, epochs * len(train_batches))
    learner.compile(
        optimizer_of(learner, schedule),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    learner.fit(
        train_batches.dataset(learner.optimizer.iterations),
        epochs=epochs,
        shuffle=False,  # the batches are shuffled where they are made
        validation_data=valid_batches.dataset(),
        callbacks=[
            keras.callbacks.BackupAndRestore(str(out / "checkpoint"), double_checkpoint=True),
            DropoutByEpoch(seed),
            keras.callbacks.LambdaCallback(on_epoch_end=log_into(out / "log.jsonl")),
        ],
    )

    classifier.save_pretrained(out)
    tokenizer.save_pretrained(out)
    found = accuracy(TFOpenAIGPTForSequenceClassification.from_pretrained(out), valid_batches)
    scores = {"accuracy": found, "train": len(train), "valid": len(valid), "seed": seed}
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"accuracy on {len(valid):,} held-out texts: {found:.4f}")


if __name__ == "__main__":
    typer.run(main)
