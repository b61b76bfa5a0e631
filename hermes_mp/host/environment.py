"""The variables that a process which computes is started with: its libraries read them once, when they are loaded."""

from __future__ import annotations

import os

from hermes_mp.host import malloc

# libgomp's threads spin for 300,000 turns (5 ms and more, a `pause` each) before they sleep. While compute waits for a
# unit that is a core which loaders and daemon want, for nothing. A tenth of it still spans the gaps between operations.
# On others than x86-64 a turn takes next to no time.
SPINS = "GOMP_SPINCOUNT"
SPIN_COUNT = 30_000
WAITING = (SPINS, "OMP_WAIT_POLICY")  # by which a user says it differently


def for_computing() -> dict[str, str]:
    """Our own environment and these; what the user set wins."""
    found = {**os.environ, malloc.VARIABLE: malloc.tunables()}
    if os.uname().machine == "x86_64" and not any(name in os.environ for name in WAITING):
        found[SPINS] = str(SPIN_COUNT)
    return found
