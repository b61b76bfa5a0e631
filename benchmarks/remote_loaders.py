"""Seconds per pass with a slow disk here, and with the disk of one other board besides.

    python benchmarks/remote_loaders.py --model bench-models/gpt2 [--local 45] [--lent 100] [--tokens 6]

Root and cgroup v1: two groups cap reads of the same disk, as if there were two boards (10^6 bytes per second). All
goes over loopback; over a link of 1 Gbit/s: cluster/testbed.sh 2 --no-limits --rate 1gbit --delay 0.3ms -- python
benchmarks/remote_loaders.py --model MODEL --enter 'cluster/testbed.sh exec board2' --listen ADDRESS-OF-BOARD2:7946
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hermes_mp.bench.board import ControlGroup, Unavailable, evict, read_cap, undo_when_ended
from hermes_mp.host.lan import new_keys
from hermes_mp.host.pairings import Identity, PairedBoard, Store

LENDER = Path(__file__).parent.parent / "tests" / "boards" / "lender.py"
# Without keys no board is paired: what `--remote-loader` names is put in its place.
PLAIN = """
import sys
from hermes_mp.agents.borrowed import Lender
from hermes_mp.cli import borrow
address = sys.argv.pop(1)
borrow.paired = lambda counts: tuple(Lender(name, address, "", count) for name, count in counts.items())
from hermes_mp.cli.launching import main
sys.exit(main())
"""


def main() -> None:
    undo_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--local", type=float, default=45.0, help="MB/s of the disk here; 0: no cap")
    parser.add_argument("--lent", type=float, default=100.0, help="MB/s of the other board's")
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--remote", type=int, default=2, help="loaders that take from it")
    parser.add_argument("--loaders", type=int, default=1, help="loaders on either board that read there")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--enter", default="", help="in what the lender runs: 'cluster/testbed.sh exec board2'")
    parser.add_argument("--only", default="", help="local, curve, plain or lent, by commas")
    options = parser.parse_args()
    try:
        local, lent = (rate or 1e5 for rate in (options.local, options.lent))
        with read_cap(options.model, local * 1e6) as here, read_cap(options.model, lent * 1e6) as there:
            measure(options, here, there)
    except Unavailable as error:
        sys.exit(str(error))


def measure(options: argparse.Namespace, here: ControlGroup, there: ControlGroup) -> None:
    wanted = options.only.split(",") if options.only else ["local", "curve", "plain", "lent"]
    found: dict[str, float] = {}
    if "local" in wanted:
        found["local"] = run(options, here, [], {})
    for way in ("curve", "plain", "lent"):
        if way in wanted:
            keys = way != "plain"
            with tempfile.TemporaryDirectory() as folder, lending(options, there, Path(folder), keys) as address:
                env = {"XDG_CONFIG_HOME": f"{folder}/head"}
                found[way] = run(options, here, [address] if way == "plain" else [], env, way)
    if "local" in found:
        for way in ("curve", "plain"):
            if way in found:
                print(f"{way}: {found['local'] / found[way]:.2f} times as fast as with the disk here alone", flush=True)


def run(
    options: argparse.Namespace, group: ControlGroup, plain: list[str], env: dict[str, str], way: str = "local"
) -> float:
    """Seconds per pass; what it read and how is printed."""
    model = options.model.name if way == "lent" else str(options.model)
    words = [
        "--model", model, "--token-ids", "11,12,13,14", "--max-new-tokens", str(options.tokens), "--memory", "none",
        "--context", "128", "--verify", "never", "--json",
    ]  # fmt: skip
    words += ["--loaders", str(options.loaders)] if way != "lent" else []
    words += ["--remote-loader", f"nas={options.remote}"] if way != "local" else []
    program = ["-c", PLAIN, *plain] if plain else ["-m", "hermes_mp.cli.launch"]
    evict(sorted(options.model.glob("*.safetensors")))
    ended = subprocess.run(
        [sys.executable, *program, *words], stdout=subprocess.PIPE, check=False, env={**os.environ, **env},
        preexec_fn=lambda: group.enter(os.getpid()),
    )  # fmt: skip
    said: dict[str, Any] = json.loads(ended.stdout)
    if said["error"]:
        sys.exit(f"{way}: {said['error']}")
    report = said["report"]
    seconds = float(report["passes"]["median_s"])
    nbytes, rate = report["read_nbytes_per_pass"] / 1e6, report["read_rate_nbytes_per_s"] / 1e6
    tokens = said["answers"][0]["token_ids"]
    print(f"{way:6} {seconds:.3f} s per pass of {nbytes:.0f} MB, {rate:.0f} MB/s, tokens {tokens}")
    sys.stdout.flush()
    return seconds


@contextmanager
def lending(options: argparse.Namespace, group: ControlGroup, folder: Path, keys: bool) -> Iterator[str]:
    """A board that lends, and its address; the head's store is in `folder/head`."""
    head, board = new_keys(), new_keys()
    theirs, ours = Store(folder / "board" / "hermes-mp"), Store(folder / "head" / "hermes-mp")
    if keys:
        theirs.keep_identity(Identity("nas", "127.0.0.1:7946", board))
        with theirs.change(0) as pairings:
            pairings.heads = {"laptop": head.public}
        ours.keep_identity(Identity("laptop", "", head))
    command = [sys.executable, str(LENDER), str(options.model), options.listen, str(options.loaders)]
    command = [*options.enter.split(), "env", f"XDG_CONFIG_HOME={folder / 'board'}", *command]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: group.enter(os.getpid())
    ) as process:
        assert process.stdout is not None
        try:
            address = process.stdout.readline().split()[1]
            if keys:
                with ours.change(0) as pairings:
                    pairings.boards = {"nas": PairedBoard(address, board.public)}
            yield address
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


if __name__ == "__main__":
    main()
