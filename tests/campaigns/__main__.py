"""Runs a campaign: `python -m campaigns kill --count 1000 --seed 1 --out kill.jsonl`, from tests/.

A failure ends it with its seed and run number; `--run N` repeats that one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from campaigns.common import Failed, Record, carry_out
from campaigns.every import CAMPAIGNS
from tiny_models import make_models


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m campaigns", description=__doc__)
    parser.add_argument("campaign", choices=sorted(CAMPAIGNS))
    parser.add_argument("--count", type=int, default=None, help="faults, inputs, seconds (default: the full campaign)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=int, default=None, help="this run of the seed only")
    parser.add_argument("--out", type=Path, default=None, help="one JSON object a line: every fault, every run")
    parser.add_argument(
        "--patience", type=float, default=1.0, metavar="FACTOR",
        help="on a machine that does other things: board-kill and link allow so many times as much time",
    )  # fmt: skip
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it, and theirs
    kind, full, _ = CAMPAIGNS[options.campaign]
    with tempfile.TemporaryDirectory(prefix="hermes-campaign-") as name:
        folder = Path(name)
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        os.environ |= {"XDG_RUNTIME_DIR": str(runtime), "XDG_CACHE_HOME": str(folder / "cache")}
        (folder / "models").mkdir()
        make_models(folder / "models")
        campaign = kind(folder / "models" / "big", folder, options.seed)
        campaign.patience = options.patience
        count = options.count or full
        records: list[Record] = []
        try:
            for record in carry_out(campaign, count, options.run):
                records.append(record)
                if options.out is not None:
                    with open(options.out, "a", encoding="utf-8") as file:
                        file.write(json.dumps(record) + "\n")
        except Failed as error:
            print(f"{options.campaign}, seed {options.seed}, {error}", file=sys.stderr)
            return 1
        left = [one for one in os.listdir(runtime) if one.startswith("hermes-mp-")]
        if left and options.campaign != "daemon":  # of a killed one the next start removes it
            print(f"{options.campaign}, seed {options.seed}: directories of runs are left: {left}", file=sys.stderr)
            return 1
        print(json.dumps({"campaign": options.campaign, "seed": options.seed, **campaign.summary(records)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
