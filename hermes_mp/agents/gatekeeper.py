"""Who may come to this board: heads that are paired with it, and the bearers of open join tokens, once each.

For the loop of a board: `allow` is its hub's question for every key and message, `pair` answers PairHead. What another
process changes in the store (`hermes-board revoke`, `token`) holds from the next message on. It knows no socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hermes_mp.board_messages import Paired, PairHead, Refused
from hermes_mp.config import is_name
from hermes_mp.core.pairing import is_key
from hermes_mp.errors import HermesError, NotAllowed, TokenRefused, refused
from hermes_mp.host.pairings import Pairings, Store

BEARER = "token:"  # begins the name of a visitor with a join token; no head can be called so


class Gatekeeper:
    """`board` is this board's name; `now_s` gives seconds of 1970."""

    def __init__(self, store: Store, board: str, now_s: Callable[[], float] = time.time) -> None:
        self._store, self._board, self._now_s = store, board, now_s
        self._read: Pairings | None = None
        self._names: dict[str, str] = {}
        self.trouble = ""  # why nobody can come in at the moment, in a line

    def allow(self, key: str) -> str | None:
        """The name that a public key is known by, None where it is not; never raises: what cannot be read is a no."""
        try:
            pairings = self._store.pairings()
        except (HermesError, OSError) as error:
            self.trouble = (error if isinstance(error, HermesError) else refused(error)).line()
            return None
        self.trouble = ""
        if pairings is not self._read:
            self._read, self._names = pairings, {known: name for name, known in pairings.heads.items()}
        if key in self._names:
            return self._names[key]
        return BEARER + key if pairings.tokens.get(key, 0) > self._now_s() else None

    @staticmethod
    def may(name: str, message: object) -> bool:
        """Whether the visitor of that name may send such a message: bearers of a token pair, and nobody else does."""
        return name.startswith(BEARER) == isinstance(message, PairHead)

    def pair(self, name: str, message: PairHead) -> Paired | Refused:
        """Allow the head's key from now on, by the token of the visitor called `name`, which is used up by that."""
        try:
            self._pair(name, message)
        except HermesError as error:
            return Refused(error.exit_code, str(error))
        except OSError as error:
            return Refused(refused(error).exit_code, str(refused(error)))
        return Paired(self._board)

    def _pair(self, name: str, message: PairHead) -> None:
        now_s = self._now_s()
        if not name.startswith(BEARER):
            raise NotAllowed(f"{self._board} pairs with the bearer of a join token only")
        if not is_key(message.key) or not is_name(message.name):
            raise TokenRefused(f"{self._board} was given a key or a name that is none")
        token = name[len(BEARER) :]
        with self._store.change(now_s) as pairings:
            if pairings.tokens.get(token, 0) <= now_s:
                raise TokenRefused(f"the join token of {self._board} was used, or has expired")
            if pairings.heads.get(message.name, message.key) != message.key:
                why = f"another head is paired with {self._board} as {message.name}"
                raise TokenRefused(f"{why}: choose a --name, or run hermes-board revoke {message.name} there")
            heads = {other: key for other, key in pairings.heads.items() if key != message.key}
            pairings.heads = {**heads, message.name: message.key}
            del pairings.tokens[token]
