"""Who shows a run to people: what the daemon tells it, and a front that shows nothing."""

from __future__ import annotations

from typing import Protocol

from hermes_mp.core.slots import Slots
from hermes_mp.core.squeeze import Change
from hermes_mp.core.unitlist import UnitList
from hermes_mp.host.children import hand_on
from hermes_mp.host.wire import Key
from hermes_mp.messages import FromCompute, Ticket, UnitDone, UnitLoaded, UnitNo


class Front(Protocol):
    """It also says when the run is over. `fds` are watched for it."""

    fds: list[int]

    @property
    def busy(self) -> bool:
        """Whether compute was asked or told something that it has not answered."""

    @property
    def hurry_s(self) -> float | None:
        """It wants its next `tick` so soon."""

    def told(self, message: FromCompute) -> None:
        """Compute said something that is no business of the daemon's: text, answers, progress, passes."""

    def loaded(self, message: UnitLoaded, unit: UnitNo) -> None: ...

    def done(self, message: UnitDone, unit: UnitNo, loaded_by: Ticket) -> None:
        """`loaded_by` is the ticket of the load that brought the unit."""

    def slots_changed(self, slots: Slots) -> None:
        """Some slot may have another owner now."""

    def ready(self, units: UnitList) -> None:
        """Compute can be given requests."""

    def say(self, text: str) -> None:
        """Something worth a line: a loader was lost, slots are fewer than planned."""

    def heard(self, data: bytes) -> None:
        """What a child of ours has written to its standard error."""

    def restarted(self) -> None:
        """A loader that was lost has a successor."""

    def compute_restarted(self) -> None:
        """Compute was lost; its successor will be `ready`, and is then to be asked the same once more."""

    def sampled(self, by_process: dict[str, int], arena_nbytes: int, exact: bool) -> None: ...

    def looked(self, free_nbytes: int, reserve_nbytes: int, slots: int) -> None:
        """The machine's free memory, what of it is to stay free, and the slots that have theirs at this moment."""

    def squeezed(self, change: Change, free_nbytes: int) -> None:
        """Residents leave for want of memory, or return."""

    def readable(self, key: Key) -> None: ...

    def tick(self) -> None: ...


class SilentFront:
    """Shows nothing but what goes wrong: the front of a run behind `hermes_mp.load`."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    @property
    def busy(self) -> bool:
        return False

    @property
    def hurry_s(self) -> float | None:
        return None

    def told(self, message: FromCompute) -> None: ...

    def loaded(self, message: UnitLoaded, unit: UnitNo) -> None: ...

    def done(self, message: UnitDone, unit: UnitNo, loaded_by: Ticket) -> None: ...

    def slots_changed(self, slots: Slots) -> None: ...

    def ready(self, units: UnitList) -> None: ...

    def say(self, text: str) -> None:
        hand_on(f"hermes-mp: {text}\n".encode())

    def heard(self, data: bytes) -> None:
        hand_on(data)

    def restarted(self) -> None: ...

    def compute_restarted(self) -> None: ...

    def sampled(self, by_process: dict[str, int], arena_nbytes: int, exact: bool) -> None: ...

    def looked(self, free_nbytes: int, reserve_nbytes: int, slots: int) -> None: ...

    def squeezed(self, change: Change, free_nbytes: int) -> None: ...

    def readable(self, key: Key) -> None: ...

    def tick(self) -> None: ...
