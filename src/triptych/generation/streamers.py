"""Streamers: objects that `generate` hands token ids to, and that hand text on as it becomes certain.

`put` gets the prompt once, shape (1, T) or (T,), and then each new token, shape (1,); `end` is called exactly once,
also when generation fails.
"""

import queue
import unicodedata
from collections.abc import Iterator
from typing import Any

# A token that holds part of a character decodes to this until the rest arrives.
_INCOMPLETE = "\ufffd"
# Once this many tokens are held, those whose text is already out are let go, all but a few as context.
_WINDOW = 48
_CONTEXT = 16


class BaseStreamer:
    """Base of the streamers: override both methods."""

    def put(self, value: Any) -> None:
        """Take the prompt's ids, then the ids of one step."""
        raise NotImplementedError(f"{type(self).__name__} must define put().")

    def end(self) -> None:
        """Take note that no more ids will come."""
        raise NotImplementedError(f"{type(self).__name__} must define end().")


class TextStreamer(BaseStreamer):
    """Print text to standard output as soon as whole words are there.

    A word is out once a space or a line break follows it; the space itself comes with the next word, as a tokenizer
    that cleans up spaces may yet take it away. Characters of scripts that are written without spaces (Chinese,
    Japanese) are out at once; half a UTF-8 character never is. A run of more than some forty tokens without a space
    is not waited for. Work per token does not grow with the text.

    `skip_prompt` leaves the prompt out; `decode_kwargs` go to the tokenizer's `decode`.

    Raises: ValueError for a batch of more than one row.
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.token_cache: list[int] = []  # the last tokens
        self.print_len = 0  # how many characters of their text are out
        self.next_tokens_are_prompt = True

    def put(self, value: Any) -> None:
        """Take ids of shape (1, T) or (T,) and hand on the text they make certain."""
        ids = value.tolist() if hasattr(value, "tolist") else list(value)
        if ids and isinstance(ids[0], list):
            ids = self._only_row(ids)
        elif len(ids) > 1 and not self.next_tokens_are_prompt:
            ids = self._only_row([[token] for token in ids])
        is_prompt, self.next_tokens_are_prompt = self.next_tokens_are_prompt, False
        if is_prompt and self.skip_prompt:
            return
        self.token_cache.extend(ids)
        text = self._decode(self.token_cache)
        certain = _certain_length(text, self.print_len, patient=len(self.token_cache) < _WINDOW)
        printable = text[self.print_len : certain]
        self.print_len = certain
        self._forget(text)
        self.on_finalized_text(printable)

    def end(self) -> None:
        """Hand on what is left, and be ready for another prompt."""
        text = self._decode(self.token_cache) if self.token_cache else ""
        rest = text[self.print_len :]
        self.token_cache, self.print_len, self.next_tokens_are_prompt = [], 0, True
        self.on_finalized_text(rest, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print the text; override it to send the text elsewhere."""
        print(text, flush=True, end="\n" if stream_end else "")

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, **self.decode_kwargs))

    def _only_row(self, rows: list[list[int]]) -> list[int]:
        if len(rows) != 1:
            raise ValueError(
                f"{type(self).__name__} follows one text, but the batch has {len(rows)} rows. Generate one at a time."
            )
        return rows[0]

    def _forget(self, text: str) -> None:
        """Let go of the oldest tokens where what is left decodes to the same end of the text."""
        if len(self.token_cache) < _WINDOW:
            return
        pending = text[self.print_len :]
        for kept in (self.token_cache[-_CONTEXT:], self.token_cache[-2 * _CONTEXT :]):
            tail = self._decode(kept)
            if len(tail) > len(pending) and tail.endswith(pending):
                self.token_cache, self.print_len = kept, len(tail) - len(pending)
                return


class TextIteratorStreamer(TextStreamer):
    """Iterate over the text in one thread while `generate` runs in another.

    `generate` ends the streamer in a `finally`, so that the iterator stops when generation fails, too. A thread that
    calls anything else before `generate` should do the same: `try: … finally: streamer.end()`.

    `timeout` is how many seconds to wait for the next piece; None waits for ever.

    Raises: queue.Empty from the iterator when nothing came in `timeout` seconds.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: queue.Queue[str | None] = queue.Queue()
        self.stop_signal: str | None = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Queue the text, and the stop signal after the last."""
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def __iter__(self) -> Iterator[str]:
        """The pieces of the text."""
        return self

    def __next__(self) -> str:
        """The next piece of the text, as soon as it is certain."""
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None or piece is self.stop_signal:
            raise StopIteration
        return piece


def _certain_length(text: str, already: int, *, patient: bool) -> int:
    """How many characters of the text later tokens will leave alone."""
    if text.endswith("\n") or (text and _stands_alone(text[-1])):
        return len(text)
    space = text.rfind(" ", already + 1)
    if space >= 0 or patient:
        # A tokenizer that tidies may yet take away all the spaces before a word.
        return max(len(text[: max(space, 0)].rstrip(" ")), already)
    return max(len(text.rstrip(_INCOMPLETE)), already)


def _stands_alone(character: str) -> bool:
    """Whether the character belongs to a script that puts no spaces between words."""
    return unicodedata.name(character, "").startswith(("CJK ", "HIRAGANA", "KATAKANA", "IDEOGRAPHIC", "FULLWIDTH"))
