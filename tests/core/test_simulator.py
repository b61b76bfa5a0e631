"""10,000 seeds of the joined states; a failing seed names itself, and `python tests/core/simulator.py` runs more."""

from __future__ import annotations

import inspect
from typing import get_args

from simulator import run_seed
from transitions import ACTIONS, EVENTS, MOVES, TO_COMPUTE, Tally

from hermes_mp.core import leasing, pipeload
from hermes_mp.core.pipeload_words import Event
from hermes_mp.core.slots import Slots


def test_every_seed_finishes_with_the_right_weights_and_they_take_every_transition() -> None:
    """Otherwise it could pass because nothing ever happens."""
    taken, calm = Tally(), 0
    for seed in range(10_000):
        simulation = run_seed(seed)
        taken.counts.update(simulation.tally.counts)
        calm += simulation.calm
    assert not taken.unlisted()
    assert not taken.never_taken()
    assert 1000 < calm < 5000


def test_every_kind_of_event_action_and_move_is_in_the_tables() -> None:
    assert set(EVENTS) == set(get_args(Event))
    assert set(ACTIONS) == set(get_args(pipeload.Action))
    handled = inspect.signature(leasing.Leasing.handle, eval_str=True).parameters["message"].annotation
    assert set(TO_COMPUTE) == set(get_args(handled))
    moves = {name for name, _ in inspect.getmembers(Slots, inspect.isfunction) if not name.startswith("_")}
    assert set(MOVES) == moves - {"check", "bytes_unused"}
