"""From the command to the first weight byte: how soon loaders read, on the first and on later runs of a model.

    python benchmarks/start_time.py bench-models/llama-3.2-1b [--runs 9]

Runs `hermes-launch --trace` with a unit cache of its own, and takes both moments from the trace: the start of the
process, as the kernel knows it to 10 ms, and the beginning of the first read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from hermes_mp.bench.board import preferred, undo_when_ended


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--runs", type=int, default=9, help="later runs")
    parser.add_argument("--loaders", type=int, default=3)
    parser.add_argument("--prefer", action="store_true", help="take the processor first where others use it too")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if options.prefer:
            stack.enter_context(preferred())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first = run(options, folder)
        later = [run(options, folder) for _ in range(options.runs)]
    print(f"{options.directory}, {options.loaders} loaders: seconds from the command to the first read")
    print(f"first run {first:.3f}")
    print(f"later     {statistics.median(later):.3f} (median of {len(later)}; {min(later):.3f} to {max(later):.3f})")


def run(options: argparse.Namespace, folder: Path) -> float:
    """Launch once; seconds from its start to the beginning of its first read."""
    trace = folder / "trace.json"
    words = ["--model", str(options.directory), "--loaders", str(options.loaders), "--trace", str(trace)]
    words += ["--token-ids", "5,17,9", "--max-new-tokens", "1", "--quiet"]
    subprocess.run(
        [Path(sys.executable).with_name("hermes-launch"), *words],
        env=os.environ | {"XDG_CACHE_HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    events = json.loads(trace.read_text())
    began = next(event["ts"] for event in events if event["name"] == "command started")
    reads = [event["ts"] for event in events if event["name"].startswith("read unit")]
    return float(min(reads) - began) / 1e6


if __name__ == "__main__":
    main()
