"""Compute's mind: which units it wants, holds and must return. It knows no socket, no torch and no slot's content.

Around a module's forward the hooks call `want`, `begin`, `done`. The next unit is asked for as a guess while the
present one computes; where the present one had come before the last was done, with the return of the last. Who waits
for its own guess says so only after a while (`remind`): it is on its way. A wrong guess costs a read, never an answer:
it is returned unused, at once where compute holds it already, else when it arrives. A resident is kept once it was
used: binding it again costs no message, until it is recalled. Compute is single-threaded: it waits for one unit at a
time, but may hold several.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.errors import BudgetTooSmall, InvariantBroken
from hermes_mp.messages import AskUnit, PassForecast, RecallUnit, Ticket, UnitDone, UnitFailed, UnitNo, UnitReady


@dataclass(frozen=True)
class Send:
    """To the daemon."""

    message: AskUnit | UnitDone | PassForecast


@dataclass(frozen=True)
class GiveUp:
    """The unit compute waits for will not come: raise the error of this exit code."""

    unit: UnitNo
    exit_code: int
    text: str


Action = Send | GiveUp


class _Lease:
    """A unit that compute holds; `binds` counts nested uses, 0 for a guess that came before it was wanted."""

    __slots__ = ("asked_ns", "binds", "bound_ns", "keep", "ready", "used")

    def __init__(self, ready: UnitReady) -> None:
        self.ready = ready
        self.asked_ns: int | None = None
        self.bound_ns: int | None = None
        self.binds = 0
        self.keep = ready.keep
        self.used = False


class Leasing:
    """Calls must follow `want` -> (`held`, `remind`) -> `begin` -> `done`; pairs of different units may nest."""

    def __init__(self, units: int, more: bool = False) -> None:
        self._units = self._expected = units
        self._more = more
        self._leases: dict[UnitNo, _Lease] = {}
        self._last_ticket = Ticket(0)
        self._waiting: UnitNo | None = None
        self._asked_ns = 0
        self._told = False  # that compute waits for `_waiting`
        self._asked_again = False
        self._guess: UnitNo | None = None

    def held(self, unit: UnitNo) -> UnitReady | None:
        """The lease of this unit, if compute may bind it now."""
        lease = self._leases.get(unit)
        return None if lease is None else lease.ready

    def keeps(self, unit: UnitNo) -> bool:
        """Whether the unit is compute's without asking: call `begin` at once."""
        lease = self._leases.get(unit)
        return lease is not None and lease.keep

    def want(self, unit: UnitNo, now_ns: int) -> list[Action]:
        """Compute needs the unit now: return what it guessed wrong, and ask unless the unit is here or was asked for.

        If `held` says None afterwards, handle messages until it does not, or until `GiveUp`, and `remind` where none
        comes; if an exception (Ctrl-C) ends that wait, call `abandon`.
        """
        lease = self._leases.get(unit)
        ahead = None if lease is None else self._following(unit)  # whoever waits holds no slot on a guess
        actions: list[Action] = [
            self._return(other, now_ns)
            for other in list(self._leases.values())
            if not (other.binds or other.keep) and other.ready.unit not in (unit, ahead)
        ]
        if self._guess not in (ahead, unit):
            self._guess = None
        self._waiting, self._asked_ns, self._told, self._asked_again = unit, now_ns, False, False
        if lease is not None:
            self._arrived(lease)
        elif self._guess is None:
            actions += self.remind()
        return actions

    def remind(self) -> list[Action]:
        """Compute has waited for a while: say so, once, should what it guessed have no claim to a slot."""
        if self._waiting is None or self._told:
            return []
        self._told = True
        return [Send(AskUnit(self._waiting, waiting=True))]

    def handle(self, message: UnitReady | RecallUnit | UnitFailed, now_ns: int) -> list[Action]:
        if isinstance(message, RecallUnit):
            return self._recalled(message, now_ns)
        if isinstance(message, UnitFailed):
            if message.unit != self._waiting:
                return []  # of a wait that was given up
            if message.exit_code == BudgetTooSmall.exit_code and not self._asked_again:
                # Refused because compute holds every slot; it may have been said of an earlier wait for this unit,
                # before compute returned what it held.
                self._asked_again = True
                return [Send(AskUnit(message.unit, waiting=True))]
            self._waiting = None
            self._guess = None if self._guess == message.unit else self._guess
            return [GiveUp(message.unit, message.exit_code, message.text)]
        lease = self._leases.get(message.unit)
        if lease is not None and lease.ready.ticket == message.ticket:
            return []
        wanted = message.unit == self._waiting or message.unit == self._guess
        if not wanted or lease is not None or message.ticket <= self._last_ticket:
            # Not wanted any more, or old: leases come in the order of their tickets. Returning one that was returned
            # before is harmless, while keeping one that the daemon counts as lent would cost a slot for good.
            self._last_ticket = max(self._last_ticket, message.ticket)
            actions: list[Action] = [self._return(_Lease(message), now_ns)]
            if message.unit == self._waiting:
                actions.append(Send(AskUnit(message.unit, waiting=True)))  # should it have been the answer after all
            return actions
        self._last_ticket = message.ticket
        lease = self._leases[message.unit] = _Lease(message)
        if message.unit == self._waiting:
            self._arrived(lease)
        if message.unit == self._guess:
            self._guess = None
        return []

    def abandon(self) -> None:
        """Compute waits no longer: the answer may come any time and is returned unused, or is no news."""
        self._waiting = None

    def begin(self, unit: UnitNo, now_ns: int) -> list[Action]:
        """The unit is bound and compute uses it: ask for the one that should come next."""
        lease = self._of(unit)
        lease.binds += 1
        if lease.bound_ns is None:
            lease.bound_ns = now_ns
        if lease.keep and lease.used:
            return []  # the unit after it was guessed when the last one was bound that is not kept
        return [Send(AskUnit(guess, waiting=False)) for guess in self._guess_after(unit)]

    def _guess_after(self, unit: UnitNo) -> tuple[UnitNo, ...]:
        """What is to be asked for while compute uses this unit, unless it is here or on its way."""
        guess = self._following(unit)
        if guess is None or guess == self._guess or guess in self._leases:
            return ()
        self._guess = guess
        return (guess,)

    def _following(self, unit: UnitNo) -> UnitNo | None:
        """The next unit in the predicted order that compute does not keep."""
        following = unit
        for _ in range(self._units):
            following = UnitNo(following + 1)
            if following == (self._expected if unit < self._expected else self._units):
                if not self._more:
                    return None
                following = UnitNo(0)
            if not self.keeps(following):
                return following
        return None

    def done(self, unit: UnitNo, now_ns: int, computed: bool = True) -> list[Action]:
        """The unit is unbound; `computed` is False where an exception came first. The outermost use returns it."""
        lease = self._of(unit)
        lease.binds -= 1
        lease.used = lease.used or computed
        if lease.binds > 0:
            return []
        if lease.keep:
            lease.asked_ns = lease.bound_ns = None
            return []
        following = self._following(unit)
        there = computed and following != unit and following in self._leases
        return [self._return(lease, now_ns, lease.used, following if there else None)]

    def _recalled(self, recall: RecallUnit, now_ns: int) -> list[Action]:
        lease = self._leases.get(recall.unit)
        if lease is None or lease.ready.ticket != recall.ticket:
            return []  # returned already
        lease.keep = False
        return [] if lease.binds else [self._return(lease, now_ns, lease.used)]

    def forecast(self, more: bool, units: int | None) -> list[Action]:
        """Whether another pass is expected after this one, and how many of the first units both need.

        0: all; None: as before.
        """
        expected = self._expected if units is None else units or self._units
        if more == self._more and expected == self._expected:
            return []
        self._more, self._expected = more, expected
        return [Send(PassForecast(more, 0 if expected == self._units else expected))]

    def _arrived(self, lease: _Lease) -> None:
        if lease.asked_ns is None:
            lease.asked_ns = self._asked_ns
        self._waiting = None

    def _return(self, lease: _Lease, now_ns: int, computed: bool = False, following: UnitNo | None = None) -> Send:
        """`following`: held already and bound next, so that the guess after it may be asked for at once."""
        ready = lease.ready
        if self._leases.get(ready.unit) is lease:
            del self._leases[ready.unit]
        bound_ns = now_ns if lease.bound_ns is None else lease.bound_ns
        asked_ns = bound_ns if lease.asked_ns is None else lease.asked_ns
        ahead = () if following is None else self._guess_after(following)
        return Send(UnitDone(ready.ticket, computed, asked_ns, bound_ns, now_ns, ahead))

    def _of(self, unit: UnitNo) -> _Lease:
        lease = self._leases.get(unit)
        if lease is None:
            raise InvariantBroken(f"bound implies held: unit {unit} is not held")
        return lease
