"""Train a small Fuyu to look at pictures that the recipe draws itself.

    python recipes/train_fuyu.py --out runs/shapes-fuyu

Learns a SentencePiece vocabulary of the questions' words, draws scenes of coloured shapes and digits (`scenes.py`) as
it goes, and trains captions, answers and boxes with Lightning. A picture's keys and values are computed once and shared
by the questions about it. Beside the answers, each patch is to tell what it shows and where, from a layer in the
middle: pictures are understood sooner so. The heads for that are not saved.

Writes a folder with the weights in float16, the processor, the loss curve and the scores on scenes with seeds that were
not trained on. A run that was stopped goes on where it was when the same command is given again.
"""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
import typer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from curves import draw
from scenes import COLOURS, DIGITS, FORMS, SHAPES, Question, Scene, Thing, draw_scene, questions
from score_fuyu import FIRST_UNSEEN, score
from triptych import FuyuConfig, FuyuForCausalLM, FuyuImageProcessor, FuyuProcessor, LlamaTokenizerFast
from triptych.models.fuyu.processing import ANSWER, BEGIN, NEWLINE, PLACEHOLDER, Row

END = "|ENDOFTEXT|"
HEIGHT, WIDTH, PATCH = 96, 128, 16  # pictures are shrunk to fit; sides in pixels
SIZES = ((48, 48), (48, 64), (64, 64), (64, 80), (64, 96), (96, 64), (80, 80), (75, 100), (96, 96), (96, 128))
KINDS = (*SHAPES, *DIGITS)
LONG = ("caption", "find")  # forms with long answers, asked in rows of their own so that little is padding
SHORT = tuple(form for form in FORMS if form not in LONG)
COORDINATES = max(HEIGHT, WIDTH) // 2 + 1  # a box is told in steps of two pixels
# What each patch is to tell, with how many choices: what it shows, where it is, and the box of what it shows.
SEEN = {"kind": 1 + len(KINDS), "colour": 1 + len(COLOURS), "row": HEIGHT // PATCH, "column": WIDTH // PATCH}
SEEN |= dict.fromkeys(("top", "left", "bottom", "right"), COORDINATES)
Batch = dict[str, Any]


def learn_vocabulary(folder: Path) -> LlamaTokenizerFast:
    """A SentencePiece model with a piece for each word that scenes are asked about in, each coordinate and any byte.

    That of a run that goes on is taken as it is.
    """
    file = folder / "tokenizer.model"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sentencepiece_model())
    return LlamaTokenizerFast(str(file), bos_token=END, eos_token=END, pad_token=END)


def sentencepiece_model() -> bytes:
    """The bytes of a tokenizer.model, learned from the words of some scenes."""
    rng, words = random.Random(0), set()
    for _ in range(2000):
        for question in questions(rng, draw_scene(rng, WIDTH, HEIGHT), tuple(FORMS), 8):
            words.update(question.prompt.split())
            words.update(() if question.boxes else question.answer.split())
    words = {word.rstrip("?:,.") for word in words if not word.isdigit()}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        # The trainer takes a piece into account when it stands in two words.
        sentence_iterator=iter([word + mark for word in sorted(words) for mark in ("", *"?:,.") for _ in range(50)]),
        model_writer=model,
        model_type="unigram",
        vocab_size=1000,
        hard_vocab_limit=False,
        byte_fallback=True,
        user_defined_symbols=[END, PLACEHOLDER, NEWLINE, *map(str, range(COORDINATES))],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def make_processor(tokenizer: LlamaTokenizerFast) -> FuyuProcessor:
    """The processor of pictures up to HEIGHT × WIDTH; larger ones are shrunk."""
    image_processor = FuyuImageProcessor(
        size={"height": HEIGHT, "width": WIDTH}, patch_size={"height": PATCH, "width": PATCH}
    )
    return FuyuProcessor(image_processor, tokenizer)


class Scenes(IterableDataset[Batch]):
    """Endless batches, each of `count` scenes of one size with the same number of questions about each."""

    def __init__(self, processor: FuyuProcessor, count: int, seed: int) -> None:
        self.processor, self.count, self.seed = processor, count, seed
        self.rng = random.Random(seed)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            height, width = self.rng.choice(SIZES)
            yield self.batch([self.drawn(height, width) for _ in range(self.count)])

    def drawn(self, height: int, width: int) -> tuple[Scene, list[list[Question]]]:
        """A scene and what is asked about it: one question with a long answer, and two others."""
        rng = random.Random(self.rng.randrange(FIRST_UNSEEN))
        scene = draw_scene(rng, width, height)
        return scene, [questions(rng, scene, LONG, 1), questions(rng, scene, SHORT, 2)]

    def batch(self, drawn: list[tuple[Scene, list[list[Question]]]]) -> Batch:
        """Pictures (B, T) of ids and (B, N, P) of patches, what each patch is to tell, and questions with labels."""
        pictures = [self.processor.row("", [scene.image], add_special_tokens=False) for scene, _ in drawn]
        rows = pictures[0].pictures[0].rows
        seen = [what_is_seen(scene.things, rows, len(pictures[0].patches) // rows) for scene, _ in drawn]
        groups = [[], []]
        for picture, (_, asked) in zip(pictures, drawn, strict=True):
            for group, part in zip(groups, asked, strict=True):
                group += [self.ids(question, picture) for question in part]
        return {
            "input_ids": torch.tensor([picture.ids for picture in pictures]),
            "image_patches": torch.from_numpy(np.stack([picture.patches for picture in pictures])),
            "image_patches_indices": torch.tensor([picture.indices for picture in pictures]),
            "seen": torch.from_numpy(np.stack(seen)),
            "asked": [padded(group) for group in groups],
        }

    def ids(self, question: Question, picture: Row) -> tuple[list[int], list[int]]:
        """A prompt behind its picture, and its answer."""
        processor = self.processor
        prompt = processor.text_ids(question.prompt, picture.pictures)
        answer = processor.text_ids(question.answer, picture.pictures)
        begin, opens = processor.token_id(BEGIN), processor.token_id(ANSWER)
        return [begin, *prompt, opens], [*answer, processor.tokenizer.eos_token_id]


def padded(asked: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Prompts with answers (B * K, T), padded on the right, and labels, -100 where no answer is."""
    longest = max(len(prompt) + len(answer) for prompt, answer in asked)
    ids = torch.zeros((len(asked), longest), dtype=torch.long)
    labels = torch.full((len(asked), longest), -100)
    for row, (prompt, answer) in enumerate(asked):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def what_is_seen(things: tuple[Thing, ...], rows: int, columns: int) -> np.ndarray:
    """SEEN of each patch (8, rows, columns); kind and colour are 0, and edges -100, where there is nothing."""
    facts = np.zeros((len(SEEN), rows, columns), np.int64)
    facts[2:4] = np.mgrid[:rows, :columns]
    facts[4:] = -100
    for thing in things:
        top, left, bottom, right = (round(v) for v in thing.box)
        part = np.s_[(top + 3) // PATCH : (bottom - 4) // PATCH + 1, (left + 3) // PATCH : (right - 4) // PATCH + 1]
        facts[0][part] = 1 + KINDS.index(thing.kind)
        facts[1][part] = 1 + list(COLOURS).index(thing.colour)
        for edge, value in enumerate(thing.box, 4):
            facts[edge][part] = round(value / 2)
    return facts


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024; PyTorch 2.9 has it) for the decoder's matrices, AdamW for all else."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float) -> None:
        named = dict(model.named_parameters())
        matrices = {name: p for name, p in named.items() if p.dim() == 2 and ".layers." in name}
        others = [p for name, p in named.items() if name not in matrices]
        self.parts = (
            torch.optim.Muon(matrices.values(), lr=muon_rate, weight_decay=0.05),
            torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        )
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


class Training(L.LightningModule):
    """Cross-entropy of the answers and of what each patch is to tell; a warm-up, then a straight line to zero."""

    def __init__(self, model: FuyuForCausalLM, muon_rate: float, adam_rate: float, warmup: int, steps: int) -> None:
        super().__init__()
        self.model, self.muon_rate, self.adam_rate = model, muon_rate, adam_rate
        self.warmup, self.steps = warmup, steps
        width = model.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, count) for name, count in SEEN.items()})

    def on_train_start(self) -> None:
        """Draw other scenes after a stop than before it."""
        scenes = self.trainer.train_dataloader.dataset
        scenes.rng = random.Random(scenes.seed + self.global_step)

    def training_step(self, batch: Batch, index: int) -> Tensor:  # -> ()
        picture = self.model(
            batch["input_ids"],
            image_patches=batch["image_patches"],
            image_patches_indices=batch["image_patches_indices"],
            use_cache=True,
            output_hidden_states=True,
        )
        told = self.told(picture.hidden_states, batch["image_patches_indices"], batch["seen"])
        losses, counts, right = [], [], []
        for ids, labels in batch["asked"]:
            times = len(ids) // len(batch["input_ids"])
            past = [tuple(x.repeat_interleave(times, dim=0) for x in pair) for pair in picture.past_key_values]
            out = self.model(ids, past_key_values=past, labels=labels, use_cache=False)
            losses.append(out.loss)
            counts.append(int((labels != -100).sum()))
            same = (out.logits[:, :-1].argmax(-1) == labels[:, 1:]) | (labels[:, 1:] == -100)
            right.append(same.all(dim=1).float().mean())
        answers = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        self.log_dict({"answers": answers, "long_right": right[0], "short_right": right[1], **told}, prog_bar=True)
        return answers + 0.5 * sum(told.values())

    def told(self, hidden_states: tuple[Tensor, ...], places: Tensor, seen: Tensor) -> dict[str, Tensor]:
        middle = self.norm(hidden_states[len(hidden_states) // 2 + 1])
        patches = middle[places >= 0]  # (B * rows * columns, C)
        return {
            name: F.cross_entropy(self.heads[name](patches).float(), seen[:, number].flatten())
            for number, name in enumerate(SEEN)
        }

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = MuonAndAdamW(self, self.muon_rate, self.adam_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rates at a step, as a part of their peaks."""
        return min((step + 1) / self.warmup, max(0.0, 1 - step / self.steps))


def main(
    out: Annotated[Path, typer.Option(help="Folder for checkpoints and, at the end, the model.")],
    hidden_size: int = 192,
    num_layers: int = 6,
    num_heads: int = 4,
    batch_size: int = 48,
    steps: int = 4000,
    muon_rate: float = 0.02,
    adam_rate: float = 2e-3,
    warmup: int = 100,
    scored: Annotated[int, typer.Option(help="Scenes of each size to be scored on, at the end.")] = 250,
    precision: Annotated[str, typer.Option(help="Lightning's name: 32-true, bf16-mixed, …")] = "bf16-mixed",
    seed: int = 0,
) -> None:
    """Train a small Fuyu on drawn scenes."""
    L.seed_everything(seed)
    tokenizer = learn_vocabulary(out)
    processor = make_processor(tokenizer)
    config = FuyuConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        max_position_embeddings=512,
        patch_size=PATCH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config._attn_implementation = "eager"  # backward, short rows on a CPU: twice as fast as the fused one
    training = Training(FuyuForCausalLM(config), muon_rate, adam_rate, warmup, steps)
    typer.echo(f"{training.model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    trainer = L.Trainer(
        max_steps=steps,
        precision=precision,
        gradient_clip_val=1.0,
        log_every_n_steps=20,
        logger=CSVLogger(out, name="logs", flush_logs_every_n_steps=20),
        callbacks=[ModelCheckpoint(out / "checkpoints", every_n_train_steps=200, save_last=True)],
    )
    trainer.fit(training, DataLoader(Scenes(processor, batch_size, seed), batch_size=None), ckpt_path="last")

    training.model.generation_config.pad_token_id = tokenizer.pad_token_id
    training.model.half().save_pretrained(out)
    processor.save_pretrained(out)
    draw(out / "logs", ("answers", "kind", "top"), out / "loss.png", "cross-entropy (nats)")
    scores = score(out, scored)
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    typer.echo(
        f"{scores['answers']:,} answers: {scores['exact']:.1%} exactly right, boxes overlap {scores['boxes']:.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
