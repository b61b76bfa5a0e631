"""A request that compute was asked and has not answered, and what of its answer may be shown by now.

Several may be in flight; only the first of them is shown as it comes, what the others say is held until it is their
turn. It knows no console.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hermes_mp.core.retelling import Retelling


@dataclass
class Asked:
    """Request `number`; `answer` or `failure` (exit code and line) once it is known."""

    number: int
    request: dict[str, Any]
    final: bool
    label: str | None
    told: Retelling = field(default_factory=Retelling)
    chosen: list[int] = field(default_factory=list)  # tokens that a successor of compute may go on behind
    parts: str = ""  # of the answer
    held: str = ""
    answer: dict[str, Any] | None = None
    failure: tuple[int, str] | None = None

    @property
    def is_over(self) -> bool:
        return self.answer is not None or self.failure is not None

    def begin_again(self) -> None:
        """It will be answered once more, from the start."""
        self.parts = ""
        self.told.restart()

    def asked_again(self) -> dict[str, Any]:
        """What compute is then asked."""
        return self.request | {"said": self.chosen} if self.chosen else self.request

    def take_held(self) -> str:
        """What was said and not shown, from now on counted as shown."""
        text, self.held = self.held, ""
        return text
