"""`hermes-bench`: modes and peers side by side on this machine, as a table, JSON lines and pictures.

`hermes-bench make-model NAME DIR` writes a model with random weights in a real shape. What is measured and how is
`hermes_mp.bench`'s; this knows arguments, the terminal, and what to do when it is interrupted. Never imports torch.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from hermes_mp.bench.plan import Wanted
from hermes_mp.bench.shapes import SHAPES
from hermes_mp.cli.bench_options import SEE, Parser, parser, wanted_of
from hermes_mp.errors import BadOption, HermesError


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
    from hermes_mp.bench.journal import Journal, writing
    from hermes_mp.bench.measure import Bench, Peers
    from hermes_mp.bench.models import check_model, default_folder, open_model
    from hermes_mp.bench.report import MEASUREMENTS, Report

    folder: Path | None = options.report
    models: Path = options.models or default_folder()
    for name in wanted.models:
        check_model(name, models)  # a wrong name is said now, not after an hour
    with_plots = folder is not None and not options.no_plots
    if with_plots:
        plots.load_pyplot()  # that it is missing is said now, not after an hour
    if folder is not None:
        _make_folder(folder)
    if options.resume and folder is None:
        raise BadOption("--resume needs the --report of the run to go on with", SEE)
    others = Peers(options.accelerate_python, options.llama_bench, options.gguf)
    _check_peers(wanted, others.llama_bench, others.gguf, others.accelerate_python)
    if folder is not None and not options.resume:
        for group in wanted.groups():
            for path in folder.glob(f"{group.word}-*.trace.json"):  # of an earlier run: not drawn again
                with writing(path):
                    path.unlink(missing_ok=True)
    many = {name: value for name, value in asdict(wanted).items() if name != "rounds"}  # more may be asked for later
    header = {"wanted": many, "peers": {name: str(value) for name, value in asdict(others).items()}}
    journal = Journal(folder / MEASUREMENTS if folder is not None else None, header, options.resume)
    report = Report(wanted, journal, folder, shlex.join(["hermes-bench", *words]))
    say = _silent if options.quiet else _say
    if journal.kept_as is not None:
        _say(f"the measurements that were in {folder} are now {journal.kept_as.name}; --resume would have gone on")
    undo_when_ended()
    code = 0
    shown: set[str] = set()
    print(report.head())
    try:
        bench = Bench(wanted, journal, others, say, folder if with_plots else None)
        for group in wanted.groups():
            if group.model not in report.models:
                report.models[group.model] = open_model(group.model, models, say)
            bench.run(group, report.models[group.model])
            print(report.group(group), flush=True)
            shown.add(group.label)
            report.write_results()
    except (SystemExit, KeyboardInterrupt, HermesError) as ended:
        if isinstance(ended, HermesError):
            code, why = ended.exit_code, ended.line()
        else:
            code = ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else 128 + signal.SIGINT
            why = "interrupted"
        print(f"hermes-bench: {why}; this is what was measured", file=sys.stderr)
        for group in wanted.groups():
            if group.label not in shown and (text := report.group(group)):
                print(text)
    made = report.write(with_plots, say)
    for path in made:
        say(f"wrote {path}")
    return code


def _make_model(words: list[str]) -> int:
    from hermes_mp.bench.models import make_model

    made = Parser(prog="hermes-bench make-model", description="Random weights in a real shape.")
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


def _say(text: str) -> None:
    print(f"hermes-bench: {text}", file=sys.stderr, flush=True)


def _silent(text: str) -> None: ...


if __name__ == "__main__":
    sys.exit(main())
