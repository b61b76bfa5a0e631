"""A neighbour in the same memory cgroup grows by 30 % of what a run uses, then leaves, while 64 tokens are generated.

    python benchmarks/squeeze.py --models bench-models [--mib 2000] [--trace squeeze.json]

Root and cgroup v1. The run comes twice in a cgroup of that size, undisturbed and squeezed. It passes when the tokens
are the same, nothing is OOM-killed, residents leave within a second of free memory falling under the reserve, and
they return later; all of that is read from the squeezed run's trace.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermes_mp.bench.board import Unavailable, drop_caches, memory_limit, undo_when_ended

STEP_NBYTES = 16 << 20
SHARE = 0.30
FIRST_PASSES, SETTLED_S = 6, 3.0  # of the run, and how long its slots have been the same, before the neighbour comes
LEAVE_S = 1.0
PROMPT = ",".join(str(1000 + 97 * at) for at in range(16))

NEIGHBOUR = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(b"x" * int(sys.argv[2]))
    time.sleep(float(sys.argv[3]))
time.sleep(float(sys.argv[4]))
"""


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="made by make_models.py")
    parser.add_argument("--model", default="llama-3.2-1b")
    parser.add_argument("--mib", type=int, default=2000, help="the size of the cgroup")
    parser.add_argument("--memory", default="auto", help="as of hermes-launch")
    parser.add_argument("--loaders", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--step-s", type=float, default=0.1, help="between two steps of the neighbour, 16 MiB each")
    parser.add_argument("--stay-s", type=float, default=2.0, help="how long it stays once it has grown")
    parser.add_argument("--trace", type=Path, help="keep the squeezed run's trace here")
    options = parser.parse_args()
    try:
        alone = run(options, None)
        with tempfile.TemporaryDirectory() as folder:
            trace = options.trace or Path(folder) / "trace.json"
            squeezed = run(options, trace)
            found = timeline(trace, squeezed["object"]["report"]["memory"]["reserve_nbytes"])
    except Unavailable as error:
        sys.exit(str(error))
    sys.exit(judge(alone, squeezed, found))


def run(options: argparse.Namespace, trace: Path | None) -> dict[str, Any]:
    """One run in a cgroup of its own; with a trace also the neighbour, who comes when the run has got going."""
    words = [
        "--model", str(options.models / options.model), "--token-ids", PROMPT, "--max-new-tokens", str(options.tokens),
        "--loaders", str(options.loaders), "--memory", options.memory, "--context", "128", "--json",
    ]  # fmt: skip
    if trace is not None:
        trace.unlink(missing_ok=True)  # of an earlier run: how far this one is, is read from it
        words += ["--trace", str(trace)]
    drop_caches()
    with memory_limit(options.mib << 20) as group:
        folder = group.folder
        command = [sys.executable, "-m", "hermes_mp.cli.launch", *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=lambda: enter(folder)) as process:
            grown = 0
            if trace is not None and get_going(trace, process):
                steps = int(SHARE * usage_nbytes(folder)) // STEP_NBYTES
                with neighbour(folder, steps, options) as other:
                    until(lambda: other.poll() is not None, process)
                grown = steps * STEP_NBYTES
            output, _ = process.communicate()
        kills = dict(line.split() for line in (folder / "memory.oom_control").read_text().splitlines())["oom_kill"]
    return {"object": json.loads(output), "grown": grown, "kills": int(kills), "exit": process.returncode}


def enter(folder: Path) -> None:
    (folder / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def neighbour(folder: Path, steps: int, options: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    numbers = (steps, STEP_NBYTES, options.step_s, options.stay_s)
    command = [sys.executable, "-c", NEIGHBOUR, *map(str, numbers)]
    with subprocess.Popen(command, preexec_fn=lambda: enter(folder)) as process:
        yield process


def until(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Whether it came true while the process ran."""
    while process.poll() is None:
        if what():
            return True
        time.sleep(0.05)
    return False


def usage_nbytes(folder: Path) -> int:
    return int((folder / "memory.usage_in_bytes").read_text())


def get_going(trace: Path, process: subprocess.Popen[bytes]) -> bool:
    """Wait for some passes, and until all slots have their memory: until then the trace shows more and more of them."""
    last, since = -1, time.monotonic()

    def settled() -> bool:
        nonlocal last, since
        counts = [slot_count(json.loads(line.rstrip(",\n"))) for line in lines(trace, "slots")[-1:]]
        if counts and counts[0] != last:
            last, since = counts[0], time.monotonic()
        return time.monotonic() - since >= SETTLED_S and len(lines(trace, "pass")) >= FIRST_PASSES

    return until(settled, process)


def lines(trace: Path, name: str) -> list[str]:
    """Those of that event, complete ones."""
    text = trace.read_text() if trace.exists() else ""
    return [line for line in text.splitlines(keepends=True) if f'"name":"{name}"' in line and line.endswith("\n")]


def slot_count(event: dict[str, Any]) -> int:
    return sum(event["args"].values())


def timeline(trace: Path, reserve_nbytes: int) -> dict[str, Any]:
    """Seconds of the run at which what mattered happened, and the slots there were."""
    events = json.loads(trace.read_text())

    def of(name: str) -> list[dict[str, Any]]:
        return sorted((event for event in events if event["name"] == name), key=lambda event: event["ts"])

    free = [(event["ts"] / 1e6, event["args"]["MiB"]) for event in of("free memory")]
    slots = [(event["ts"] / 1e6, slot_count(event)) for event in of("slots")]
    most = max(count for _, count in slots)
    full_s = next(at for at, count in slots if count == most)
    short_s = next((at for at, mib in free if at > full_s and mib < reserve_nbytes / 2**20), None)
    found: dict[str, Any] = {"slots": most, "short": short_s, "least free": min(mib for at, mib in free if at > full_s)}
    if short_s is None:
        return found
    least = min(count for at, count in slots if at >= short_s)
    found["fewest"] = least
    found["gone"] = next((at for at, count in slots if at > short_s and count < most), None)
    found["returns"] = next((event["ts"] / 1e6 for event in of("residents return")), None)
    found["last"] = slots[-1][1]
    found["end"] = free[-1][0]
    below_since = None
    found["longest below"] = 0.0
    for at, mib in free:
        if at < short_s:
            continue
        if mib >= reserve_nbytes / 2**20:
            below_since = None
        else:
            below_since = at if below_since is None else below_since
            found["longest below"] = max(found["longest below"], at - below_since)
    return found


def judge(alone: dict[str, Any], squeezed: dict[str, Any], found: dict[str, Any]) -> int:
    """Print it; the exit code."""
    report, memory = squeezed["object"]["report"], squeezed["object"]["report"]["memory"]
    same = [one["token_ids"] for one in alone["object"]["answers"]] == [
        one["token_ids"] for one in squeezed["object"]["answers"]
    ]
    gone = found.get("gone")
    if not squeezed["grown"]:
        print("the run ended before the neighbour could come: more --tokens")
    in_time = gone is not None and gone - found["short"] <= LEAVE_S
    returned = found.get("returns") is not None and found["last"] > found["fewest"]
    print(
        f"budget {memory['budget_nbytes'] >> 20} MiB, reserve {memory['reserve_nbytes'] >> 20} MiB, "
        f"{found['slots']} slots of {report['slot_nbytes'] / 2**20:.0f} MiB; the neighbour took "
        f"{squeezed['grown'] >> 20} MiB"
    )
    if gone is not None:
        print(
            f"{found['short']:.2f} s: free memory under the reserve; slots were given back {gone - found['short']:.2f} "
            f"s later; at least {found['fewest']} were left, {found['least free']:.0f} MiB free, under the reserve for "
            f"at most {found['longest below']:.2f} s"
        )
    if returned:
        print(f"{found['returns']:.2f} s: residents return; {found['last']} slots at the end, {found['end']:.2f} s")
    for name, one in (("undisturbed", alone), ("squeezed", squeezed)):
        tokens = one["object"]["report"]["tokens"]
        print(f"{name}: {tokens['median_s']:.3f} s per token (median of {tokens['count']}), {one['kills']} OOM kills")
    verdicts = {
        "same tokens": same,
        "no OOM kill": alone["kills"] + squeezed["kills"] == 0,
        f"left within {LEAVE_S:g} s": in_time,
        "returned": returned,
    }
    print("; ".join(f"{name}: {'PASS' if good else 'FAIL'}" for name, good in verdicts.items()))
    return 0 if all(verdicts.values()) and not squeezed["exit"] else 1


if __name__ == "__main__":
    main()
