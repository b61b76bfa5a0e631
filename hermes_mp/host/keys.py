"""A key pair of CURVE in Z85, 40 characters each; made in lan.py by ZeroMQ, kept by pairings.py."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class KeyPair:
    """`public` is told to whom it may concern; `secret` is shown nowhere, not even in a traceback."""

    public: str
    secret: str = field(repr=False)
