"""Seconds per pass with a slow disk here, and with the disk of one other board besides.

    python benchmarks/remote_loaders.py --model bench-models/gpt2 [--local 45] [--lent 100] [--tokens 6]

Root and cgroup v1: two groups cap reads of the same disk, as if there were two boards (10^6 bytes per second). All
goes over loopback; over a link of 1 Gbit/s: cluster/testbed.sh 2 --no-limits --rate 1gbit --delay 0.3ms -- python
benchmarks/remote_loaders.py --model MODEL --enter 'cluster/testbed.sh exec board2' --listen ADDRESS-OF-BOARD2:7946

`planned`, over loopback only: nobody says that the other board shall lend. It serves with 150 MiB, in which no layer
has room; the head, of 480 MiB, is told by `--boards` that it is there, and finds that its disk is worth reading. Beside
it: the same head without.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    parser.add_argument("--only", default="", help="local, curve, plain, lent or planned, by commas")
    options = parser.parse_args()
    try:
        local, lent = (rate or 1e5 for rate in (options.local, options.lent))
        with read_cap(options.model, local * 1e6) as here, read_cap(options.model, lent * 1e6) as there:
            measure(options, here, there)
    except Unavailable as error:
        sys.exit(str(error))


def measure(options: argparse.Namespace, here: ControlGroup, there: ControlGroup) -> None:
    wanted = options.only.split(",") if options.only else ["local", "curve", "plain", "lent", "planned"]
    found: dict[str, float] = {}
    if "local" in wanted:
        found["local"] = run(options, here, [], {})
    for way in ("curve", "plain", "lent"):
        if way in wanted:
            keys = way != "plain"
            with tempfile.TemporaryDirectory() as folder, lending(options, there, Path(folder), keys) as address:
                env = {"XDG_CONFIG_HOME": f"{folder}/head"}
                found[way] = run(options, here, [address] if way == "plain" else [], env, way)
    if "planned" in wanted:
        with tempfile.TemporaryDirectory() as folder, serving(options, there, Path(folder)) as file:
            env = {"XDG_CACHE_HOME": f"{folder}/cache"}
            alone = run(options, here, [], env, "alone")
            planned = run(options, here, [], env, "planned", ["--boards", str(file)])
            print(f"planned: {alone / planned:.2f} times as fast as the same head alone", flush=True)
    if "local" in found:
        for way in ("curve", "plain"):
            if way in found:
                print(f"{way}: {found['local'] / found[way]:.2f} times as fast as with the disk here alone", flush=True)


def run(
    options: argparse.Namespace, group: ControlGroup, plain: list[str], env: dict[str, str], way: str = "local",
    more: Sequence[str] = (),
) -> float:  # fmt: skip
    """Seconds per pass; what it read and how is printed."""
    model = options.model.name if way == "lent" else str(options.model)
    memory = "480MiB" if way in ("alone", "planned") else "none"
    words = [
        "--model", model, "--token-ids", "11,12,13,14", "--max-new-tokens", str(options.tokens), "--memory", memory,
        "--context", "128", "--verify", "never", "--json",
    ]  # fmt: skip
    words += ["--loaders", str(options.loaders)] if way != "lent" else []
    words += ["--remote-loader", f"nas={options.remote}"] if way not in ("local", "alone", "planned") else []
    words += more
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
    forecast = f" ({report['forecast_s']:.3f} forecast)" if report["forecast_s"] is not None else ""
    print(f"{way:7} {seconds:.3f} s per pass{forecast} of {nbytes:.0f} MB, {rate:.0f} MB/s, tokens {tokens}")
    sys.stdout.flush()
    return seconds


@contextmanager
def serving(options: argparse.Namespace, group: ControlGroup, folder: Path) -> Iterator[Path]:
    """`hermes-board serve` on loopback, and a file that names it."""
    words = ["--model-dir", str(options.model), "--memory", "150MiB", "--listen", "127.0.0.1:0"]
    command = [sys.executable, "-m", "hermes_mp.cli.board", "serve", *words, "--loaders", str(options.loaders)]
    env = {**os.environ, "XDG_CONFIG_HOME": str(folder / "none"), "XDG_CACHE_HOME": str(folder / "its-cache")}
    with running(command, group, env, subprocess.STDOUT) as said:
        address = said.readline().rpartition(" serves at ")[2].partition(",")[0]
        threading.Thread(target=said.read, daemon=True).start()
        file = folder / "boards.toml"
        file.write_text(f'[nas]\naddress = "{address}"\n')
        yield file


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
    with running(command, group, dict(os.environ)) as said:
        address = said.readline().split()[1]
        if keys:
            with ours.change(0) as pairings:
                pairings.boards = {"nas": PairedBoard(address, board.public)}
        yield address


@contextmanager
def running(
    command: list[str], group: ControlGroup, env: dict[str, str], errors: int | None = None
) -> Iterator[IO[str]]:
    """What it says; it ends with the context."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=errors, text=True, env=env,
        preexec_fn=lambda: group.enter(os.getpid()),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


if __name__ == "__main__":
    main()
