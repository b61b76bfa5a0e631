"""Which boards a run shall be shared with: from `--board`, from a boards file, and from who is paired with this one.

A boards file has a table for each, as cluster/boards.toml: `[pi2]`. An `address` in it is for plaintext on loopback.
"""

from __future__ import annotations

import sys
from typing import Any

from hermes_mp.config import LaunchConfig, PlanConfig, is_name
from hermes_mp.core.address import is_loopback, split_address
from hermes_mp.core.cluster.stretches import parse_split
from hermes_mp.errors import BadOption, BoardUnknown, UnsafeAddress
from hermes_mp.host.pairings import Store

HEAD = "head"


def shared_with(config: LaunchConfig | PlanConfig) -> dict[str, Any] | None:
    """What a head's compute is told (`agents.compute_head`); None where the run is this board's alone.

    Raises BadOption, BoardUnknown, UnsafeAddress.
    """
    addresses = {} if config.boards is None else read_boards_file(config.boards)
    names = list(dict.fromkeys([*addresses, *config.board]))
    if not names:
        if config.split is not None:
            raise BadOption("--split is for several boards", "name them with --boards or --board")
        return None
    split = None if config.split is None else parse_split(config.split)
    for name, _ in split or ():
        if name not in (HEAD, *names):
            raise BadOption(f"--split names {name!r}, which is none of {', '.join((HEAD, *names))}")
    from importlib import metadata

    try:
        software = metadata.version("hermes-mp")
    except metadata.PackageNotFoundError:
        software = "from its source"
    launch = config if isinstance(config, LaunchConfig) else LaunchConfig()
    stage = {
        "dtype": config.dtype, "context": config.context, "batch": config.batch, "room": None,
        "in_flight": launch.in_flight,
        "timeout_s": launch.timeout or None, "verify": launch.verify,
    }  # fmt: skip
    return {
        "entries": [entry_of(name, addresses.get(name)) for name in names],
        "split": split,
        "software": software,
        "stage": stage,
    }


def entry_of(name: str, address: str | None) -> tuple[str, str, str]:
    """Name, address and public key of a board; the key is "" on plaintext loopback."""
    if address is not None:
        return name, address, ""
    paired = Store().pairings().boards.get(name)
    if paired is None:
        raise BoardUnknown(f"no board called {name!r} is paired with this one")
    return name, paired.address, paired.key


def read_boards_file(path: str) -> dict[str, str | None]:
    """By name the address, where the file says one."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise BoardUnknown(f"the boards file {path} cannot be read: {error.strerror}", "") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BoardUnknown(f"{path} is no TOML: {error}", "see cluster/boards.toml for an example") from error
    found: dict[str, str | None] = {}
    for name, one in table.items():
        what = f"a board is a table [NAME], not {name!r}"
        if isinstance(one, dict) and set(one) - {"address"}:
            what = f"the table of {name} may say `address` only, not `{min(set(one) - {'address'})}`"
        elif is_name(name) and name != HEAD and isinstance(one, dict):
            found[name] = None if "address" not in one else _address(f"{path}, {name}", one["address"])
            continue
        raise BoardUnknown(f"{path}: {what}", "see cluster/boards.toml for an example")
    if not found:
        raise BoardUnknown(f"{path} names no board", "see cluster/boards.toml for an example")
    return found


def _address(where: str, address: object) -> str:
    if not isinstance(address, str):
        raise BoardUnknown(f"{where}: an address is a text HOST:PORT, not {address!r}", "")
    try:
        host, _ = split_address(address)
    except BadOption as error:
        raise BadOption(f"{where}: {error}", error.attempt) from None
    if not is_loopback(host):
        why = f"{where}: {address} is not on loopback, and a board elsewhere is known by its key"
        raise UnsafeAddress(why, "pair it (hermes-board join TOKEN) and leave its address out")
    return address
