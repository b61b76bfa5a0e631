"""Trouble on the link of a board that shares a model: cut, slow, lossy, or one way only, for seconds or for ever.

Either the run goes on, or the board is left out within 6 s and named, and no other; the answer is always the right one.
Some heads have too little memory to go on alone: these end with an error, and that names the board.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaigns.bed import FORECASTS, LOSS, LOST_S, BedCampaign, Talk, figures, let_pass
from campaigns.common import PROMPTS, Failed, Record, bound
from launching import Launch

REQUESTS = 4  # of a run
FOR_EVER = 0.35  # of the troubles last until the answer is there
BETWEEN = 0.15  # of them begin before the request
ALONE = 4  # one of so many runs has one other board only, and every other of them too little memory without it
LONGEST_WAIT_S, LONGEST_S, SHORTEST_S = 1.5, 8.0, 1.0
SOON_S = 0.3  # after the first text: with one link only an answer takes little more than a second
ENDS_S = 15.0  # a run whose board is not reached
ROWS = 64  # for which a head that is alone reserves memory: each 8 layers x 64 positions x 4 KiB
LESS_MIB = 48  # than it needs alone
CUTS = (("cut",), ("half-open", "in"), ("half-open", "out"))


@dataclass
class Trouble:
    """What was done to whose link, when and for how long (None: for ever), and what had been said by then."""

    what: tuple[str, ...]
    board: str
    seconds: float | None
    at_s: float = 0.0
    noted: int = 0
    shown: int = 0


class LinkCampaign(BedCampaign):
    name = "link"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._least_mib = 0

    def run(self, number: int) -> Iterator[Record]:
        self.measure()
        chance = self._draws.chance(number)
        if number % ALONE == 1:
            yield from self._with_one(number, chance)
            return
        asked: list[str] = []
        with self.launch(number, 1) as run:
            talk = Talk(run)
            for index in range(REQUESTS):
                asked.append(chance.choice(PROMPTS))
                trouble = drawn(chance, self.boards.names)
                early = bool(index) and chance.random() < BETWEEN
                if early:
                    self._begin(talk, trouble)
                    let_pass(talk, chance.uniform(0, 1))
                talk.ask(asked[-1])
                if not early:
                    talk.watch_text()
                    talk.watch(chance.uniform(0, LONGEST_WAIT_S))
                    self._begin(talk, trouble)
                self._last(talk, trouble)
                yield self._judged(number, talk, trouble, asked[-1], early)
            ended = run.ended()
        self.check(ended, asked)
        yield self._draws.record(number, answers=len(asked), code=ended.code)

    def _begin(self, talk: Talk, trouble: Trouble) -> None:
        trouble.noted, trouble.shown = len(talk.run.err), len(talk.run.out) - talk.began
        self.bed.link(trouble.board, *trouble.what)
        trouble.at_s = time.monotonic()

    def _last(self, talk: Talk, trouble: Trouble) -> None:
        """As long as it shall, or until there is an answer."""
        talk.watch(trouble.seconds if trouble.seconds is not None else float("inf"))
        self.bed.link(trouble.board, "restore")
        talk.finish()

    def _judged(self, number: int, talk: Talk, trouble: Trouble, prompt: str, early: bool) -> Record:
        record = self._recorded(number, trouble)
        since_s = max(trouble.at_s, talk.asked_s)
        self._check_others(talk, trouble)
        found_s = talk.found_s(trouble.at_s, trouble.noted, LOSS.format(trouble.board))
        if found_s is None:
            lasted_s = talk.said[-1][0] - since_s
            if trouble.what in CUTS and min(lasted_s, trouble.seconds or lasted_s) > LOST_S * self.patience:
                raise Failed(f"{record} was not missed: {talk.run.err[-2000:]!r}")
            return {**record, "state": "went on", "answered_s": round(lasted_s, 3)}
        record |= {"state": "left out", "detected_s": round(found_s - since_s, 3)}
        if trouble.what in CUTS and found_s - since_s > LOST_S * self.patience:
            raise Failed(f"{record}: missed too late: {talk.run.err[-2000:]!r}")
        next_s = talk.next_s(found_s)
        if next_s is not None:
            record["next_s"] = round(next_s - since_s, 3)
            if not early and trouble.shown > 0 and trouble.what in CUTS:
                record["forecast_s"] = round(self.forecast_s(trouble.shown, prompt, len(self.boards.names) - 1), 3)
                most_s = record["bound_s"] = round(LOST_S + FORECASTS * record["forecast_s"], 3)
                if next_s - since_s > most_s * self.patience:
                    raise Failed(f"the next token came after {next_s - since_s:.1f} s, not {most_s:.1f}: {record}")
        return record

    def _recorded(self, number: int, trouble: Trouble) -> Record:
        what, seconds = " ".join(trouble.what), trouble.seconds
        lasts = None if seconds is None else round(seconds, 2)
        facts = {"role": "link", "board": trouble.board, "what": what, "seconds": lasts, "shown": trouble.shown}
        return self._draws.record(number, **facts)

    def _check_others(self, talk: Talk, trouble: Trouble) -> None:
        """No board is said to be lost that was reached all the time."""
        for name in self.boards.names:
            if name != trouble.board and re.search(LOSS.format(name), talk.run.err[trouble.noted :]):
                raise Failed(f"{name} was left out, not {trouble}: {talk.run.err[-2000:]!r}")

    # --- a head that has one other board

    def _with_one(self, number: int, chance: random.Random) -> Iterator[Record]:
        board = chance.choice(self.boards.names)
        tight = number // ALONE % 2 == 0
        words: list[object] = ["--batch", ROWS, "--context", 64]
        if tight:
            words += ["--memory", f"{self._least() - LESS_MIB}MiB"]
        trouble = Trouble(chance.choice(CUTS), board, None)
        prompt = chance.choice(PROMPTS)
        with self.launch(number, 1, f"head:1,{board}:7", *words, boards=[board]) as run:
            talk = Talk(run)
            talk.ask(prompt)
            talk.watch_text()
            talk.watch(chance.uniform(0, SOON_S))
            self._begin(talk, trouble)
            record = self._recorded(number, trouble)
            if tight:
                yield self._ended(record, talk, trouble)
                return
            self._last(talk, trouble)
            found_s = talk.found_s(trouble.at_s, trouble.noted, LOSS.format(board))
            if found_s is not None and found_s - trouble.at_s > LOST_S * self.patience:
                raise Failed(f"{record}: missed after {found_s - trouble.at_s:.1f} s: {run.err[-2000:]!r}")
            ended = run.ended()
        self.check(ended, [prompt])
        found = {} if found_s is None else {"detected_s": round(found_s - trouble.at_s, 3)}
        yield {**record, "state": "alone", "code": ended.code, **found}

    def _ended(self, record: Record, talk: Talk, trouble: Trouble) -> Record:
        """In order, with an error that names the board."""
        run = talk.run
        while run.is_running and not talk.answered and time.monotonic() - trouble.at_s < ENDS_S * self.patience:
            run._pump(0.05)
        took_s = time.monotonic() - trouble.at_s
        self.bed.link(trouble.board, "restore")
        if took_s > ENDS_S * self.patience:
            raise Failed(f"{record} has not ended after {took_s:.1f} s: {run.err[-2000:]!r}")
        ended = run.ended()
        whole = self._ground.answers
        if ended.code == 0 and ended.out.rstrip("\n") in whole.values():
            return {**record, "state": "went on", "code": 0}
        last = ended.err.strip().splitlines()[-1]
        if ended.code not in (16, 45) or trouble.board not in last or "Traceback" in ended.err:
            raise Failed(f"{record}: ended with {ended.code}: {ended.err[-2000:]!r}")
        self.check_boards(ended.err)
        return {**record, "state": "error", "code": ended.code, "ended_s": round(took_s, 3)}

    def _least(self) -> int:
        """What a head needs alone, in MiB; it says so itself."""
        if not self._least_mib:
            words: list[object] = [*self._ground.words(1), "--batch", ROWS, "--context", 64, "--memory", "100MiB"]
            with Launch(self._draws.home(-2), *words, "--prompt", PROMPTS[0]) as run:
                said = run.ended().err
            found = re.findall(r"([\d.]+) (MiB|GiB)", said.strip().splitlines()[-1])
            sizes = [float(size) * (1024 if unit == "GiB" else 1) for size, unit in found]
            if not sizes:
                raise Failed(f"nothing is said of what would be enough: {said!r}")
            self._least_mib = round(max(sizes))
        return self._least_mib

    def summary(self, records: list[Record]) -> Record:
        """By what was done and what came of it."""
        faults = [one for one in records if "role" in one]
        lost = [one for one in faults if one["what"].split()[0] in ("cut", "half-open") and "detected_s" in one]
        late = [one for one in faults if "bound_s" in one]
        by: dict[str, dict[str, int]] = {}
        for one in faults:
            states = by.setdefault(one["what"].split()[0], {})
            states[one["state"]] = states.get(one["state"], 0) + 1
        worst = max(late, key=lambda one: one["next_s"] / one["bound_s"], default=None)
        return {
            "faults": len(faults), "runs": sum("code" in one for one in records), "failures": 0,
            "bound_95": bound(len(faults)), "by": by,
            "detected_s": figures(one["detected_s"] for one in lost),
            "next_s": figures(one["next_s"] for one in late),
            "nearest_its_bound": worst and {name: worst[name] for name in ("run", "next_s", "bound_s")},
            "ended_s": figures(one["ended_s"] for one in faults if "ended_s" in one),
            "s_per_token": {str(boards): round(rate, 4) for boards, rate in self.rates.items()},
        }  # fmt: skip


def drawn(chance: random.Random, boards: list[str]) -> Trouble:
    """What is only slow must leave a request that ends."""
    seconds = None if chance.random() < FOR_EVER else chance.uniform(SHORTEST_S, LONGEST_S)
    slow = (
        ("delay", str(chance.randint(50, 2000 if seconds else 150))), ("rate", f"{chance.randint(1, 10)}mbit"),
        ("loss", str(chance.randint(1, 20))),
    )  # fmt: skip
    return Trouble(chance.choice((*CUTS, *slow)), chance.choice(boards), seconds)
