"""Computing with all weights in memory, measured every round: what no streaming can be faster than."""

from __future__ import annotations

import statistics
from typing import Any

from hermes_mp.bench.board import Unavailable
from hermes_mp.bench.models import Model
from hermes_mp.bench.plan import Regime, Subject, Wanted
from hermes_mp.bench.process import WorkerLost, WorkerProcess, worker_settings, worker_words
from hermes_mp.host import environment, memory

AGAIN = 2  # passes after the first, of a model that makes no tokens
REFERENCES = 7  # computations that a per-reader rate is derived from


class Reference:
    """A resident model that no cap and no limit holds.

    It stays loaded where the machine has memory to spare, and is left out where it has too little.
    """

    def __init__(self, wanted: Wanted, model: Model) -> None:
        self._wanted, self._model = wanted, model
        self._worker: WorkerProcess | None = None
        self._loaded = False

    def measure(self) -> tuple[float | None, float | None]:
        """Seconds of a first pass and of one after it; None where the model cannot be held."""
        nbytes = self._model.facts.nbytes
        if not self._loaded and memory.available_nbytes() < 1.25 * nbytes:
            return None, None
        try:
            return self._measure()
        except WorkerLost:
            self.close()
            return None, None
        finally:
            if memory.available_nbytes() < 2 * nbytes:
                self._unload()  # a row may need that memory

    def _measure(self) -> tuple[float | None, float | None]:
        if self._worker is None:
            settings = worker_settings(self._wanted, self._model, Subject("resident"), Regime())
            self._worker = WorkerProcess(worker_words(settings | {"unmapped": True}))
            self._ask("open")
        if not self._loaded:
            self._ask("first")
            self._loaded = True
        first = self._ask("first")
        count = self._wanted.new_tokens if first["kind"] == "tokens" else AGAIN
        again = self._ask("steady", count)
        return first["seconds"] - first["load_s"], statistics.median(again["each"])

    def _ask(self, do: str, *arguments: object) -> dict[str, Any]:
        assert self._worker is not None
        answer = self._worker.ask(do, *arguments)
        if "failed" in answer:
            raise WorkerLost(answer["failed"])
        return answer

    def _unload(self) -> None:
        if self._worker is not None:
            try:
                self._ask("close")
            except WorkerLost:
                self.close()
        self._loaded = False

    def close(self) -> None:
        if self._worker is not None:
            self._worker.__exit__(None, None, None)
        self._worker, self._loaded = None, False

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def pipeline_s(wanted: Wanted, model: Model) -> float:
    """Seconds that `pipeline` computes once everything is loaded, of several first passes the median.

    Raises Unavailable where the model does not fit into memory.
    """
    if memory.available_nbytes() < 1.25 * model.facts.nbytes:
        raise Unavailable("the model does not fit into this machine's memory, so its computing time is not known")
    settings = worker_settings(wanted, model, Subject("pipeline", 1), Regime())
    with WorkerProcess(worker_words(settings), environment=environment.for_computing()) as running:

        def ask(order: str) -> dict[str, Any]:
            answer = running.ask(order)
            if "failed" in answer:
                raise Unavailable(f"pipeline cannot be timed: {answer['failed']}")
            return answer

        ask("open")
        ask("first")  # which loads
        return statistics.median([float(ask("first")["seconds"]) for _ in range(REFERENCES)])
