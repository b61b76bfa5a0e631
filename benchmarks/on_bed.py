"""Boards on the test bed, paired and serving, for the benchmarks beside this file: started, asked, and ended.

As root, on a machine with cluster/testbed.sh's needs; every board reads the same files, past the page cache, through a
disk cap of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from testbed import TestBed  # type: ignore[import-not-found]  # noqa: E402  # the path is set just above

BOARD = [sys.executable, "-m", "hermes_mp.cli.board"]
LAUNCH = [sys.executable, "-m", "hermes_mp.cli.launch"]
START_S = 30.0
HEAD = "board1"


class Failed(Exception):
    """A run did not answer."""


class Boards:
    """`count` boards, board1 being the head; the others serve `model` with `memory` and are paired with it."""

    def __init__(self, count: int, model: Path, memory: str, extra: int = 0, **bed: Any) -> None:
        """`extra` boards more are only there."""
        self.bed = TestBed(count + extra, disk_of=str(model), **bed)
        self.others = self.bed.names[1:count]
        self._serve = [*BOARD, "serve", "--model-dir", str(model), "--loaders", "1", "--memory", memory]
        self._model = model
        self._env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.serving: dict[str, subprocess.Popen[Any]] = {}

    def __enter__(self) -> Boards:
        self.bed.__enter__()
        try:
            for name in self.others:
                self._start(name)
        except BaseException:
            self.bed.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for run in self.serving.values():
            run.terminate()
        self.bed.__exit__(kind, error, at)

    def _start(self, name: str) -> None:
        init = [*BOARD, "init", "--name", name, "--address", self.bed.address(name)]
        token = self.call(name, init)
        log = self.bed.directory / f"{name}.log"
        with open(log, "wb") as file:
            self.serving[name] = self.bed.run(name, self._serve, env=self._env, stdout=file, stderr=file)
        until_s = time.monotonic() + START_S
        while b"serves at" not in log.read_bytes():
            if time.monotonic() > until_s or self.serving[name].poll() is not None:
                raise Failed(log.read_text())
            time.sleep(0.05)
        self.call(HEAD, [*BOARD, "join"], token)

    def call(self, board: str, command: list[str], said: str = "", meanwhile: Callable[[], None] | None = None) -> str:
        """What a command says in that board; `meanwhile` is called once it has been started."""
        run = self.bed.run(
            board, command, env=self._env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        if meanwhile is not None:
            meanwhile()
        out, err = run.communicate(said)
        if run.returncode:
            raise Failed(f"{board}: {' '.join(command[2:5])}: {err}{out}")
        return str(out)

    def stages(self, name: str) -> int:
        """How many stages that board has begun."""
        log: Path = self.bed.directory / f"{name}.log"
        return log.read_text().count("runs a stage of")

    def launch(self, *words: str, meanwhile: Callable[[], None] | None = None) -> dict[str, Any]:
        """The object of a run on all boards, decoding from three tokens."""
        shared = [word for name in self.others for word in ("--board", name)]
        command = [*LAUNCH, "--model", str(self._model), "--loaders", "1", "--context", "64", "--token-ids", "5,6,7",
                   "--temperature", "0", "--json", "--verify", "never", *shared, *words]  # fmt: skip
        found: dict[str, Any] = json.loads(self.call(HEAD, command, meanwhile=meanwhile))
        return found


def make_llama(folder: Path, layers: int = 32, width: int = 512, inner: int = 1536) -> Path:
    """A Llama in float32 with few words, so that what is read is layers: 13.6 MB each, unless told otherwise."""
    import torch
    import transformers

    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8,
            num_key_value_heads=8, vocab_size=1024, max_position_embeddings=512, tie_word_embeddings=False,
        )  # fmt: skip
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder.resolve()
