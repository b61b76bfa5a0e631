"""`hermes-bench`: modes and peers side by side on this machine, as a table, JSON lines and pictures.

`hermes-bench make-model NAME DIR` writes a model with random weights in a real shape. What is measured and how is
`hermes_mp.bench`'s; this knows arguments, the terminal, and what to do when it is interrupted. Never imports torch.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, TypeVar

from hermes_mp.bench.plan import MODE_HELP, MODES, PEERS, Regime, Wanted
from hermes_mp.bench.shapes import SHAPES
from hermes_mp.config import parse_size
from hermes_mp.errors import BadOption, HermesError

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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadOption(message, SEE)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, that of the error, or 128 + the signal that ended it; then what was measured is shown first."""
    words = sys.argv[1:] if argv is None else argv
    try:
        if words[:1] == ["make-model"]:
            return _make_model(words[1:])
        options = parser().parse_args(words)
        return run(options, words)
    except HermesError as error:
        print(f"hermes-bench: {error.line()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def run(options: argparse.Namespace, words: list[str]) -> int:
    """Measure everything that was asked for."""
    wanted = wanted_of(options)
    from hermes_mp.bench import plots
    from hermes_mp.bench.board import undo_when_ended
    from hermes_mp.bench.measure import Bench, Peers
    from hermes_mp.bench.models import default_folder, open_model
    from hermes_mp.bench.report import MEASUREMENTS, Report
    from hermes_mp.bench.rows import Journal

    folder: Path | None = options.report
    with_plots = folder is not None and not options.no_plots
    if with_plots:
        plots.load_pyplot()  # that it is missing is said now, not after an hour
    if folder is not None:
        _make_folder(folder)
    if options.resume and folder is None:
        raise BadOption("--resume needs the --report of the run to go on with", SEE)
    others = Peers(options.accelerate_python, options.llama_bench, options.gguf)
    _check_peers(wanted, others.llama_bench, others.gguf, others.accelerate_python)
    header = {"wanted": asdict(wanted), "peers": {name: str(value) for name, value in asdict(others).items()}}
    journal = Journal(folder / MEASUREMENTS if folder is not None else None, header, options.resume)
    report = Report(wanted, journal, folder, shlex.join(["hermes-bench", *words]))
    say = _silent if options.quiet else _say
    undo_when_ended()
    code = 0
    shown: set[str] = set()
    print(report.head())
    try:
        bench = Bench(wanted, journal, others, say, folder if with_plots else None)
        for group in wanted.groups():
            if group.model not in report.models:
                report.models[group.model] = open_model(group.model, options.models or default_folder(), say)
            bench.run(group, report.models[group.model])
            print(report.group(group), flush=True)
            shown.add(group.label)
            report.write_results()
    except (SystemExit, KeyboardInterrupt) as ended:
        code = ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else 128 + signal.SIGINT
        print("hermes-bench: interrupted; this is what was measured", file=sys.stderr)
        for group in wanted.groups():
            if group.label not in shown and (text := report.group(group)):
                print(text)
    made = report.write(with_plots, say)
    for path in made:
        say(f"wrote {path}")
    return code


def wanted_of(options: argparse.Namespace) -> Wanted:
    """What the arguments ask for. Raises BadOption."""
    per_reader = _each(options.per_reader, "--per-reader", "2x, 6x or a number of MB/s", _per_reader)
    return Wanted(
        models=tuple(part for one in options.model for part in one.split(",") if part),
        modes=_each(options.modes, "--modes", f"of {', '.join(MODES)}", _one_of(MODES)),
        loaders=_each(options.loaders, "--loaders", f"whole numbers from 1 to {MAX_LOADERS}", _whole(1, MAX_LOADERS)),
        memory=_each(options.memory, "--memory", "sizes such as 700MiB, or none", _size_or_none),
        disks=_each(options.disk, "--disk", "as-is or a number of MB/s", _disk),
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
    )


def parser() -> argparse.ArgumentParser:
    made = _Parser(
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
        help="units of ours are at most so large: layers are cut (default: a layer)",
    )  # fmt: skip
    what.add_argument("--tokens", type=_count, default=32, metavar="N", help="of the input (default: %(default)s)")
    what.add_argument("--new-tokens", type=_count, default=8, metavar="N", help="generated (default: %(default)s)")
    what.add_argument("--batch", type=_count, default=1, metavar="ROWS", help="(default: %(default)s)")
    what.add_argument("--threads", type=_count, metavar="N", help="that compute (default: the library's own choice)")
    what.add_argument(
        "--dtype", default="auto", choices=("auto", "float32", "float16", "bfloat16"), help="(default: %(default)s)"
    )
    board = made.add_argument_group("what the machine is made to be")
    board.add_argument("--disk", default="as-is", metavar="MB/s,..", help="cap of all reads (default: %(default)s)")
    board.add_argument(
        "--per-reader", default="", metavar="6x,..",
        help="cap of each loader by itself: MB/s, or so that one takes 6 x the computing time for the model",
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


def _make_model(words: list[str]) -> int:
    from hermes_mp.bench.models import make_model

    made = _Parser(prog="hermes-bench make-model", description="Random weights in a real shape.")
    made.add_argument("name", metavar="NAME", help=", ".join(SHAPES))
    made.add_argument("directory", type=Path, metavar="DIR", help="to be made")
    options = made.parse_args(words)
    make_model(options.name, options.directory)
    print(options.directory)
    return 0


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOption(f"--report {folder} cannot be made: {error.strerror}", "name another directory") from error


def _check_peers(wanted: Wanted, llama_bench: Path | None, gguf: Path | None, python: Path | None) -> None:
    if "llama.cpp" in wanted.peers and (llama_bench is None or gguf is None):
        raise BadOption("--peers llama.cpp needs --llama-bench PATH and --gguf PATH", SEE)
    for flag, path in (("--llama-bench", llama_bench), ("--gguf", gguf), ("--accelerate-python", python)):
        if path is not None and not path.exists():
            raise BadOption(f"{flag} {path} does not exist", SEE)
    if "llama.cpp" in wanted.peers and len(wanted.models) > 1:
        raise BadOption("--gguf is of one model: name one --model with --peers llama.cpp", SEE)


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


def _say(text: str) -> None:
    print(f"hermes-bench: {text}", file=sys.stderr, flush=True)


def _silent(text: str) -> None: ...


if __name__ == "__main__":
    sys.exit(main())
