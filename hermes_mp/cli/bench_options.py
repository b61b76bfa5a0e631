"""The arguments of `hermes-bench`: what they are, and what they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from hermes_mp.bench.plan import MODE_HELP, MODES, PEERS, Regime, Wanted
from hermes_mp.bench.shapes import SHAPES
from hermes_mp.config import parse_size
from hermes_mp.errors import BadOption

SEE = "see hermes-bench --help"
MAX_LOADERS = 64
DESCRIPTION = """\
Runs one model in several ways, in turns, with cold files before every run, and prints what each takes beside what
this machine's disk and processor allow. A model is a directory, or a known shape, made with random weights:
""" + "  " + ", ".join(SHAPES) + "\n\nmodes:\n" + "\n".join(f"  {mode:<11}{text}" for mode, text in MODE_HELP.items())
EXAMPLES = """\
examples:
  hermes-bench --model bert-large --report out/
  hermes-bench --model bert-large,vit-large --loaders 2,4,6 --per-reader 6x --report out/     the paper's table
  hermes-bench --model llama-3.2-1b --modes pipeload --memory 1GiB,1536MiB,2GiB --disk as-is,400 --report out/
  hermes-bench --model llama-3.2-1b --cgroup 1500MB --peers accelerate,llama.cpp --llama-bench ./llama-bench \\
               --gguf model.gguf --report out/
  hermes-bench make-model gpt-j-6b DIR          random weights in the real shape, streamed to disk in little memory

Caps and memory limits need root and cgroup v1; without them those regimes are left out, and the output says so."""

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadOption(message, SEE)


def wanted_of(options: argparse.Namespace) -> Wanted:
    """What the arguments ask for. Raises BadOption, also where that is nothing."""
    wanted = _wanted_of(options)
    named = {
        "--model": wanted.models, "--modes or --peers": wanted.modes + wanted.peers, "--loaders": wanted.loaders,
        "--memory": wanted.memory, "--disk or --per-reader": tuple(wanted.regimes()), "--cgroup": wanted.cgroups,
    }  # fmt: skip
    for flag, values in named.items():
        if not values:
            raise BadOption(f"nothing is run: {flag} names nothing", SEE)
    if wanted.slots is not None and (wanted.memory != (None,) or wanted.cgroups != (None,)):
        raise BadOption("--slots says how much memory pipeload has, and so do --memory and --cgroup", "name one")
    names = [model.rstrip("/").rpartition("/")[2] for model in wanted.models]  # by which groups and files are called
    if len(set(names)) < len(names):
        raise BadOption(f"several models have one name: {', '.join(wanted.models)}", "measure each in a run of its own")
    return wanted


def _wanted_of(options: argparse.Namespace) -> Wanted:
    per_reader = _each(options.per_reader, "--per-reader", "2x, 6x or a number of MB/s", _per_reader)
    return Wanted(
        models=_each(",".join(options.model), "--model", "names", str),
        modes=_each(options.modes, "--modes", f"of {', '.join(MODES)}", _one_of(MODES)),
        loaders=_each(options.loaders, "--loaders", f"whole numbers from 1 to {MAX_LOADERS}", _whole(1, MAX_LOADERS)),
        memory=_each(options.memory, "--memory", "sizes such as 700MiB, or none", _size_or_none),
        disks=() if options.disk == "none" else _each(options.disk, "--disk", "as-is, MB/s, or none", _disk),
        per_reader=per_reader,
        read_ahead_kib=options.readahead,
        cgroups=_each(options.cgroup, "--cgroup", "sizes such as 900MB, or none", _size_or_none),
        peers=_each(options.peers, "--peers", f"of {', '.join(PEERS)}", _one_of(PEERS)),
        rounds=options.rounds,
        tokens=options.tokens,
        new_tokens=options.new_tokens,
        batch=options.batch,
        threads=options.threads,
        dtype=options.dtype,
        slot=_size_or_none(options.slot),
        slots=options.slots,
    )


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="hermes-bench", description=DESCRIPTION, epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = made.add_argument_group("what is run")
    what.add_argument("--model", action="append", required=True, metavar="NAME,..", help="directories or shapes")
    what.add_argument("--models", type=Path, metavar="DIR", help="where shapes are made (default: the user's cache)")
    what.add_argument("--modes", default=",".join(MODES), metavar="MODE,..", help="(default: %(default)s)")
    what.add_argument("--loaders", default="1,2,4", metavar="N,..", help="of pipeload (default: %(default)s)")
    what.add_argument("--memory", default="none", metavar="SIZE,..", help="budgets of pipeload (default: %(default)s)")
    what.add_argument(
        "--slot", type=_size_text, default="none", metavar="SIZE",
        help="units of ours are at most so large: layers are cut (default: as planned)",
    )  # fmt: skip
    what.add_argument(
        "--slots", type=_count, metavar="N",
        help="slots of pipeload, all of which it streams through (default: by --memory, else one more than loaders)",
    )  # fmt: skip
    what.add_argument("--tokens", type=_count, default=32, metavar="N", help="of the input (default: %(default)s)")
    what.add_argument("--new-tokens", type=_count, default=8, metavar="N", help="generated (default: %(default)s)")
    what.add_argument("--batch", type=_count, default=1, metavar="ROWS", help="(default: %(default)s)")
    what.add_argument("--threads", type=_count, metavar="N", help="that compute (default: the library's own choice)")
    what.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"), help="(default: %(default)s)"
    )
    board = made.add_argument_group("what the machine is made to be")
    board.add_argument("--disk", default="as-is", metavar="MB/s,..", help="cap of all reads, as-is or none (as-is)")
    board.add_argument(
        "--per-reader", default="", metavar="6x,..",
        help="cap of each loader by itself: MB/s, or so that one takes 6 x the computing time of `pipeline`",
    )  # fmt: skip
    board.add_argument("--readahead", type=_count, metavar="KiB", help="one more group at this kernel read-ahead")
    board.add_argument("--cgroup", default="none", metavar="SIZE,..", help="memory limit of each row, page cache too")
    peers = made.add_argument_group("peers")
    peers.add_argument("--peers", default="", metavar="NAME,..", help=f"of {', '.join(PEERS)}")
    peers.add_argument("--accelerate-python", type=Path, metavar="PATH", help="of an environment that has accelerate")
    peers.add_argument("--llama-bench", type=Path, metavar="PATH", help="llama.cpp's benchmark program")
    peers.add_argument("--gguf", type=Path, metavar="PATH", help="the same weights, for llama.cpp")
    shown = made.add_argument_group("what comes out")
    shown.add_argument("--rounds", type=_count, default=3, metavar="N", help="medians of so many (default: 3)")
    shown.add_argument("--report", type=Path, metavar="DIR", help="report.md, results.jsonl, pictures, traces")
    shown.add_argument("--resume", action="store_true", help="go on with the measurements that lie in --report")
    shown.add_argument("--no-plots", action="store_true", help="no pictures and no traces")
    shown.add_argument("--quiet", action="store_true", help="the tables only")
    return made


def _each(text: str, flag: str, what: str, read: Callable[[str], T]) -> tuple[T, ...]:
    found: list[T] = []
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        try:
            one = read(part)
        except ValueError:
            raise BadOption(f"{flag} takes {what}, not {part!r}", SEE) from None
        if one not in found:
            found.append(one)
    return tuple(found)


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(text)
        return text

    return read


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return read


def _count(text: str) -> int:
    try:
        return _whole(1, 2**24)(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number of at least 1, not {text!r}") from None


def _size_or_none(text: str) -> int | None:
    return None if text == "none" else parse_size(text)


def _size_text(text: str) -> str:
    try:
        _size_or_none(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a size such as 12MiB, or none, not {text!r}") from None
    return text


def _rate(text: str) -> float:
    rate = float(text) * 1e6
    if not 1e5 <= rate <= 1e12:
        raise ValueError(text)
    return rate


def _disk(text: str) -> float | None:
    return None if text == "as-is" else _rate(text)


def _per_reader(text: str) -> Regime:
    if not text.endswith("x"):
        return Regime(per_reader=_rate(text))
    factor = float(text[:-1])
    if not 0.01 <= factor <= 1000:
        raise ValueError(text)
    return Regime(factor=factor)
