"""SIGKILL of any process of any board that shares a model, of the head's too, while it starts, works, waits or ends.

Now and then two at once, and a board's compute that only stands still. Boards are started again after a while, and join
at the next request of the same run. The head's own daemon is the run: all boards must be idle soon, for the next head.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaigns.bed import FORECASTS, LOSS, LOST_S, STALL_S, BedCampaign, Talk, figures, let_pass
from campaigns.common import PROMPTS, Failed, Record, bound, signalled

REQUESTS = 5  # of a run
TWICE = 0.15  # of the requests are hit twice
STARTING, BETWEEN = 0.15, 0.1  # of them before the answer has begun, or before it is asked for
END = 0.4  # of the runs by the death of the head's daemon
COMPUTES = 2  # of a board in a run: more restarts than that within a minute are given up
HEAD_STARTS_S = 20.0  # in which it hears nobody: its compute imports torch and builds the model
LONGEST_START_S, LONGEST_WAIT_S, LONGEST_ABSENCE_S = 5.0, 2.5, 2.0
GONE_S = 5.0
SPLITS = {
    2: ("head:2,{}:3,{}:3", "head:1,{}:1,{}:1,head:1,{}:2,{}:2", "{}:4,{}:3,head:1"), 3: ("head:2,{}:2,{}:2,{}:2",),
}  # fmt: skip
KINDS = ("board", "board", "board compute", "board loader", "board stopped", "head compute", "head loader")


@dataclass
class Fault:
    """What was done to whom, when, and what had been said by then."""

    role: str
    board: str
    at_s: float
    noted: int
    shown: int
    left: int  # boards, after it

    @property
    def pattern(self) -> str:
        """Of the line that names it."""
        if self.role in ("board", "board stopped"):
            return LOSS.format(self.board)
        if self.role == "board compute":
            return f"board {self.board}: .*(compute|its start)|{LOSS.format(self.board)}"
        if self.role == "board loader":
            return f"board {self.board}: loader|{LOSS.format(self.board)}"
        return r"compute \(epoch" if self.role == "head compute" else r"loader \d+ \(epoch|loader \d+ died|loader \d+"


class BoardKillCampaign(BedCampaign):
    name = "board-kill"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self.count = 2 + (seed % 2 == 0)

    def run(self, number: int) -> Iterator[Record]:
        self.measure()
        chance = self._draws.chance(number)
        names = self.boards.names
        split = chance.choice(SPLITS[len(names)])
        split = split.format(*(names * 2)[: split.count("{}")])
        self._computes = dict.fromkeys(("", *names), 0)
        asked: list[str] = []
        with self.launch(number, chance.randint(1, 2), split) as run:
            talk = Talk(run)
            for index in range(REQUESTS):
                faults: list[Fault] = []
                asked.append(chance.choice(PROMPTS))
                plan = [chance.choice(KINDS) for _ in range(1 + (chance.random() < TWICE))]
                draw = chance.random()
                if draw < BETWEEN and index:
                    faults += [one for kind in plan if (one := self._hit(talk, kind, chance)) is not None]
                    plan = []
                    let_pass(talk, chance.uniform(0, 0.2))
                talk.ask(asked[-1])
                if BETWEEN <= draw < BETWEEN + STARTING:
                    talk.watch(chance.uniform(0, LONGEST_START_S if index == 0 else 0.3))
                else:
                    talk.watch_text()
                    talk.watch(chance.uniform(0, LONGEST_WAIT_S))
                for kind in plan:
                    if not talk.answered and (fault := self._hit(talk, kind, chance)) is not None:
                        faults.append(fault)
                    talk.watch(chance.choice((0.0, 0.0, 0.3, 1.0)))
                self._revive_later(talk, chance)
                talk.finish()
                self.revive()
                for fault in faults:
                    yield self._judged(number, talk, fault, asked[-1], len(faults))
            if chance.random() < END:
                yield self._end(number, talk, chance)
                return
            ended = run.ended()
        self.check(ended, asked)
        yield self._draws.record(number, answers=len(asked), code=ended.code)

    def _hit(self, talk: Talk, kind: str, chance: random.Random) -> Fault | None:
        """None where there is nobody of that kind at the moment."""
        role, _, who = kind.partition(" ")
        names = [name for name in self.boards.names if self.boards.is_up(name)]
        board = chance.choice(names) if role == "board" and names else ""
        if role == "board" and not board:
            return None
        pid = self._victim(talk, board, who)
        if pid is None:
            return None
        if who in ("compute", "stopped"):
            if self._computes[board] == COMPUTES:
                return None
            self._computes[board] += 1
        left = len(names) - (who in ("", "stopped"))
        fault = Fault(kind, board, time.monotonic(), len(talk.run.err), len(talk.run.out) - talk.began, left)
        if not who:
            self.boards.kill(board)
        elif not signalled(pid, signal.SIGSTOP if who == "stopped" else signal.SIGKILL):
            return None
        return fault

    def _victim(self, talk: Talk, board: str, who: str) -> int | None:
        if not who:
            return self.boards.pid(board)
        found = self.boards.processes(board) if board else talk.run.processes()
        title = "hermes: compute" if who in ("compute", "stopped") else "hermes: loader"
        return next((pid for pid, one in found.items() if one.startswith(title)), None)

    def _revive_later(self, talk: Talk, chance: random.Random) -> None:
        """As systemd would."""
        missing = [name for name in self.boards.names if not self.boards.is_up(name)]
        if missing:
            let_pass(talk, chance.uniform(0.1, LONGEST_ABSENCE_S))
            for name in missing:
                self.boards.start(name)

    def _judged(self, number: int, talk: Talk, fault: Fault, prompt: str, faults: int) -> Record:
        """What came of it; raises Failed where it was noticed, or mended, too late."""
        record = self._draws.record(number, role=fault.role, board=fault.board, shown=fault.shown)
        since_s = max(fault.at_s, talk.asked_s)
        found_s = talk.found_s(fault.at_s, fault.noted, fault.pattern)
        if found_s is None:
            return {**record, "state": "not missed"}
        record["detected_s"] = round(found_s - since_s, 3)
        next_s = talk.next_s(found_s)
        limit_s = LOST_S + (STALL_S if fault.role == "board stopped" else 0)
        limit_s += HEAD_STARTS_S if not (fault.shown or talk.began) else 0
        if found_s - since_s > limit_s * self.patience:
            took = f"{fault.role} {fault.board} was missed after {found_s - since_s:.1f} s"
            raise Failed(f"{took}: {talk.run.err[-2000:]!r}")
        record["state"] = "starting" if not fault.shown else "answering"
        if next_s is not None:
            record["next_s"] = round(next_s - since_s, 3)
            if fault.role == "board" and faults == 1 and fault.shown > 0:
                record["forecast_s"] = round(self.forecast_s(fault.shown, prompt, fault.left), 3)
                most_s = record["bound_s"] = round(LOST_S + FORECASTS * record["forecast_s"], 3)
                if next_s - since_s > most_s * self.patience:
                    raise Failed(f"the next token came after {next_s - since_s:.1f} s, not {most_s:.1f}: {record}")
        return record

    def _end(self, number: int, talk: Talk, chance: random.Random) -> Record:
        """Of the head's daemon, and with it of all."""
        run = talk.run
        talk.ask(PROMPTS[0])
        talk.watch(chance.uniform(0, LONGEST_WAIT_S))
        signalled(run.pid)
        killed_s = time.monotonic()
        while run.processes():
            if time.monotonic() - killed_s > GONE_S:
                raise Failed(f"after {GONE_S:g} s there are still {run.processes()}")
            time.sleep(0.01)
        run.ended()
        self.check_boards(run.err)
        idle_s = round(time.monotonic() - killed_s, 3)
        return self._draws.record(number, role="head daemon", board="", state="answering", idle_s=idle_s, code=-9)

    def summary(self, records: list[Record]) -> Record:
        """By role, how soon they were missed, and when the next token came."""
        faults = [one for one in records if "role" in one]
        lost = [one for one in faults if one["role"] == "board"]
        late = [one for one in faults if "bound_s" in one]
        worst = max(late, key=lambda one: one["next_s"] / one["bound_s"], default=None)
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records), "failures": 0,
            "bound_95": bound(len(faults)),
            "by": dict(sorted(Counter(one["role"] for one in faults).items())),
            "not_missed": sum(one["state"] == "not missed" for one in faults),
            "board_detected_s": figures(one["detected_s"] for one in lost if "detected_s" in one),
            "detected_s": figures(one["detected_s"] for one in faults if "detected_s" in one),
            "next_s": figures(one["next_s"] for one in late),
            "nearest_its_bound": worst and {name: worst[name] for name in ("run", "next_s", "bound_s")},
            "any_next_s": figures(one["next_s"] for one in faults if "next_s" in one),
            "idle_s": figures(one["idle_s"] for one in faults if "idle_s" in one),
            "s_per_token": {str(boards): round(rate, 4) for boards, rate in self.rates.items()},
        }  # fmt: skip
