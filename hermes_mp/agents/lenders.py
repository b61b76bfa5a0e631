"""Boards whose disks are borrowed: who they are, and a link to one of them that was greeted.

Used by every process that takes bytes from another board. Our own keys come from the store, never by a command line.
"""

from __future__ import annotations

from collections.abc import Mapping

from hermes_mp.agents.borrowed import Lender
from hermes_mp.agents.greeting import Greeting
from hermes_mp.board_messages import Welcome
from hermes_mp.errors import BoardLost, BoardUnknown, ModelNotFound, ModelsDiffer
from hermes_mp.host.cachedir import versions
from hermes_mp.host.lan import LanLink
from hermes_mp.host.pairings import Store

GREET_S = 10.0  # the first fingerprint of a model takes samples of its files


def paired(counts: Mapping[str, int]) -> tuple[Lender, ...]:
    """These boards, as `hermes-board join` has left them. Raises BoardUnknown."""
    boards = Store().pairings().boards if counts else {}
    for name in counts:
        if name not in boards:
            raise BoardUnknown(f"this board is not paired with {name}")
    return tuple(Lender(name, boards[name].address, boards[name].key, count) for name, count in counts.items())


def greet(
    lender: Lender, model: str, fingerprint: str, deadline_s: float = GREET_S, death_fd: int | None = None
) -> tuple[LanLink, Welcome]:
    """A link to a lender that has `model`, and what it says of itself; its copy is known by `fingerprint` ("": any).

    Raises BoardLost, NotAllowed, ModelsDiffer, ModelNotFound, ProtocolsDiffer or what else the board refuses with.
    """
    identity = Store().identity() if lender.key else None
    if lender.key and identity is None:
        raise BoardUnknown(f"{lender.name} has keys, and this board has none")
    keys = None if identity is None else identity.keys
    link = LanLink(lender.name, lender.address, keys, lender.key or None, deadline_s, death_fd)
    try:
        greeting = Greeting(_software(), "" if identity is None else identity.name, model, fingerprint)
        link.send(greeting.hello())
        answer = link.receive(deadline_s)
        if answer is None:
            raise BoardLost(f"board {lender.name} ({lender.address}) did not answer for {deadline_s:g} s")
        welcome = greeting.welcomed(lender.name, answer)
        if not welcome.fingerprint:
            raise ModelNotFound(f"board {lender.name} has no copy of {model}", "copy it there, or name another board")
        if fingerprint and welcome.fingerprint != fingerprint:
            raise ModelsDiffer(f"{model} is {fingerprint[:12]} here and {welcome.fingerprint[:12]} on {lender.name}")
        return link, welcome
    except BaseException:
        link.close()
        raise


def _software() -> str:
    """Our version, as far as it is installed."""
    ours = [name for name in versions() if name.startswith("hermes_mp-")]
    return ours[0].split("-")[1].removesuffix(".dist") if ours else "?"
