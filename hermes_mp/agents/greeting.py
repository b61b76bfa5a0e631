"""How a head greets a board, whether for its layers or for its disk: what it says, and what it takes for a welcome."""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.board_messages import PROTOCOL, Hello, Refused, Welcome
from hermes_mp.errors import BadMessage, HermesError, ProtocolsDiffer, by_exit_code


@dataclass(frozen=True)
class Greeting:
    """`head` is our name, "" without one; `model` is known by `fingerprint` ("": any copy of that name)."""

    software: str
    head: str
    model: str
    fingerprint: str

    def hello(self) -> Hello:
        return Hello(PROTOCOL, self.software, self.head, self.model, self.fingerprint)

    def welcomed(self, board: str, answer: object) -> Welcome:
        """The board's welcome. Raises what it refuses with, ProtocolsDiffer, or BadMessage."""
        if isinstance(answer, Refused):
            raise said_by(board, answer.exit_code, answer.text)
        if not isinstance(answer, Welcome):
            raise BadMessage(f"board {board} answers a greeting with {type(answer).__name__}")
        if answer.protocol != PROTOCOL:
            raise ProtocolsDiffer(
                f"board {board} speaks version {answer.protocol} of our protocol (hermes-mp {answer.software}), "
                f"this one {PROTOCOL} (hermes-mp {self.software})"
            )
        return answer


def said_by(board: str, exit_code: int, text: str) -> HermesError:
    """The error that a board told, with its name."""
    return by_exit_code().get(exit_code, BadMessage)(f"board {board}: {text}")
