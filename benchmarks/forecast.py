"""The planner's forecast against a run: seconds per pass (or token) and peak memory, over models, budgets and disks.

    python benchmarks/forecast.py --models bench-models [bert-large gpt2 ...] [--disk 0 --disk 400] [--share 0.3]

Each budget lies a `--share` of the way from the smallest to the one that fits everything. `hermes-plan --fresh --json`
measures anew inside the cap, `load` runs under that budget, and `hermes-plan` measures once more: the forecast is the
mean of both. Where they differ by more than a tenth the machine changed meanwhile (others use it), and the case is
tried again, three times at most. Caps need root and cgroup v1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hermes_mp.bench.board import Unavailable, capped_disk, undo_when_ended
from hermes_mp.host import environment

MODELS = ("bert-large", "vit-large", "gpt2", "llama-3.2-1b")
TOKENS, CONTEXT = 32, 128
PASSES, SKIPPED = 10, 3  # the first passes also wait for what they find unloaded
TRIES, STEADY = 3, 0.1
MIB = 1 << 20


def planned(directory: Path, *words: object) -> dict[str, Any]:
    """What `hermes-plan` says of it."""
    command = [sys.executable, "-m", "hermes_mp.cli.plan", "--model", directory, "--json"]
    command += ["--tokens", TOKENS, "--context", CONTEXT, *words]
    ended = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def measured(directory: Path, budget: int) -> tuple[float, int]:
    """Seconds per pass and peak bytes of a run in a process of its own, started as a launch starts compute."""
    command = [sys.executable, __file__, "--worker", str(directory), str(budget)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=environment.for_computing())
    seconds, peak = json.loads(ended.stdout.splitlines()[-1])
    return seconds, peak


def work(directory: str, budget: int) -> None:
    """The process that runs the model."""
    from hermes_mp.models.light_imports import import_lightly

    import_lightly()  # as a launch does
    import psutil
    import torch

    from hermes_mp import load
    from hermes_mp.host import memory
    from hermes_mp.models.layer_times import runner

    with load(directory, memory=budget, context=CONTEXT) as model, torch.inference_mode():
        supply = model._hermes_binder.supply
        began: list[float] = []
        note = supply.pass_started

        def pass_started(rows: int, tokens: int) -> None:
            began.append(time.perf_counter())
            note(rows, tokens)

        supply.pass_started = pass_started
        runner(model, 1, TOKENS, PASSES)()
        began.append(time.perf_counter())
        each = [later - earlier for earlier, later in itertools.pairwise(began)][SKIPPED:]
        processes = [psutil.Process(os.getpid()), *psutil.Process(os.getpid()).children(recursive=True)]
        peak = sum(memory.exact(one.pid).total_nbytes for one in processes) + supply._arena.allocated_nbytes()
        print(json.dumps([statistics.median(each), peak]))


def case(directory: Path, disk: int, share: float, table: dict[str, Any]) -> tuple[float, float]:
    """Print one line; the relative errors of time and peak."""
    low, high = (table["plans"][at]["budget_nbytes"] for at in (0, -1))
    budget = round((low + share * (high - low)) / MIB) * MIB
    for _ in range(TRIES):
        (plan,) = planned(directory, "--memory", budget, "--fresh")["plans"]
        seconds, peak = measured(directory, budget)
        (later,) = planned(directory, "--memory", budget, "--fresh")["plans"]
        change = later["forecast"]["seconds"] / plan["forecast"]["seconds"] - 1
        if abs(change) <= STEADY:
            break
    forecast = plan["forecast"]
    forecast_s = (forecast["seconds"] + later["forecast"]["seconds"]) / 2
    errors = forecast_s / seconds - 1, forecast["peak_nbytes"] / peak - 1
    remarks = ("  ABOVE THE BUDGET" if peak > budget else "") + (
        f"  the machine changed: {change:+.0%}" if abs(change) > STEADY else ""
    )
    room = "layers" if plan["room_nbytes"] is None else f"{plan['slot_nbytes'] / MIB:.0f} MiB"
    print(
        f"{directory.name:<14} {disk or 'as is'!s:>5} {budget // MIB:>7} {plan['loaders']:>7} {plan['slots']:>5} "
        f"{room:>8} {forecast['bound_by']:>8} {forecast_s:>8.3f} {seconds:>8.3f} {errors[0]:>+7.1%} "
        f"{forecast['peak_nbytes'] / MIB:>7.0f} {peak / MIB:>7.0f} {errors[1]:>+7.1%}{remarks}",
        flush=True,
    )
    return errors


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"of {', '.join(MODELS)}, gpt-j-6b")
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="where shapes are made")
    parser.add_argument("--disk", type=int, action="append", help="cap in MB/s, 0: as it is; may be repeated")
    parser.add_argument("--share", type=float, action="append", help="0: the smallest budget, 1: all fits; repeatable")
    parser.add_argument("--worker", nargs=2, metavar=("DIRECTORY", "BUDGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], int(options.worker[1]))
        return
    print(f"{'model':<14} {'MB/s':>5} {'budget':>7} {'loaders':>7} {'slots':>5} {'units':>8} {'bound by':>8} "
          f"{'forecast':>8} {'measured':>8} {'error':>7} {'peak':>7} {'was':>7} {'error':>7}")  # fmt: skip
    errors = []
    for name in options.names or MODELS:
        directory = (options.models / name).resolve()
        for disk in options.disk or (0, 400):
            try:
                with tempfile.TemporaryDirectory() as cache, capped_disk(directory, disk):
                    os.environ["XDG_CACHE_HOME"] = cache
                    table = planned(directory)
                    for share in options.share or (0.0, 0.3, 0.7):
                        try:
                            errors.append(case(directory, disk, share, table))
                        except subprocess.CalledProcessError as error:  # which has said why
                            print(f"{name:<14} {disk or 'as is'!s:>5} failed: exit code {error.returncode}")
            except Unavailable as error:
                print(f"{name:<14} {disk:>5} skipped: {error}")
    times = sorted(abs(time_error) for time_error, _ in errors)
    peaks = sorted(abs(peak_error) for _, peak_error in errors)
    if errors:
        print(f"{len(errors)} cases: time off by {statistics.median(times):.1%} (median), {times[-1]:.1%} at most; "
              f"peak by {statistics.median(peaks):.1%}, {peaks[-1]:.1%} at most")  # fmt: skip


if __name__ == "__main__":
    main()
