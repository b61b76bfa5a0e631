"""Token ids in, text out as it comes: never half a character, never a stop string or the beginning of one.

transformers' TextStreamer waits for the end of a word, which at seconds per token looks like a hang. It does not know
where the ids come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

HALF = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """`said` is the text so far; `stopped` is set once a stop string came, and nothing is said from it on."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str], say: Callable[[str], None]) -> None:
        self._decode = decode
        self._stop = stop
        self._say = say
        self._ids: list[int] = []
        self._first = 0  # ids before this one are said and no longer needed as context
        self._next = 0  # ids before this one are said
        self._held = ""
        self.said = ""
        self.stopped = False

    def push(self, ids: Sequence[int]) -> None:
        """Take the next tokens and say what is certain."""
        for one in ids:
            self._ids.append(one)
            self._advance(final=False)

    def finish(self) -> None:
        """No token will follow: say what was held back."""
        self._advance(final=True)
        if not self.stopped:
            self._out(self._held)
        self._held = ""

    def _advance(self, final: bool) -> None:
        # Decoding a few tokens of context along keeps joints right (SentencePiece drops the first word's space).
        known = self._decode(self._ids[self._first : self._next])
        text = self._decode(self._ids[self._first :])
        if self.stopped or len(text) <= len(known) or (text.endswith(HALF) and not final):
            return
        self._held += text[len(known) :]
        self._first, self._next = self._next, len(self._ids)
        ends = [at for at in (self._held.find(one) for one in self._stop) if at >= 0]
        if ends:
            self.stopped = True
            self._out(self._held[: min(ends)])
            return
        keep = max((_overlap(self._held, one) for one in self._stop), default=0)
        self._out(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def _out(self, text: str) -> None:
        if text:
            self.said += text
            self._say(text)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
