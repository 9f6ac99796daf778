"""Streamers: pieces like the reference's, every text whole, and no thread left waiting."""

import json
import queue
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from triptych.generation.streamers import BaseStreamer, TextIteratorStreamer, TextStreamer

GOLDEN = Path(__file__).parent / "golden"
STREAMED = json.loads((GOLDEN / "generation.json").read_text(encoding="utf-8"))["streamed"]


class Bytes:
    """A tokenizer whose tokens are pieces of UTF-8; it remembers how much it was asked to decode."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.longest = 0

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        self.longest = max(self.longest, len(ids))
        return b"".join(self.tokens[i] for i in ids).decode("utf-8", errors="replace")


class Recorder(TextStreamer):
    """Keeps the pieces instead of printing them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pieces: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.pieces.append(text)


def stream(tokenizer: Bytes) -> list[str]:
    recorder = Recorder(tokenizer)
    for index in range(len(tokenizer.tokens)):
        recorder.put(torch.tensor([index]))
    recorder.end()
    return recorder.pieces


def test_words_are_out_at_the_tokens_where_they_are_in_the_reference() -> None:
    pieces = stream(Bytes([bytes(token) for token in STREAMED["tokens"]]))
    assert "".join(pieces) == "".join(STREAMED["pieces"])
    ours, theirs = (["".join(p[: n + 1]).rstrip(" ") for n in range(len(p))] for p in (pieces, STREAMED["pieces"]))
    assert ours == theirs


class Tidy(Bytes):
    """Takes away spaces as `clean_up_tokenization_spaces` does."""

    def decode(self, ids: list[int], **kwargs: Any) -> str:
        text = super().decode(ids)
        for spaced in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
            text = text.replace(spaced, spaced.strip())
        return text


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(["do", " n", "'t", " '", "s", " it", "ve", " ,", ".", " a", " "]), max_size=90))
@example([" ", " '", " ", "s"])
def test_nothing_is_lost_where_the_tokenizer_tidies_spaces(tokens: list[str]) -> None:
    tokenizer = Tidy([token.encode() for token in tokens])
    assert "".join(stream(tokenizer)) == tokenizer.decode(list(range(len(tokens))))


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="ab \n é東ほ，🙂", max_size=300), st.integers(1, 5))
def test_the_pieces_make_up_the_text_and_hold_no_half_character(text: str, size: int) -> None:
    data = text.encode()
    pieces = stream(Bytes([data[i : i + size] for i in range(0, len(data), size)]))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@pytest.mark.parametrize("unit", ["word ", "word", "東", "é", "a\n"])
def test_the_work_per_token_does_not_grow_with_the_text(unit: str) -> None:
    tokenizer = Bytes([bytes([byte]) for byte in (unit * 400).encode()])
    pieces = stream(tokenizer)
    assert "".join(pieces) == unit * 400
    assert tokenizer.longest <= 64
    assert max(map(len, pieces)) <= 64


def test_words_are_printed_once_they_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    streamer = TextStreamer(Bytes([b"Once", b" up", b"on", b" a time"]))
    printed = []
    for index in range(4):
        streamer.put(torch.tensor([index]))
        printed.append(capsys.readouterr().out)
    streamer.end()
    assert [*printed, capsys.readouterr().out] == ["", "Once", "", " upon a", " time\n"]


@pytest.mark.parametrize("prompt", [torch.tensor([[0, 1]]), torch.tensor([0, 1])])
def test_the_prompt_can_be_left_out_each_time(prompt: torch.Tensor) -> None:
    tokenizer = Bytes([b"Tell ", b"me ", b"more."])
    for skip, expected in ((True, "more."), (False, "Tell me more.")):
        recorder = Recorder(tokenizer, skip_prompt=skip)
        for _ in range(2):
            recorder.put(prompt)
            recorder.put(torch.tensor([2]))
            recorder.end()
        assert "".join(recorder.pieces) == 2 * expected


def test_decode_arguments_reach_the_tokenizer() -> None:
    class Picky(Bytes):
        def decode(self, ids: list[int], **kwargs: Any) -> str:
            assert kwargs == {"skip_special_tokens": True}
            return super().decode(ids)

    recorder = Recorder(Picky([b"a"]), skip_special_tokens=True)
    recorder.put(torch.tensor([[0]]))
    recorder.end()
    assert recorder.pieces == ["", "a"]


def test_a_batch_is_refused_at_the_prompt_and_at_a_step() -> None:
    with pytest.raises(ValueError, match="2 rows"):
        TextStreamer(Bytes([b"a"])).put(torch.tensor([[0], [0]]))
    streamer = Recorder(Bytes([b"a"]))
    streamer.put(torch.tensor([[0]]))
    with pytest.raises(ValueError, match="3 rows"):
        streamer.put(torch.tensor([0, 0, 0]))


def test_the_iterator_gives_the_text_of_another_thread() -> None:
    streamer = TextIteratorStreamer(Bytes([b"One ", b"two ", b"three"]), timeout=10)

    def work() -> None:
        for index in range(3):
            streamer.put(torch.tensor([index]))
        streamer.end()

    thread = threading.Thread(target=work)
    thread.start()
    assert "".join(streamer) == "One two three"
    thread.join()


def test_the_iterator_gives_up_after_its_timeout() -> None:
    with pytest.raises(queue.Empty):
        next(iter(TextIteratorStreamer(Bytes([]), timeout=0.01)))


def test_the_base_asks_for_both_methods() -> None:
    with pytest.raises(NotImplementedError, match="put"):
        BaseStreamer().put(0)
    with pytest.raises(NotImplementedError, match="end"):
        BaseStreamer().end()
