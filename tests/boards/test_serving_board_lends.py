"""`hermes-board serve` as a lender: paired, encrypted, beside nothing or a stage; `hermes-launch --remote-loader`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launching import DEADLINE_S, Ended, launch

BOARD = [sys.executable, "-m", "hermes_mp.cli.board"]
PROMPT = ("--prompt", "the ship", "--max-new-tokens", "8", "--temperature", "0", "--json")


@contextmanager
def paired(models: Path, folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a head that is paired with a board called nas."""
    ours, theirs = ({"XDG_CONFIG_HOME": str(folder / name)} for name in ("head", "board"))

    def call(env: dict[str, str], *words: str, said: str = "") -> str:
        done = subprocess.run(
            [*BOARD, *words], env={**os.environ, **env}, check=True, capture_output=True, input=said, text=True,
            timeout=DEADLINE_S,
        )  # fmt: skip
        return done.stdout

    call(theirs, "init", "--name", "nas", "--address", "127.0.0.1:7946")
    serve = [*BOARD, "serve", "--model-dir", str(models), "--memory", "1GiB", "--listen", "127.0.0.1:0"]
    board = subprocess.Popen(serve, env={**os.environ, **theirs}, stderr=subprocess.PIPE, text=True)
    try:
        assert board.stderr is not None
        address = re.search(r"serves at (\S+),", board.stderr.readline())
        assert address is not None
        call(theirs, "init", "--name", "nas", "--address", address[1])  # as it turned out
        call(ours, "join", said=call(theirs, "token"))
        yield ours
    finally:
        board.send_signal(signal.SIGTERM)
        said = board.communicate(timeout=DEADLINE_S)[1]
        assert board.returncode == 128 + signal.SIGTERM, said


def tokens(ended: Ended) -> list[int]:
    assert ended.code == 0, ended.err
    found: list[int] = ended.object["answers"][0]["token_ids"]
    return found


def test_with_a_copy_without_one_and_beside_a_stage(models: Path, home: Path, tmp_path: Path) -> None:
    wanted = tokens(launch(home / "alone", "--model", models / "big", *PROMPT))
    with paired(models, tmp_path) as env:
        both = launch(home / "both", "--model", models / "big", "--remote-loader", "nas=1", *PROMPT, env=env)
        assert tokens(both) == wanted
        none = launch(home / "none", "--model", "big", "--remote-loader", "nas=2", *PROMPT, env=env)
        assert tokens(none) == wanted
        stage = launch(home / "stage", "--model", models / "big", "--board", "nas", *PROMPT, env=env)
        assert tokens(stage) == wanted
