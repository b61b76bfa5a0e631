"""System calls of ours that fail: every place where hermes_mp makes one, with every errno that can come there.

The places are those that runs without a fault come by (`shim/failing_calls.py`): first runs, with nothing cached,
later ones, and a caller of `hermes_mp.load`, with two loaders. A fault is a place, an errno (or
a read that ends early), the call from which on it fails, and whether it does so once or for good. The run answers
as if nothing had been, or ends with a documented exit code and a line that says why.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaigns.common import PROMPTS, Campaign, Failed, Record, bound
from campaigns.shim.failing_calls import CALLS, SHORT
from launching import LAUNCH, Ended, Launch

SHIM = Path(__file__).resolve().parent / "shim"
ROOT = SHIM.parents[2]
HANG_S = 10.0  # in which it says nothing, and takes next to no processor time
IDLE_TICKS = 30  # in HANG_S: a daemon that only looks whether there is something to do takes some
LONGEST_S = 150.0
ONCE = 0.5  # of the faults happen once, the others for good
# What each function may say by its man page. Not EINTR: Python and pyzmq ask again before we hear of it (PEP 475);
# only libc's own functions, called by ctypes, hand it to us.
ERRNOS = {
    "preadv": ("EIO", "ENOMEM", "EINVAL", "ESTALE", "ENXIO", "EAGAIN"),
    "pread": ("EIO", "ENOMEM", "EINVAL", "ESTALE", "ENXIO", "EAGAIN"),
    "read": ("EIO", "ENOMEM", "EINVAL", "ESTALE", "ESRCH", "EAGAIN"),
    "open": ("EIO", "ENOMEM", "EMFILE", "ENFILE", "EACCES", "ENOENT"),
    "fstat": ("EIO", "ENOMEM", "EACCES", "ESTALE", "EOVERFLOW", "ENOSYS"),
    "memfd_create": ("ENOMEM", "EMFILE", "ENFILE", "EPERM", "EACCES", "ENOSYS"),
    "posix_fallocate": ("ENOSPC", "ENOMEM", "EIO", "EPERM", "EFBIG", "EOPNOTSUPP"),
    "fallocate": ("ENOSPC", "ENOMEM", "EIO", "EPERM", "EOPNOTSUPP", "EINTR"),
    "madvise": ("ENOMEM", "EAGAIN", "EBUSY", "EINVAL", "EPERM", "EINTR"),
    "mmap": ("ENOMEM", "EAGAIN", "EACCES", "EPERM", "ENFILE", "EINVAL"),
    "send": ("EAGAIN", "EHOSTUNREACH", "ENOMEM", "ENOBUFS", "EIO", "ENOTSOCK"),
    "recv": ("EAGAIN", "EHOSTUNREACH", "ENOMEM", "ENOBUFS", "EIO", "ENOTSOCK"),
    "spawn": ("EAGAIN", "ENOMEM", "EMFILE", "ENFILE", "EACCES", "E2BIG"),
}
READS = ("preadv", "pread", "read")
# A socket that was said to be ready is; that a peer is gone for good its pidfd says.
NOT_FOR_GOOD = {"EAGAIN": ("send", "recv", "read", "preadv", "pread"), "EHOSTUNREACH": ("send",)}
NOT_AN_ERROR = ("0", "1", "70", "129")


@dataclass(frozen=True)
class Fault:
    """`calls`: so many came by that place in one process, or some more."""

    kind: str
    site: str
    calls: int
    how: str


class Stillness:
    """Of a run: whether it has done nothing for HANG_S."""

    def __init__(self) -> None:
        self._ticks: dict[int, int] = {}
        self._since_s, self._mark = 0.0, (0, 0)
        self._looked_s = 0.0

    def look(self, run: Launch) -> bool:
        if run.now_s < self._looked_s + 1:
            return False
        self._looked_s = run.now_s
        for pid in run.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._ticks[pid] = int(words[11]) + int(words[12])
        ticks, nbytes = sum(self._ticks.values()), len(run.out) + len(run.err)
        if nbytes != self._mark[1] or ticks > self._mark[0] + IDLE_TICKS:
            self._since_s, self._mark = run.now_s, (ticks, nbytes)
        return run.now_s > self._since_s + HANG_S or run.now_s > LONGEST_S


class CallsCampaign(Campaign):
    name = "calls"

    def __init__(self, model: Path, folder: Path, seed: int) -> None:
        super().__init__(model, folder, seed)
        self._model, self._folder = model, folder
        self._codes = documented_codes()
        self._whole: dict[str, str] = {}  # answers, by the kind of run
        sites: dict[str, tuple[str, int]] = {}
        for kind in ("first", "again", "api"):
            for site, calls in self._record(kind).items():
                sites.setdefault(site, (kind, calls))
        self.sites = len(sites)
        self.faults = {
            number_of(f"{seed}/{site}/{how}"): Fault(kind, site, calls, how)
            for site, (kind, calls) in sites.items()
            for how in ERRNOS[site.split()[1]] + (SHORT,) * (site.split()[1] in READS)
        }

    def numbers(self) -> Iterator[int]:
        """Every place once, then once more, and so on. A fault keeps its number: not all runs come by all places."""
        seen: Counter[str] = Counter()
        turns = []
        for number in sorted(self.faults):
            site = self.faults[number].site
            turns.append((seen[site], number))
            seen[site] += 1
        return iter([number for _, number in sorted(turns)])

    def run(self, number: int) -> Iterator[Record]:
        """A fault that the run did not come by is tried again at the first call; a place may be one of some runs."""
        ground, fault = self._ground, self.faults[number]
        chance = ground.chance(number)
        function = fault.site.split()[1]
        for first in (chance.randint(1, min(64, fault.calls)), 1):
            for_good = chance.random() >= ONCE and function not in NOT_FOR_GOOD.get(fault.how, ())
            home = ground.home(number).with_name(f"calls-{number}-{first}-{for_good}")
            fired = home.with_suffix(".fired")
            how = fault.how if fault.how == SHORT else getattr(errno, fault.how)
            plan = {"site": fault.site, "how": how, "first": first, "forever": for_good, "fired": str(fired)}
            started_s = time.monotonic()
            try:
                ended = self._launch(fault.kind, home, plan)
                self._check(ended, fault.kind)
            except AssertionError as failure:
                raise Failed(f"{fault}, {'for good' if for_good else 'once'} from call {first} on: {failure}") from None
            if fired.exists():
                break
        facts = {"site": fault.site, "kind": fault.kind, "how": fault.how, "first": first, "for_good": for_good}
        seconds = round(time.monotonic() - started_s, 2)
        if fired.exists():
            yield ground.record(number, role=fault.site.split()[0], **facts, line=cause(ended))
        yield ground.record(number, code=ended.code, seconds=seconds)

    def summary(self, records: list[Record]) -> Record:
        """How the runs with a fault ended, by exit code."""
        faults = {one["run"]: one for one in records if "role" in one}
        ends = {one["run"]: one for one in records if "code" in one}
        codes = Counter(ends[number]["code"] for number in faults)
        functions = Counter(one["site"].split()[1] for one in faults.values())
        return {
            "faults": len(faults), "runs": len(ends), "sites": self.sites,
            "sites_hit": len({one["site"] for one in faults.values()}), "by": dict(sorted(functions.items())),
            "codes": {str(code): count for code, count in sorted(codes.items())},
            "seconds": {"most": max((one["seconds"] for one in ends.values()), default=0)},
            "bound_95": bound(len(faults)),
        }  # fmt: skip

    def _record(self, kind: str) -> dict[str, int]:
        """The places that a run of this kind comes by, and how often in one process, by powers of two."""
        home = self._folder / f"calls-{kind}"
        record = home.with_suffix(".sites")
        ended = self._launch(kind, home, {"record": str(record)})
        self._whole[kind] = ended.out
        assert ended.code == 0, f"{kind} without a fault: {ended.err[-2000:]!r}"
        found: dict[str, int] = {}
        for line in record.read_text().splitlines():
            site, _, count = line.rpartition(" ")
            found[site] = max(found.get(site, 0), int(count))
        if kind != "api":
            assert ended.out == self._ground.answers[PROMPTS[0]] + "\n"
        return found

    def _launch(self, kind: str, home: Path, plan: dict[str, object]) -> Ended:
        cache = home.with_suffix(".cache")
        if kind != "first":
            shutil.copytree(self._folder / "calls-first.cache", cache)
        environment = {
            "PYTHONPATH": f"{SHIM}:{ROOT}", "XDG_CACHE_HOME": str(cache), CALLS: json.dumps(plan),
        }  # fmt: skip
        words = (*self._ground.words(2), "--memory", "400MiB", "--prompt", PROMPTS[0])
        program = LAUNCH
        if kind == "api":
            words, program = (self._model,), (sys.executable, str(SHIM / "caller.py"))
        with Launch(home, *words, env=environment, program=program) as run:
            still = Stillness()
            run.wait_for(lambda run: still.look(run) or not run.is_running)
            if run.is_running:
                raise Failed(f"hangs after {run.now_s:.0f} s: {run.processes()} {run.out!r} {run.err[-2000:]!r}")
            ended = run.ended()
        left = [name for name in os.listdir(os.environ["XDG_RUNTIME_DIR"]) if name.startswith("hermes-mp-")]
        if left:
            for name in left:
                shutil.rmtree(Path(os.environ["XDG_RUNTIME_DIR"]) / name)
            raise Failed(f"left behind: {left}, ended with {ended.code}: {ended.err[-2000:]!r}")
        return ended

    def _check(self, ended: Ended, kind: str) -> None:
        """The same answer, or a part of it and the reason why."""
        whole = self._whole[kind]
        if "Traceback" in ended.err:
            raise Failed(f"a traceback, exit code {ended.code}: {ended.err[-3000:]}")
        if ended.code == 0:
            if ended.out != whole:
                raise Failed(f"answered {ended.out!r}, not {whole!r}: {ended.err[-2000:]!r}")
        elif str(ended.code) not in self._codes:
            raise Failed(f"ended with {ended.code}: {ended.err[-2000:]!r}")
        elif not cause(ended):
            raise Failed(f"ended with {ended.code} and no word why: {ended.err[-2000:]!r}")
        elif not whole.startswith(ended.out.rstrip("\n\ufffd")):  # the end of a line, or a part of a character
            raise Failed(f"began to answer {ended.out!r}, not {whole!r}")


def number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def cause(ended: Ended) -> str:
    """The last line that is ours."""
    found = re.findall(r"^(?:hermes-launch|caller): (.*)$", ended.err, re.MULTILINE)
    return found[-1] if found and ended.code else ""


def documented_codes() -> set[str]:
    """Those that an error may have, but for bugs."""
    table = (ROOT / "docs" / "exit-codes.md").read_text()
    return set(re.findall(r"^\| (\d+) \|", table, re.MULTILINE)) - set(NOT_AN_ERROR)
