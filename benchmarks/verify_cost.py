"""What `--verify` costs: seconds per pass with each unit's first load checked, with every load, and with none.

    python benchmarks/verify_cost.py bert-large-32 gpt2-decode --models bench-models --disk 400 --memory 900MB

All three are alive at once and take turns, in an order that rotates; medians over the rounds, and the raw rate of the
disk beside them. `first pass` is the one of the start: there `first` checks, too. Disks are capped by cgroup v1 (root).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
from pathlib import Path

from pass_time import BURST_NBYTES, CASES, Worker

from hermes_mp.bench.board import capped_disk, undo_when_ended
from hermes_mp.bench.models import open_model
from hermes_mp.bench.plan import Subject
from hermes_mp.bench.raw_read import RawReader, largest_file
from hermes_mp.config import NEVER, VERIFY, parse_size


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="CASE", choices=list(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="where shapes are made")
    parser.add_argument("--disk", type=int, default=400, help="cap in MB/s, 0: as it is")
    parser.add_argument("--memory", type=parse_size, default=None, help="budget (default: none)")
    parser.add_argument("--loaders", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--passes", type=int, default=2, help="in a row, per round")
    options = parser.parse_args()
    print(f"{'case':<20} {'verify':<8} {'s/pass':>8} {'/ never':>8} {'first pass':>11} {'raw MB/s':>9}")
    for case in options.cases:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["XDG_CACHE_HOME"] = cache
            measure(case, options)


def measure(case: str, options: argparse.Namespace) -> None:
    model, subject = open_model(CASES[case].model, options.models, print), Subject("pipeload", options.loaders, None)
    if options.memory is not None:
        subject = Subject("pipeload", options.loaders, options.memory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(capped_disk(model.directory, options.disk))
        workers = {
            mode: stack.enter_context(Worker(subject, model, CASES[case].tokens, options, verify=mode))
            for mode in (NEVER, *VERIFY[:2])
        }
        reader = RawReader(largest_file(model.directory))
        stack.callback(reader.close)
        seconds: dict[str, list[float]] = {mode: [] for mode in workers}
        raw = []
        order = list(workers)
        for _ in range(options.rounds):
            raw.append(BURST_NBYTES / reader.read(2, 8 << 20, BURST_NBYTES))
            for mode in order:
                seconds[mode].append(workers[mode].run(options.passes)["seconds"] / options.passes)
            order = order[1:] + order[:1]
        never = seconds[NEVER]
        for mode, taken in seconds.items():
            ratio = statistics.median(one / base for one, base in zip(taken, never, strict=True))
            first = workers[mode].first["seconds"]
            print(f"{case:<20} {mode:<8} {statistics.median(taken):>8.3f} {ratio:>8.3f} {first:>11.3f} "
                  f"{statistics.median(raw) / 1e6:>9.0f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
