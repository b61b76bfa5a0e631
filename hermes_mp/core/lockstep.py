"""Who of several requests goes on next, so that each unit is read once for all of them.

A pass of all is a round: members join it at its beginning only. Inside, each runs until it wants a unit, and waits
until all others have come as far; then all that want it run in their order while it lies there. One that ends, or that
an error ends, is waited for no longer. Chunks of a prompt are members, too; their hops to other boards go as soon as
they can, so that several boards compute at once. Pure: it knows neither threads nor weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hermes_mp.errors import InvariantBroken


@dataclass(frozen=True)
class Run:
    """This member goes on, until it says where it stands. `moved`: what was wanted before it, nobody wants any more."""

    member: int
    moved: bool = False


@dataclass(frozen=True)
class Begin:
    """A round begins: these go on with it."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class Send:
    """These want the layers at `place` of another board: all that are to want them in this round, or there are `more`.

    `apart`: do not wait for the answer, but say `returned` when it has come.
    """

    members: tuple[int, ...]
    place: int
    more: bool = False
    apart: bool = False


@dataclass(frozen=True)
class Await:
    """Nothing can be done before an answer comes from another board."""


@dataclass(frozen=True)
class Finish:
    """The round is over, for these to the end."""

    members: tuple[int, ...]


Step = Run | Begin | Send | Await | Finish


LAST = 2**40  # behind all units


class _At(Enum):
    FREE = "free"  # it is to go on
    JOINING = "joining"
    WANTING = "wanting"
    AWAY = "away"  # it is to be sent
    SENT = "sent"
    ASIDE = "aside"  # it waits for others that it has started
    LEAVING = "leaving"


@dataclass
class _Member:
    at: _At = _At.FREE
    what: int = -1  # how far it has come: the unit, or the first one at a place
    inside: bool = False  # the round that is under way
    board: str = ""  # that it is to be sent to apart


class Lockstep:
    """Do what `next` says; after `Run` the member says one of `join`, `want`, `hop`, `leave` or `go`."""

    def __init__(self) -> None:
        self._members: dict[int, _Member] = {}  # in the order in which they came
        self._unit: int | None = None  # that was wanted last
        self._busy: dict[str, int] = {}  # boards that were asked apart, and by whom
        self._places: dict[str, int] = {}  # of this round, by board, where it was asked last
        self.is_under_way = False  # a round

    def __len__(self) -> int:
        return len(self._members)

    @property
    def at_boundary(self) -> bool:
        """Between two rounds: whoever comes now is in the next one."""
        return not self.is_under_way and not any(one.at is _At.FREE for one in self._members.values())

    # --- what members say

    def come(self, member: int) -> None:
        if member in self._members:
            raise InvariantBroken(f"member {member} of a lock step comes twice")
        self._members[member] = _Member()

    def join(self, member: int) -> None:
        """It begins a pass, with the next round."""
        self._stands(member, _At.JOINING, -1, inside=False)

    def want(self, member: int, unit: int) -> None:
        self._stands(member, _At.WANTING, unit, inside=True)

    def hop(self, member: int, place: int, board: str = "") -> None:
        """It wants layers of another board, together with all others; with a `board` as soon as that is free."""
        self._stands(member, _At.AWAY, place, inside=True)
        self._members[member].board = board

    def returned(self, member: int, board: str) -> None:
        """The answer to what was sent apart has come, whether the member still waits for it or not."""
        self._busy.pop(board, None)
        one = self._members.get(member)
        if one is not None and one.at is _At.SENT and one.board == board:
            one.at = _At.FREE

    def set_aside(self, member: int) -> None:
        """It waits for members that come now, and goes on with `wake`."""
        self._stands(member, _At.ASIDE, -1, inside=False)

    def wake(self, member: int) -> None:
        self._members[member].at = _At.FREE

    def leave(self, member: int) -> None:
        """Its pass is over, and it waits until all others' are."""
        self._stands(member, _At.LEAVING, LAST, inside=True)

    def drop(self, member: int) -> None:
        """Its pass was cut short: it goes on outside of the round."""
        self._stands(member, _At.FREE, -1, inside=False)

    def go(self, member: int) -> None:
        """It has ended, wherever it was."""
        del self._members[member]

    def break_off(self) -> None:
        """No round is under way any more, and all go on, to their ends."""
        self.is_under_way, self._unit, self._busy = False, None, {}
        for one in self._members.values():
            one.at, one.inside = _At.FREE, False

    def _stands(self, member: int, at: _At, what: int, inside: bool) -> None:
        one = self._members[member]
        one.at, one.what, one.inside = at, what, inside

    # --- what is to be done

    def next(self) -> Step | None:
        """The next step, taken as done; None without members."""
        apart = self._apart()  # first: the board works while others go on here
        if apart is not None:
            return apart
        free = self._those(_At.FREE)
        if free:
            return Run(free[0])
        wanting, away, sent = self._those(_At.WANTING), self._those(_At.AWAY), self._those(_At.SENT)
        if wanting and (not sent or self._may_run(wanting)):
            return self._for_unit(wanting)
        if sent or any(self._members[member].board in self._busy for member in away):
            return Await()
        if away:
            place = min(self._members[member].what for member in away)
            found = tuple(member for member in away if self._members[member].what == place)
            self._unit = None
            return Send(self._set_free(found), place)
        if self.is_under_way:
            self.is_under_way, self._unit = False, None
            found = self._set_free(self._those(_At.LEAVING))
            for member in found:
                self._members[member].inside = False
            return Finish(found)
        joining = self._those(_At.JOINING)
        if not joining:
            return None
        self.is_under_way, self._places = True, {}
        for member in joining:
            self._members[member].inside = True
        return Begin(self._set_free(joining))

    def _apart(self) -> Send | None:
        """Whoever is to be sent to a board that does nothing."""
        for number, one in self._members.items():
            is_free = one.board and one.board not in self._busy
            if one.at is _At.AWAY and is_free and self._comes_next(one.board, one.what):
                one.at, self._places[one.board], self._busy[one.board] = _At.SENT, one.what, number
                return Send((number,), one.what, self._is_more(one.what), apart=True)
        return None

    def _comes_next(self, board: str, place: int) -> bool:
        """Whether all have come by where that board was asked last, or this is there."""
        last = self._places.get(board, place)
        return last == place or not self._is_more(last)

    def _is_more(self, place: int) -> bool:
        """Whether somebody is to come by there, who has not."""
        inside = [one for one in self._members.values() if one.inside]
        return any(one.what < place or (one.at is _At.AWAY and one.what == place) for one in inside)

    def _may_run(self, wanting: tuple[int, ...]) -> bool:
        """Whether the unit that lies there is wanted, or nobody who is away is to come by it."""
        if self._unit is None or any(self._members[member].what == self._unit for member in wanting):
            return True
        away = (one.what for one in self._members.values() if one.at in (_At.AWAY, _At.SENT))
        return all(what > self._unit for what in away)

    def _for_unit(self, wanting: tuple[int, ...]) -> Run:
        """Who is least far goes on first, where not all want the same."""
        wanted = {member: self._members[member].what for member in wanting}
        moved = self._unit not in wanted.values()
        if moved:
            self._unit = min(wanted.values())
        (member,) = self._set_free(tuple(one for one in wanting if wanted[one] == self._unit)[:1])
        return Run(member, moved)

    def _those(self, at: _At) -> tuple[int, ...]:
        return tuple(number for number, one in self._members.items() if one.at is at)

    def _set_free(self, members: tuple[int, ...]) -> tuple[int, ...]:
        for member in members:
            self._members[member].at = _At.FREE
        return members
