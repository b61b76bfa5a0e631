"""An answer that is told once more, by a compute that replaces a lost one: nothing is shown twice, nothing is missing.

Compute repeats the request's calls from the first one on, so it says the same again, in whatever pieces.
"""

from __future__ import annotations

from hermes_mp.errors import AnswerDiffers


class Retelling:
    """The text of one answer, piece by piece."""

    def __init__(self) -> None:
        self._shown = ""
        self._said = 0  # characters, since it was last told from the start

    def restart(self) -> None:
        """It will be told from the start."""
        self._said = 0

    def tell(self, text: str) -> str:
        """What of the next piece was not shown yet. Raises AnswerDiffers where it is not what was said before."""
        before = self._shown[self._said : self._said + len(text)]
        if not text.startswith(before):
            raise AnswerDiffers(f"after compute was restarted its answer goes another way at character {self._said}")
        self._said += len(text)
        new = text[len(before) :]
        self._shown += new
        return new

    def end(self) -> None:
        """All is told. Raises AnswerDiffers where that was less than before."""
        if self._said < len(self._shown):
            raise AnswerDiffers(f"after compute was restarted its answer ends at character {self._said}")
