"""`hermes-board`: this machine's keys, join tokens, and the boards and heads that it is paired with.

A token is told on standard output alone, and no key ever. It knows no model and runs nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hermes_mp.board_messages import Paired, PairHead, Refused
from hermes_mp.cli.options import Command, parse_for
from hermes_mp.cli.output import print_out, refused
from hermes_mp.config import (
    BoardInitConfig,
    BoardJoinConfig,
    BoardListConfig,
    BoardRevokeConfig,
    BoardServeConfig,
    BoardTokenConfig,
    is_name,
)  # fmt: skip
from hermes_mp.core.address import DEFAULT_PORT, join_address, split_address
from hermes_mp.core.pairing import Token, read_token, write_token
from hermes_mp.errors import BadOption, BoardLost, BoardUnknown, HermesError, NotAllowed, TokenRefused, revived
from hermes_mp.host.lan import LanLink, keys_of, new_keys
from hermes_mp.host.network import host_name, lan_address
from hermes_mp.host.pairings import IDENTITY, Identity, PairedBoard, Store

PROGRAM, SCHEMA = "hermes-board", 1
PAIR_S = 10.0
UNIT = "cluster/hermes-board.service"
NOWHERE = ("0.0.0.0", "::", "*")
VALUED = ["--name", "--address", "--expires", "--model-dir", "--memory", "--loaders", "--threads", "--listen"]


def init(config: BoardInitConfig, _: str | None) -> None:
    """Make the keys, keep those that there are, and print a token."""
    store = Store()
    before = store.identity()
    name = config.name or (before.name if before else host_name())
    address = config.address or (before.address if before else "") or _own_address()
    host, port = split_address(address, DEFAULT_PORT)
    if port == 0 or host in NOWHERE:
        raise BadOption(f"heads could not find {address}: it is any that there is", "name the one that they shall use")
    now = Identity(name, join_address(host, port), before.keys if before else new_keys())
    if now != before:
        store.keep_identity(now)
    kept = "kept" if before else "made"
    _note(f"the keys of board {name} at {now.address} were {kept}: {store.folder / IDENTITY}, for your user alone")
    _note(f"to serve now: hermes-board serve --model-dir DIR; from boot on: see {UNIT}")
    _note("to pair: hermes-board join TOKEN on the head, while this board serves; the token is good once")
    _print_token(store, now, config.expires)


def token(config: BoardTokenConfig, _: str | None) -> None:
    """Print another token."""
    store = Store()
    identity = store.identity()
    if identity is None or not identity.address:
        raise BoardUnknown("this machine is no board yet", "run hermes-board init")
    _print_token(store, identity, config.expires)


def join(config: BoardJoinConfig, word: str | None) -> None:
    """Pair with the board of the token, of which this machine becomes a head."""
    if word is not None:
        from setproctitle import setproctitle  # others see the words of a process, and the token is a secret

        setproctitle(f"{PROGRAM} join")
    elif sys.stdin.isatty():
        _note("paste the join token of the board, then press Enter")
    asked = read_token(sys.stdin.readline() if word is None else word)
    store = Store()
    known = store.pairings().boards.get(asked.board)
    if known is not None and known.key != asked.key:
        why = f"another board is paired with this machine as {asked.board}"
        raise BadOption(why, f"run hermes-board revoke {asked.board} here, or init --name there")
    identity = store.identity()
    if identity is None:
        identity = Identity(config.name or host_name(), "", new_keys())
        store.keep_identity(identity)
    name = _pair(asked, PairHead(identity.keys.public, config.name or identity.name))
    with store.change(time.time()) as pairings:
        pairings.boards[name] = PairedBoard(asked.address, asked.key)
    print_out(f"paired with board {name} at {asked.address}")


def show(config: BoardListConfig, _: str | None) -> None:
    """Print who is paired with this machine."""
    store = Store()
    identity, pairings = store.identity(), store.pairings()
    now_s = time.time()
    left_s = sorted(int(expires_s - now_s) for expires_s in pairings.tokens.values() if expires_s > now_s)
    if config.json:
        board = None
        if identity is not None:
            board = {"name": identity.name, "address": identity.address or None, "key": identity.keys.public}
        facts: dict[str, Any] = {"schema": SCHEMA, "this": board}
        facts["boards"] = [
            {"name": name, "address": one.address, "key": one.key} for name, one in sorted(pairings.boards.items())
        ]
        facts["heads"] = [{"name": name, "key": key} for name, key in sorted(pairings.heads.items())]
        facts["tokens"] = [{"expires_in_s": seconds} for seconds in left_s]
        print_out(json.dumps({**facts, "error": None}))
        return
    lines = []
    if identity is not None:
        lines.append(f"this machine is {identity.name}" + (f", a board at {identity.address}" * bool(identity.address)))
    lines += [f"  uses board {name} at {one.address}" for name, one in sorted(pairings.boards.items())]
    lines += [f"  serves head {name}" for name in sorted(pairings.heads)]
    lines += [f"  a join token is open for another {seconds} s" for seconds in left_s]
    print_out("\n".join(lines) or "this machine is paired with nobody")


def revoke(_: BoardRevokeConfig, word: str | None) -> None:
    """Forget the head or board of that name; a board that serves refuses the head from its next message on."""
    if word is None:
        raise BadOption("revoke takes the name of a head or a board", "see hermes-board list")
    found = []
    with Store().change(time.time()) as pairings:
        if pairings.heads.pop(word, None) is not None:
            found.append("head")
        if pairings.boards.pop(word, None) is not None:
            found.append("board")
    if not found:
        raise BoardUnknown(f"no head and no board {word[:60]!r} is paired with this machine", "see hermes-board list")
    print_out(f"{' and '.join(found)} {word} forgotten")


def _serve(config: BoardServeConfig, word: str | None) -> None:
    """Work for the heads that are paired with this board: lend them memory, processor and disk."""
    from hermes_mp.cli.serving import serve  # slow to import

    serve(config)


@dataclass(frozen=True)
class _Subcommand:
    command: Command[Any]
    run: Callable[[Any, str | None], None]
    takes: str = ""  # a word beside the flags


def _subcommand(
    word: str, config: type[Any], run: Callable[[Any, str | None], None], examples: str, takes: str = ""
) -> _Subcommand:
    program = f"{PROGRAM} {word}"
    usage = f"{program} {f'{takes} ' * bool(takes)}[flags]"
    return _Subcommand(Command(program, config, usage, str(run.__doc__), f"examples:\n{examples}"), run, takes)


SUBCOMMANDS = {
    "init": _subcommand(
        "init", BoardInitConfig, init,
        "  hermes-board init\n  hermes-board init --name shelf --address 192.168.1.7 --expires 10m",
    ),
    "token": _subcommand("token", BoardTokenConfig, token, "  hermes-board token --expires 1d"),
    "join": _subcommand(
        "join", BoardJoinConfig, join,
        "  hermes-board join < token.txt\n  ssh shelf hermes-board token | hermes-board join", "[TOKEN]",
    ),
    "list": _subcommand("list", BoardListConfig, show, "  hermes-board list --json"),
    "serve": _subcommand(
        "serve", BoardServeConfig, _serve,
        "  hermes-board serve --model-dir /srv/models --memory 2GiB\n  hermes-board serve --listen 127.0.0.1:7950",
    ),
    "revoke": _subcommand("revoke", BoardRevokeConfig, revoke, "  hermes-board revoke laptop", "NAME"),
}  # fmt: skip
HELP = f"""\
usage: {PROGRAM} COMMAND [flags]

Let this machine work for others, or others for this one: keys, join tokens, and who is paired with whom.

commands:
  init            make this board's keys, and print a join token
  token           print another join token
  join [TOKEN]    pair with the board of that token; without it, of the one on standard input
  list            show the boards and heads that this machine is paired with
  serve           work for the heads that are paired with this board
  revoke NAME     forget a head or a board

Each has a --help of its own."""


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or that of the error (docs/exit-codes.md)."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if not words or words[0] in ("--help", "-h"):
            print_out(HELP)
            return 0 if words else BadOption.exit_code
        if words[0] == "--version":
            parse_for(SUBCOMMANDS["list"].command, words[:1])
        chosen = SUBCOMMANDS.get(words[0])
        if chosen is None:
            raise BadOption(f"unknown command {words[0][:40]!r}", f"one of {', '.join(SUBCOMMANDS)}")
        flags, rest = _apart(words[1:])
        config = parse_for(chosen.command, flags)
        if len(rest) > (1 if chosen.takes else 0):  # never repeated: one of them may be a token
            raise BadOption(f"{words[0]} takes {chosen.takes or 'flags'} only", f"see {PROGRAM} {words[0]} --help")
        chosen.run(config, rest[0] if rest else None)
    except (HermesError, OSError) as error:
        return refused(PROGRAM, SCHEMA, error, "--json" in words)
    except KeyboardInterrupt:
        return 130
    return 0


def _apart(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Flags with their values, and the other words."""
    flags: list[str] = []
    rest: list[str] = []
    for word in words:
        is_value = bool(flags) and flags[-1] in VALUED
        (flags if is_value or word.startswith("-") else rest).append(word)
    return flags, rest


def _own_address() -> str:
    found = lan_address()
    if found is None:
        raise BadOption("this machine is in no network, so its address is not known", "name it with --address")
    return found


def _print_token(store: Store, identity: Identity, expires: int | str) -> None:
    keys, expires_s = new_keys(), int(time.time()) + int(expires)
    with store.change(time.time()) as pairings:
        pairings.tokens[keys.public] = expires_s
    print_out(write_token(Token(identity.name, identity.address, identity.keys.public, keys.secret, expires_s)))


def _pair(asked: Token, message: PairHead) -> str:
    """The name of the board, which allows our key from now on."""
    try:
        link = LanLink(asked.board, asked.address, keys_of(asked.secret), asked.key)
        try:
            link.send(message)
            answer = link.receive(PAIR_S)
        finally:
            link.close()
    except NotAllowed as error:
        gone = "has expired" if asked.expires_s <= time.time() else "was used, or the board is another one now"
        raise TokenRefused(f"{error}: the join token {gone}") from None
    if isinstance(answer, Refused):
        raise revived(answer.exit_code, answer.text)
    if not isinstance(answer, Paired) or not is_name(answer.board):
        raise BoardLost(f"board {asked.board} ({asked.address}) does not say whether it allows us")
    return answer.board


def _note(text: str) -> None:
    print(f"{PROGRAM}: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
