"""Compute's end of the conversation, over a real socket: what it keeps goes when it is recalled, also between calls."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from hermes_mp.agents.computing import CALLER as COMPUTE
from hermes_mp.agents.supplying import LinkedSupply, listen
from hermes_mp.core.unitlist import UnitFile, UnitList, UnitSpec
from hermes_mp.host.arena import Arena
from hermes_mp.host.rundir import RunDirectory
from hermes_mp.host.wire import Hub, Link, Poller
from hermes_mp.messages import (
    AskUnit,
    ComputeStarted,
    Range,
    RecallUnit,
    Ticket,
    ToCompute,
    UnitDone,
    UnitNo,
    UnitReady,
)

DEADLINE_S = 20.0


@pytest.fixture
def hub() -> Iterator[Hub]:
    directory = RunDirectory.create()
    opened = Hub(directory.path)
    yield opened
    opened.close()
    directory.remove()


def hear(hub: Hub) -> object:
    """The next message of compute."""
    poller = Poller()
    poller.watch(hub)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        received = hub.receive()
        if received is not None:
            return received[1]
        poller.wait(0.1)
    raise AssertionError("compute says nothing")


def test_a_resident_that_is_recalled_goes_while_the_caller_is_idle(hub: Hub) -> None:
    spec = UnitSpec(4096, (Range(0, 0, 4096, 0),))
    with Arena.create(1 << 20) as arena:
        alive = os.pidfd_open(os.getpid())
        link: Link[ToCompute] = Link(hub.endpoint, COMPUTE, ToCompute, daemon_fd=alive)
        supply = LinkedSupply(link, arena, os.getpid())
        supply.use(UnitList((UnitFile("weights", 4096),), (spec,)))
        lock, closed = threading.RLock(), threading.Event()
        call = threading.Thread(target=supply.acquire, args=(0,))
        call.start()
        assert isinstance(hear(hub), ComputeStarted)
        assert hear(hub) == AskUnit(UnitNo(0), waiting=True)
        assert hub.send(COMPUTE, UnitReady(Ticket(1), UnitNo(0), 0, keep=True))
        call.join(DEADLINE_S)
        supply.release(0, True)
        listener = threading.Thread(target=listen, args=(supply, lock, closed))
        listener.start()
        assert hub.send(COMPUTE, RecallUnit(Ticket(1), UnitNo(0)))
        done = hear(hub)
        assert isinstance(done, UnitDone)
        assert (done.ticket, done.computed) == (1, True)
        closed.set()
        listener.join(DEADLINE_S)
        assert not listener.is_alive()
        supply.close()
        os.close(alive)


def test_who_waits_for_what_it_has_guessed_says_so_after_a_while(hub: Hub) -> None:
    """Else nobody would read again what could not be read ahead."""
    specs = tuple(UnitSpec(4096, (Range(0, 4096 * unit, 4096, 0),)) for unit in range(2))
    with Arena.create(1 << 20) as arena:
        alive = os.pidfd_open(os.getpid())
        link: Link[ToCompute] = Link(hub.endpoint, COMPUTE, ToCompute, daemon_fd=alive)
        supply = LinkedSupply(link, arena, os.getpid())
        supply.use(UnitList((UnitFile("weights", 8192),), specs))
        first = threading.Thread(target=supply.acquire, args=(0,))
        first.start()
        assert isinstance(hear(hub), ComputeStarted)
        assert hear(hub) == AskUnit(UnitNo(0), waiting=True)
        assert hub.send(COMPUTE, UnitReady(Ticket(1), UnitNo(0), 0))
        first.join(DEADLINE_S)
        assert hear(hub) == AskUnit(UnitNo(1), waiting=False)
        supply.release(0, True)
        assert isinstance(hear(hub), UnitDone)
        second = threading.Thread(target=supply.acquire, args=(1,))
        second.start()
        assert hear(hub) == AskUnit(UnitNo(1), waiting=True)
        assert hub.send(COMPUTE, UnitReady(Ticket(2), UnitNo(1), 0))
        second.join(DEADLINE_S)
        supply.release(1, True)
        supply.close()
        os.close(alive)
