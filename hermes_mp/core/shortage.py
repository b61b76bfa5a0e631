"""A process was killed for lack of memory: what the run and others took of which limit, and what would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hermes_mp.core.squeeze import reserve_nbytes

MIB = 1 << 20


@dataclass(frozen=True)
class Shortage:
    """`took`: bytes by process when the run was last seen to be largest, `slots` among them; `others`: beside the run.

    `limit`: of the machine (`place` is then "machine") or of a cgroup. `budget`: None where there was no limit of ours.
    `starting`: how much it will take is not known yet.
    """

    place: str
    limit: int
    others: int
    took: Mapping[str, int]
    budget: int | None
    starting: bool = False

    def story(self) -> str:
        """What was taken."""
        where = "this machine has" if self.place == "machine" else f"{self.place} allows"
        largest_first = sorted(self.took.items(), key=lambda one: -one[1])
        each = ", ".join(f"{name} {_mib(nbytes)}" for name, nbytes in largest_first)
        others = f" and others {_mib(self.others)} MiB" if self.others >= MIB else ""
        run = f"the run took {_mib(self._total)} MiB ({each})"
        return f"{where} {_mib(self.limit)} MiB, {run}{others} when last looked at"

    def attempt(self) -> str:
        """What to do: a budget only where it would leave room for the processes and one slot less than there were."""
        reserve = reserve_nbytes(self.limit, None)
        enough = self.others + max(self._total, self.budget or 0) + reserve
        much = f"more than {_mib(enough)} MiB, as it only began" if self.starting else f"{_mib(enough)} MiB or more"
        much = f"it takes a machine with {much}" if self.place == "machine" else f"let it have {much}"
        budget = 0 if self.starting else self.limit - self.others - reserve
        lower = self._total - self.took.get("slots", 0) < budget < (self.budget or self.limit)
        return much + (f", or run it with --memory {_mib(budget)}MiB" if lower else "")

    @property
    def _total(self) -> int:
        return sum(self.took.values())


def _mib(nbytes: int) -> int:
    return -(-nbytes // MIB)
