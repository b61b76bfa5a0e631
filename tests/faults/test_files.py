"""Weights that change under a run, were published otherwise, or are read wrongly: found, named, never used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launching import Launch, launch

from hermes_mp import load
from hermes_mp.errors import WeightsChanged
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.checksums import recall

WEIGHTS = "model.safetensors"
ARGUMENTS = ("--max-new-tokens", 4, "--loaders", 2, "--memory", "none")


@pytest.fixture
def model(models: Path, tmp_path: Path) -> Path:
    """One of our own, to be harmed."""
    return Path(shutil.copytree(models / "big", tmp_path / "model"))


def replaced(path: Path) -> None:
    shutil.copyfile(path, path.with_name("new"))
    path.with_name("new").rename(path)


def overwritten(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(os.urandom(64))


CHANGES: dict[str, Callable[[Path], None]] = {
    "was truncated from": lambda path: os.truncate(path, 1 << 20),
    "was replaced": replaced,
    "was deleted": Path.unlink,
    "was written to": overwritten,
}


@pytest.mark.parametrize("how", list(CHANGES))
def test_a_change_under_a_run(model: Path, home: Path, how: str) -> None:
    """Between two requests: the second is not answered."""
    with Launch(home, "--model", model, *ARGUMENTS, lines=True) as run:
        run.write("the ship\n")
        run.wait_for(lambda run: "\n" in run.out)
        CHANGES[how](model / WEIGHTS)
        run.write("cold water\n")
        ended = run.ended()
    assert ended.code == WeightsChanged.exit_code
    assert ended.line.startswith(f"{model / WEIGHTS} {how}")
    assert ended.line.endswith(f"; {WeightsChanged.attempt}")
    assert ended.out.count("\n") == 1


def test_a_file_is_truncated_while_it_is_read(model: Path, home: Path) -> None:
    """As a failing card would: an error of the read, never a SIGBUS."""
    with Launch(home, "--model", model, "--prompt", "the ship", "--max-new-tokens", 60, *ARGUMENTS[2:]) as run:
        run.wait_for(lambda run: len(run.out) > 3)
        os.truncate(model / WEIGHTS, 1 << 20)
        ended = run.ended()
    assert ended.code == WeightsChanged.exit_code
    assert f"{model / WEIGHTS} was truncated from" in ended.err
    assert "Traceback" not in ended.err


def sums_of(model: Path) -> tuple[Path, dict[str, int]]:
    index = recall(find_checkpoint(model))
    return index.path, index.units


@pytest.mark.parametrize("mode", ["first", "always"])
def test_other_bytes_than_at_first_use(model: Path, home: Path, mode: str) -> None:
    """The index says what they were; here it is the index that is another, as no disk errs at our command."""
    run = ("--model", model, "--prompt", "the ship", *ARGUMENTS)
    first = launch(home / "1", *run)
    assert "trusted at first use" in first.err
    path, units = sums_of(model)
    assert len(units) > 3
    again = launch(home / "2", *run, "--verify", mode)
    assert again.out == first.out
    assert "had the known checksum" in again.err
    key = list(units)[2]
    path.write_text(json.dumps({"sha256": {}, "units": units | {key: units[key] ^ 1}}))
    ended = launch(home / "3", *run, "--verify", mode)
    assert ended.code == WeightsChanged.exit_code
    assert ended.out == ""
    line = ended.err.splitlines()[-1]
    assert line.endswith(f"; {WeightsChanged.attempt}")
    assert f"{model / WEIGHTS}: what was read of bytes " in line
    assert f"has the checksum {units[key]:08x}, it had {units[key] ^ 1:08x}" in line
    assert re.search(r" \(in \S+(?: to \S+)?, of unit \d+\) has", line)
    assert sums_of(model)[1][key] == units[key] ^ 1  # a wrong checksum is not believed the next time
    unchecked = launch(home / "4", *run, "--verify", "never")
    assert unchecked.out == first.out
    assert "weights   not checked (--verify never)" in unchecked.err


def test_other_bytes_than_were_published(model: Path, home: Path) -> None:
    run = ("--model", model, "--prompt", "the ship", *ARGUMENTS)
    sums = model / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  {WEIGHTS}\n")
    ended = launch(home / "1", *run)
    assert ended.code == 12
    assert ended.line.startswith(f"{model / WEIGHTS} has the SHA-256 ")
    assert launch(home / "2", *run, "--verify", "never").code == 0
    sums.write_text(f"{hashlib.sha256((model / WEIGHTS).read_bytes()).hexdigest()}  {WEIGHTS}\n")
    found = launch(home / "3", *run, "--json").object["report"]["verified"]
    assert found == {"mode": "first", "compared": 0, "trusted": found["trusted"], "sha256": True}
    assert found["trusted"] > 3


def test_a_caller_of_load_hears_of_it(model: Path, models: Path) -> None:
    import torch

    inputs = {"input_ids": torch.tensor([[5, 9]])}
    with load(model, loaders=1, memory=None) as streamed:
        streamed(**inputs)
        overwritten(model / WEIGHTS)
        with pytest.raises(WeightsChanged, match=f"{WEIGHTS} was written to while it was in use"):
            streamed(**inputs)


def test_a_cache_that_cannot_be_written_is_told_once(models: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    ended = launch(home, "--model", models / "big", "--prompt", "the ship", *ARGUMENTS, env=environment)
    assert ended.code == 0
    assert ended.err.count("nothing can be kept in ") == 1
