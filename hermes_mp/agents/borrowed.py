"""What a run borrows: the boards whose disks it reads, and the model that is meant. Light, as the crew imports it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Lender:
    """How a board is reached; `key` is its public one, "" on plaintext loopback. `count` loaders take from it."""

    name: str
    address: str
    key: str
    count: int = 1


@dataclass(frozen=True)
class Borrowed:
    """`model`: the name that lenders know; `fingerprint`: of every copy; `has_copy`: its weights also lie here."""

    lenders: tuple[Lender, ...]
    model: str
    fingerprint: str
    has_copy: bool = True

    @property
    def loaders(self) -> int:
        """All that take from other boards."""
        return sum(one.count for one in self.lenders)

    def as_json(self) -> dict[str, Any]:
        """For the compute process."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Borrowed:
        """What `as_json` made."""
        return cls(**{**told, "lenders": tuple(Lender(**one) for one in told["lenders"])})
