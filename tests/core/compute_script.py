"""What a simulated compute will do: passes over the units, whole ones in a calm seed, else with all that callers do."""

from __future__ import annotations

from random import Random

MS = 1_000_000
Step = tuple[str, int, int]


class Script:
    """The steps; a compute that is started again repeats them from the first on."""

    def __init__(self, rng: Random, units: int, read_ns: int, calm: bool) -> None:
        self._rng, self._units, self._read_ns = rng, units, read_ns
        self.steps: list[Step] = []
        self.full_passes = 0
        self.ever_more = False  # whether a pass was ever expected to follow
        passes = rng.randint(1, 4)
        always_off = rng.random() < 0.3
        for number in range(passes):
            more = not always_off and rng.random() < (0.9 if number + 1 < passes else 0.2)
            self.ever_more = self.ever_more or more
            self.steps += [("forecast", more, 0), ("start", 0, 0)]
            if calm or rng.random() < 0.4:
                self.full_passes += 1
                if not calm and rng.random() < 0.2:  # a wrong guess of how far the pass will go
                    self.steps[-2] = ("forecast", more, rng.randint(0, units))
                for unit in range(units):
                    self._use(unit)
            else:
                if rng.random() < 0.3:
                    self.steps[-2] = ("forecast", more, rng.randint(0, units))
                self._odd_pass()
            self.steps.append(("end", 0, 0))
            if rng.random() < 0.3:
                self.steps.append(("work", rng.randint(1, 30) * MS, 0))

    def _odd_pass(self) -> None:
        rng, units = self._rng, self._units
        first = 0 if rng.random() < 0.6 else rng.randrange(units)
        last = units if rng.random() < 0.5 else rng.randint(first, units)
        for unit in range(first, last):
            chance = rng.random()
            if chance < 0.08:  # skip
                continue
            if chance < 0.16:  # repeat
                self._use(unit)
            elif chance < 0.24:  # nested
                self._use(unit, depth=rng.randint(1, 3))
                continue
            elif chance < 0.30:  # an exception while bound
                self.steps += [("want", unit, 0), ("begin", unit, 0), ("work", MS, 0), ("raise", 0, 0)]
                return
            elif chance < 0.36:  # an interrupt while waiting
                self.steps.append(("want", unit, rng.randint(1, 5) * MS))
                return
            elif chance < 0.40:  # the exception comes before the unit is used
                self.steps.append(("want", unit, 0))
                return
            self._use(unit)

    def _use(self, unit: int, depth: int = 0) -> None:
        self.steps += [("want", unit, 0), ("begin", unit, 0), ("work", int(self._rng.random() * 3 * self._read_ns), 0)]
        if depth:
            self._use(self._rng.randrange(self._units), depth - 1)
        self.steps.append(("done", unit, 0))
