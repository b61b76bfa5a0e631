"""The planner's forecast against runs on several boards: seconds per token, and each board's peak memory.

`python benchmarks/boards_forecast.py --models /tmp/bench-models [--case 3 ...]` as root: for each case builds a bed
(cluster/testbed.sh) and runs itself in board1 of it. A run first shows what computing costs here; a second one is
measured. Boards of a bed share the libraries' pages, which real ones do not: what that saves is added to the peaks
(not where it is judged whether a budget was passed).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BED = ROOT / "cluster" / "testbed.sh"
PROGRAM = [sys.executable, "-m"]
CONTEXT = 64
LLAMAS = {"llama-32x14mb": (32, 512, 1536), "llama-12x28mb": (12, 768, 2048)}  # layers, width, inner width
IN_TIME, IN_MEMORY = 0.20, 0.05
RUN_S = 400.0
BESIDE_MIB = 40  # a board that works for another takes more: encryption, tensors on their way, units of whole layers


@dataclass(frozen=True)
class Case:
    """`extra`: MiB of each board's budget beyond the smallest one that does; `disk` in MB/s."""

    model: str
    extra: tuple[int, ...]
    disk: int
    rate: str = "1gbit"
    delay: str = "0.3ms"


CASES = (
    Case("llama-32x14mb", (0, 0), 100),
    Case("llama-32x14mb", (0, 0, 0, 0), 100),
    Case("llama-32x14mb", (64, 64), 100),
    Case("llama-32x14mb", (0, 96, 0), 50),
    Case("llama-32x14mb", (32, 32, 32, 32), 200),
    Case("llama-32x14mb", (0, 0), 100, "100mbit"),
    Case("llama-12x28mb", (0, 0), 50),
    Case("llama-12x28mb", (0, 64), 100),
    Case("llama-12x28mb", (0, 0, 64), 200, "100mbit", "1ms"),
    Case("gpt2", (0, 0), 100),
    Case("gpt2", (64, 0, 64), 100),
    Case("gpt2", (0, 200), 200),
)


def make_model(folder: Path) -> None:
    """A shape of `bench.shapes`, or a Llama in float32 with few words: what is read is layers."""
    if folder.exists():
        return
    if folder.name not in LLAMAS:
        subprocess.run([*PROGRAM, "hermes_mp.bench.make_model", folder.name, str(folder)], check=True, cwd=ROOT)
        return
    import torch
    import transformers

    torch.manual_seed(0)
    layers, width, inner = LLAMAS[folder.name]
    config = transformers.LlamaConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=8, vocab_size=1024, max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def launch(model: Path, memory: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, "hermes_mp.cli.launch", "--model", str(model), "--loaders", "1", "--memory", memory]
    command += ["--context", str(CONTEXT), "--token-ids", "5,6,7", "--verify", "never", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=RUN_S)


def smallest_mib(model: Path) -> int:
    """The smallest budget that the model does with, as the refusal names it."""
    said = launch(model, "1MiB").stderr
    found = re.search(r"smallest budget for this model, context and batch is (\d+) MiB", said)
    assert found is not None, said
    return int(found[1]) + BESIDE_MIB


def inside(arguments: argparse.Namespace) -> None:
    """In board1: pair with the others, and run twice."""
    directory = Path(os.environ["HERMES_TESTBED_DIR"])
    addresses = dict(line.split("=", 1) for line in (directory / "boards.env").read_text().splitlines())
    others = [name for name in addresses if name != "board1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    serving = []
    try:
        for name, memory in zip(others, arguments.memory[1:], strict=True):
            init = [*PROGRAM, "hermes_mp.cli.board", "init", "--name", name, "--address", addresses[name]]
            made = subprocess.run([BED, "exec", name, *init], env=env, check=True, capture_output=True, text=True)
            serve = [*PROGRAM, "hermes_mp.cli.board", "serve", "--model-dir", str(arguments.model), "--loaders", "1"]
            with open(directory / f"{name}.log", "w") as log:
                command = [BED, "exec", name, *serve, "--memory", memory]
                serving.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))
            until_s = time.monotonic() + 30
            while "serves at" not in (directory / f"{name}.log").read_text() and time.monotonic() < until_s:
                time.sleep(0.1)
            join = [*PROGRAM, "hermes_mp.cli.board", "join"]
            subprocess.run(join, env=env, check=True, input=made.stdout, text=True, stdout=subprocess.DEVNULL)
        shared = [word for name in others for word in ("--board", name)]
        saved: list[int] = []
        threading.Thread(target=watch_sharing, args=(saved,), daemon=True).start()
        for tokens in (8, arguments.tokens):
            words = ("--max-new-tokens", str(tokens), "--temperature", "0", "--json")
            done = launch(arguments.model, arguments.memory[0], *words, *shared)
            print(done.stdout.strip() or json.dumps({"error": done.stderr[-1500:]}), flush=True)
            print(done.stderr, file=sys.stderr)
        print(json.dumps({"shared_nbytes": statistics.median_low(saved or [0])}), flush=True)
    finally:
        for run in serving:
            run.terminate()
        for name in others:
            print((directory / f"{name}.log").read_text(), file=sys.stderr)


def watch_sharing(saved: list[int]) -> None:
    """How much less each compute process has to account for, as others map the same libraries: a mean, each second."""
    import psutil

    while True:
        each = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                if "hermes: compute" not in " ".join(process.cmdline()):
                    continue
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                kib = {name: int(value) for name, value in re.findall(r"(\w+): +(\d+) kB", text)}
                each.append((kib["Shared_Clean"] + kib["Private_Clean"] - kib["Pss_File"]) << 10)
        if each:
            saved.append(sum(each) // len(each))
        time.sleep(1.0)


def measure(case: Case, model: Path, budgets: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """The report of the measured run, on a bed of its own."""
    command = [BED, len(budgets), "--rate", case.rate, "--delay", case.delay, "--disk", f"{case.disk}M", "--disk-of"]
    command += [model, "--memory", "none", "--", sys.executable, __file__, "--inside", model, "--tokens"]
    command += [options.tokens, *(word for mib in budgets for word in ("--memory", f"{mib}MiB"))]
    done = subprocess.run([str(word) for word in command], check=False, capture_output=True, text=True)
    if options.verbose:
        print(done.stderr, file=sys.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = lines[-1] if lines else {"error": done.stderr[-1500:]}
    if len(lines) > 1:
        found = lines[-2] | found
    if options.rows is not None:
        with open(options.rows, "a") as file:
            file.write(json.dumps(found) + "\n")
    return found


def row(number: int, case: Case, budgets: list[int], found: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Print one line; whether time and peaks are as near as they should be, and whether no budget was passed."""
    report = found.get("report")
    if not report or not report.get("tokens"):
        print(f"{number:>2} {case.model:<14} failed: {found.get('error') or found}")
        return False, False, False
    seconds, forecast = report["tokens"]["median_s"], report["forecast_s"] or 0.0
    memory, parts = report["memory"], report["boards"]
    peaks = [(part["forecast_peak_nbytes"], part["peak_nbytes"], part["budget_nbytes"]) for part in parts[1:]]
    peaks.insert(0, (parts[0]["forecast_peak_nbytes"], memory["peak_nbytes"], memory["budget_nbytes"]))
    known = [one for one in peaks if one[0] and one[1]]
    off = [planned / (peak + found.get("shared_nbytes", 0)) - 1 for planned, peak, _ in known]
    over = any(peak > budget for _, peak, budget in known if budget)
    layers = "/".join(str(len(part["layers"])) for part in parts)
    print(
        f"{number:>2} {case.model:<14} {case.disk:>4} {case.rate:>7} {'/'.join(map(str, budgets)):<16} {layers:<12} "
        f"{forecast:>7.3f} {seconds:>8.3f} {forecast / seconds - 1:>+6.0%}  "
        f"{' '.join(f'{one:+.0%}' for one in off)}{'  OVER ITS BUDGET' if over else ''}",
        flush=True,
    )
    return abs(forecast / seconds - 1) <= IN_TIME, all(abs(one) <= IN_MEMORY for one in off), not over


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("bench-models"), help="where models are made")
    parser.add_argument("--case", type=int, action="append", help="only this one, from 1; may be repeated")
    parser.add_argument("--rows", type=Path, help="add what was found to this file, a JSON object a line")
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--inside", dest="model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="append", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is not None:
        inside(options)
        return
    least: dict[str, int] = {}
    print(" # model           disk    link budgets          layers       forecast measured  error  peaks")
    judged = []
    for number, case in enumerate(CASES, 1):
        if options.case and number not in options.case:
            continue
        model = (options.models / case.model).resolve()
        make_model(model)
        if case.model not in least:
            least[case.model] = smallest_mib(model)
        budgets = [least[case.model] + extra for extra in case.extra]
        judged.append(row(number, case, budgets, measure(case, model, budgets, options)))
    counts = [sum(one[at] for one in judged) for at in range(3)]
    print(
        f"of {len(judged)} cases: time within {IN_TIME:.0%} in {counts[0]}, all peaks within {IN_MEMORY:.0%} in "
        f"{counts[1]}, no budget passed in {counts[2]}"
    )


if __name__ == "__main__":
    main()
