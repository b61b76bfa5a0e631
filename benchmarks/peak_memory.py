"""Peak memory against the budget, for models larger than it: sampled, and judged by a memory cgroup of that size.

    python benchmarks/peak_memory.py --models bench-models [CASE ...]

Every case runs twice in a fresh interpreter. Sampled: 20 times a second the exact private and file-backed shares and
page tables of all processes, and the arena once. Judged: in a cgroup whose limit is the budget (v1, root), page cache
included; it passes when the answer comes and nothing is OOM-killed. Not a timed run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from board import Unavailable, drop_caches, memory_limit, undo_when_ended
from cases import CASES, passes

from hermes_mp.host import memory

EVERY_S = 0.05
BUDGETS_MIB = {"bert-large-128": 700, "vit-large": 600, "llama-3.2-1b-decode": 1280, "gpt-j-6b-decode": 2560}
CONTEXTS = {"gpt-j-6b-decode": 1024}  # its attention is quadratic in memory: 2048 positions alone take 1.7 GiB
PASSES = {"bert-large-128": 5, "vit-large": 5, "llama-3.2-1b-decode": 8, "gpt-j-6b-decode": 3}


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(BUDGETS_MIB)}")
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="made by make_models.py")
    parser.add_argument("--loaders", type=int, default=3)
    parser.add_argument("--mib", type=int, help="another budget")
    parser.add_argument("--run", nargs=4, metavar=("CASE", "MIB", "LOADERS", "SAMPLE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        case, mib, loaders, sample = options.run
        print(json.dumps(run(case, options.models, int(mib), int(loaders), sample == "yes")))
        return
    for case in options.cases or BUDGETS_MIB:
        mib = options.mib or BUDGETS_MIB[case]
        print(
            f"{case} in {mib} MiB, {options.loaders} loaders, context {CONTEXTS.get(case, 'by default')}, "
            f"{PASSES[case]} passes",
            flush=True,
        )
        print(f"  sampled: {describe(start(case, mib, options, sample=True))}", flush=True)
        try:
            print(f"  cgroup:  {judged(case, mib, options)}", flush=True)
        except Unavailable as error:
            print(f"  cgroup:  skipped: {error}", flush=True)


def start(case: str, mib: int, options: argparse.Namespace, sample: bool, folder: Path | None = None) -> dict[str, Any]:
    """The case in an interpreter of its own, inside the cgroup `folder`; what it found, or what went wrong."""

    def enter() -> None:
        if folder is not None:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    words = ["--models", str(options.models), "--run", case, str(mib), str(options.loaders), "yes" if sample else "no"]
    done = subprocess.run([sys.executable, __file__, *words], preexec_fn=enter, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return {"failed": f"exit code {done.returncode}: {last[0]}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judged(case: str, mib: int, options: argparse.Namespace) -> str:
    drop_caches()
    with memory_limit(mib << 20) as folder:
        found = start(case, mib, options, sample=False, folder=folder)
        peak = int((folder / "memory.max_usage_in_bytes").read_text())
        kills = dict(line.split() for line in (folder / "memory.oom_control").read_text().splitlines())["oom_kill"]
        failures = (folder / "memory.failcnt").read_text().strip()
    answer = found.get("failed") or f"answer {found['answer']}, {found['slots']} slots"
    return f"{'PASS' if kills == '0' and 'failed' not in found else 'FAIL'}: peak {peak / 2**20:.1f} MiB, " + (
        f"{kills} OOM kills, limit hit {failures} times, {answer}"
    )


def describe(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"FAIL: {found['failed']}"
    total = found["peak"] / 2**20
    parts = "; ".join(
        f"{name} {private / 2**20:.1f}+{file / 2**20:.1f}+{tables / 2**20:.1f}"
        for name, (private, file, tables) in found["parts"].items()
    )
    verdict = "PASS" if found["peak"] <= found["budget"] else "FAIL"
    return (
        f"{verdict}: peak {total:.1f} MiB with {found['slots']} slots of {found['slot'] / 2**20:.1f} MiB, answer "
        f"{found['answer']}; {found['samples']} samples\n    at the peak: arena {found['arena'] / 2**20:.1f}; "
        f"private+file+tables: {parts}"
    )


def run(case: str, models: Path, mib: int, loaders: int, sample: bool) -> dict[str, Any]:
    """Load the case in this process and run its passes."""
    from hermes_mp import load

    wanted, context = CASES[case], CONTEXTS.get(case)
    with (
        sampling(sample) as peak,
        load(models / wanted.model, loaders=loaders, memory=mib << 20, context=context) as model,
    ):
        import torch

        divided = model._hermes_binder.supply.divided
        with torch.inference_mode():
            one = passes(wanted, model)
            for _ in range(PASSES[case]):
                logits = one()
        answer = int(logits[0].reshape(-1, logits.shape[-1])[-1].argmax())
    return peak.found | {"budget": mib << 20, "slots": divided.slots, "slot": divided.slot_nbytes, "answer": answer}


class Peak:
    """Samples on a thread of its own until stopped; keeps the largest total and what it was made of."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {"peak": 0, "parts": {}, "arena": 0, "samples": 0}
        self.stop = threading.Event()

    def work(self) -> None:
        while not self.stop.wait(EVERY_S):
            self.sample()

    def sample(self) -> None:
        me = psutil.Process()
        parts = {}
        for process in [me, *me.children(recursive=True)]:
            found = memory.exact(process.pid)
            if found.total_nbytes:
                name = "caller" if process.pid == me.pid else title(process)
                parts[name] = (found.private_nbytes, found.file_nbytes, found.tables_nbytes)
        arena = arena_nbytes()
        total = arena + sum(sum(part) for part in parts.values())
        self.found["samples"] += 1
        if total > self.found["peak"]:
            self.found.update(peak=total, parts=parts, arena=arena)


def arena_nbytes() -> int:
    """What the arena among this process's files has allocated."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:hermes-arena"):
                return os.fstat(int(name)).st_blocks * 512
    return 0


def title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0].removeprefix("hermes: ").split("\0")[0].strip() or process.name()
    except (psutil.NoSuchProcess, IndexError):
        return str(process.pid)


@contextmanager
def sampling(wanted: bool) -> Iterator[Peak]:
    peak = Peak()
    thread = threading.Thread(target=peak.work, daemon=True)
    if wanted:
        thread.start()
    try:
        yield peak
    finally:
        peak.stop.set()
        if wanted:
            thread.join()


if __name__ == "__main__":
    main()
