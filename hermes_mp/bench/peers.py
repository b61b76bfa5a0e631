"""llama.cpp as a peer: its own `llama-bench`, asked for one cold run at a time. (accelerate is a kind of `worker`.)"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes_mp.bench.board import ControlGroup

TIMEOUT_S = 900.0
HELP_S = 20.0


class PeerFailed(Exception):
    """It ended without figures; the text says how."""


@dataclass(frozen=True)
class LlamaRun:
    """`first_s`: from the start of its process to the end of the prompt. `token_s`: each of the tokens after it."""

    first_s: float
    token_s: float
    threads: int
    nbytes: int
    build: str


def llama_command(binary: Path, gguf: Path, tokens: int, new_tokens: int, threads: int | None) -> list[str]:
    """One prompt and so many tokens, once, without the warm-up that would hide a cold start, weights mapped.

    Mapping, the only way that needs less memory than the model, is called otherwise since 2026. Raises PeerFailed.
    """
    try:
        help_text = subprocess.run([binary, "--help"], capture_output=True, text=True, timeout=HELP_S).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(f"{binary} cannot be run: {error}") from None
    mapped = ["-lm", "mmap"] if "--load-mode" in help_text else ["-mmp", "1"]
    words = [str(binary), "-m", str(gguf), "-p", str(tokens), "-n", str(new_tokens), "-r", "1", "--no-warmup"]
    words += [*mapped, "-o", "json"]
    return words + (["-t", str(threads)] if threads else [])


def run_llama(words: Sequence[str], groups: Sequence[ControlGroup]) -> LlamaRun:
    """Run it in `groups`. Raises PeerFailed."""

    def enter() -> None:
        for group in groups:
            group.enter(os.getpid())

    started = time.perf_counter()
    try:
        done = subprocess.run(
            list(words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_S,
            preexec_fn=enter if groups else None,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"no answer in {TIMEOUT_S:.0f} s") from None
    except (OSError, subprocess.SubprocessError) as error:  # the latter: it could not enter its groups
        raise PeerFailed(f"{words[0]} cannot be run: {error}") from None
    seconds = time.perf_counter() - started
    if done.returncode < 0:
        raise PeerFailed(f"killed by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        raise PeerFailed(f"exit code {done.returncode}: {last[0][:200]}")
    return parse_llama(done.stdout, seconds)


def parse_llama(text: str, seconds: float) -> LlamaRun:
    """What `llama-bench -o json` printed; the whole run took `seconds`. Raises PeerFailed."""
    try:
        tests: list[dict[str, Any]] = json.loads(text)
        generated = next(test for test in tests if test["n_gen"] and not test["n_prompt"])
        nanoseconds = sum(generated["samples_ns"])
        token_s = nanoseconds / len(generated["samples_ns"]) / generated["n_gen"] / 1e9
        return LlamaRun(
            seconds - nanoseconds / 1e9, token_s, int(generated["n_threads"]), int(generated["model_size"]),
            str(generated.get("build_commit", "")),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise PeerFailed(f"its answer is not understood: {type(error).__name__} {error}") from None
