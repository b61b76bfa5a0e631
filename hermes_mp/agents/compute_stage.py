"""The compute process of a board's stage: runs the layers that a head asks for, on bundles in memory shared with the
board's daemon, and describes other units whenever other layers are assigned.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hermes_mp.agents.compute_model import Opened, open_model
from hermes_mp.agents.stage_costs import StageCosts
from hermes_mp.agents.supplying import LinkedSupply
from hermes_mp.core.bundle import aligned, place
from hermes_mp.errors import BadMessage, CallTooLarge, HermesError, InvariantBroken, OutOfMemory
from hermes_mp.host.arena import Arena
from hermes_mp.host.wire import Link
from hermes_mp.messages import (
    AssignLayers,
    LayersFailed,
    LayersRun,
    RunLayers,
    RunRequest,
    StopCompute,
    ToCompute,
    clip,
)


class StageCompute:
    """`settings` as the daemon gives them, with the descriptor of the exchange."""

    def __init__(self, settings: dict[str, Any], link: Link[ToCompute], supply: LinkedSupply) -> None:
        self._settings, self._link, self._supply = settings, link, supply
        self._exchange = Arena.attach(settings["exchange_fd"])

    def run(self) -> None:
        """Until the daemon stops it."""
        opened = open_model(self._settings, self._supply, early=False, cut=True)
        from hermes_mp.models.stage import Stage
        from hermes_mp.models.units import units_of

        assert opened.chain is not None
        division, layers = opened.made.division, opened.chain.layers
        stage = Stage(
            opened.model, opened.chain, lambda layer: units_of(division, layers[layer]), lambda: self._supply.stalled_ns
        )
        base = opened.settle()
        costs = StageCosts(opened, self._settings)
        self._link.send(costs.measured(base))
        self._supply.say("waiting for its layers")
        while True:
            asked = self._supply.next_request()
            if isinstance(asked, StopCompute):
                costs.keep()
                return
            if isinstance(asked, AssignLayers):
                stage.assign(asked.stretches)
                costs.assigned(asked)
                self._describe(opened, asked, base)
            elif isinstance(asked, RunLayers):
                answer = self._answer(stage, asked)
                costs.ran(asked, answer)
                self._link.send(answer)
            elif isinstance(asked, RunRequest):
                raise InvariantBroken("a stage answers no requests")

    def _describe(self, opened: Opened, asked: AssignLayers, base: int) -> None:
        from hermes_mp.models.stage_costs import states_nbytes
        from hermes_mp.models.units import units_of

        chain, traced = opened.chain, opened.traced
        assert chain is not None
        own = [layer for one in asked.stretches for layer in range(one.first, one.last)]
        others = [layer for layer in range(len(chain.layers)) if layer not in set(own)]
        opened.footprint = opened.made.footprint.without(traced.kv_nbytes(others), logits=False)
        units = [unit for layer in own for unit in units_of(opened.made.division, chain.layers[layer])]
        self._supply.assign(units)
        plan = replace(opened.plan, window=asked.window)
        self._supply.describe(base, opened.footprint.reserve_nbytes + states_nbytes(traced), 0, plan)

    def _answer(self, stage: Any, asked: RunLayers) -> LayersRun | LayersFailed:
        from hermes_mp.models.layer_calls import spec_of

        def failed(error: HermesError) -> LayersFailed:
            return LayersFailed(asked.epoch, asked.number, asked.index, error.exit_code, clip(str(error)))

        try:
            placed = place(asked.bundle)
            states, took_ns, stalled_ns = stage.run(asked, placed, self._exchange.view(0, placed[-1].end))
            out = place([spec_of(one) for one in states], aligned(placed[-1].end))
            for one, where in zip(states, out, strict=True):
                self._write(one, where.at, where.nbytes)
            specs = tuple(one.spec for one in out)
            return LayersRun(asked.epoch, asked.number, asked.index, specs, took_ns, stalled_ns)
        except (BadMessage, CallTooLarge) as error:
            return failed(error)
        except HermesError as error:
            why = self._supply.files.explain(error)
            if why is not error:
                raise why from error  # nothing else can be answered either
            return failed(error)
        except (MemoryError, RuntimeError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                return failed(OutOfMemory("no memory for the activations of its layers"))
            return failed(BadMessage(f"its layers cannot be run on what came: {type(error).__name__}: {error}"))

    def _write(self, states: Any, at: int, nbytes: int) -> None:
        from hermes_mp.models.binding import byte_view

        self._exchange.view(at, nbytes)[:] = byte_view(states.contiguous())
