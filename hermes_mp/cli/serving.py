"""`hermes-board serve`: this machine works for heads, until a signal ends it.

What starts a board is `serve` with one settings object, `BoardServeConfig`, and nothing besides: keys and pairings lie
where `hermes-board init` has put them. An engine that places boards calls it, or the command of the same words.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

from hermes_mp.agents.board import Board, BoardSettings
from hermes_mp.agents.gatekeeper import Gatekeeper
from hermes_mp.cli.launching import heeded_signals
from hermes_mp.config import BoardServeConfig
from hermes_mp.core.address import DEFAULT_PORT, join_address, split_address
from hermes_mp.errors import ModelNotFound
from hermes_mp.host.checkpoint import CONFIG
from hermes_mp.host.lan import LanHub
from hermes_mp.host.network import host_name
from hermes_mp.host.pairings import Store
from hermes_mp.host.supervisor import Watchdog, tell_supervisor

PROGRAM = "hermes-board"
LOADERS = 2
LOOPBACK = f"127.0.0.1:{DEFAULT_PORT}"


def serve(config: BoardServeConfig) -> None:
    """Work for the heads that are paired with this board, until SIGTERM or SIGINT, which it raises as an error."""
    store = Store()
    identity = store.identity()
    store.pairings()  # raises here where nobody could come in
    models = None if config.model_dir is None else _models(config.model_dir)
    address = config.listen or (identity.address if identity is not None and identity.address else LOOPBACK)
    keeper = None if identity is None else Gatekeeper(store, identity.name)
    allow = (lambda key: None) if keeper is None else keeper.allow
    keys = None if identity is None else identity.keys
    software = "from its source"
    with suppress(metadata.PackageNotFoundError):
        software = metadata.version("hermes-mp")
    settings = BoardSettings(
        host_name() if identity is None else identity.name, software, models, config.memory,
        config.loaders or LOADERS, config.threads,
    )  # fmt: skip
    with heeded_signals() as signals:
        with closing(LanHub(join_address(*split_address(address, DEFAULT_PORT)), keys, allow)) as lan:
            board = Board(settings, lan, keeper, _say, Watchdog().alive)

            def end() -> None:
                tell_supervisor("STOPPING=1")
                board.end()

            signals.then = end
            how = "in plaintext, on loopback only" if keys is None else "encrypted, for paired heads only"
            _say(f"board {settings.name} serves at {lan.address}, {how}")
            if models is None:
                _say("it has no copy of a model, and can run layers of none: name them with --model-dir")
            elif not any((one / CONFIG).is_file() for one in (models, *models.iterdir())):
                _say(f"no model lies in {models} yet: it is a model's directory, or a directory of such")
            tell_supervisor("READY=1")
            board.serve()
        signals.check()


def _models(text: str) -> Path:
    found = Path(text).resolve()
    attempt = "name the directory of a model, or a directory of such directories"
    if not found.is_dir():
        raise ModelNotFound(f"--model-dir: {found} is no directory", attempt)
    if not os.access(found, os.R_OK | os.X_OK):
        raise ModelNotFound(f"--model-dir: {found} cannot be read by this user", attempt)
    return found


def _say(text: str) -> None:
    stamp = "" if "JOURNAL_STREAM" in os.environ else time.strftime("%H:%M:%S ")
    with suppress(OSError):  # whoever read it has gone; the boards' heads have not
        print(f"{stamp}{PROGRAM}: {text}", file=sys.stderr, flush=True)
