"""Runs that read the disk of another board: the same answer, whoever dies, and nothing left on either side."""

from __future__ import annotations

import json
import re
import shutil
import signal
from contextlib import closing
from pathlib import Path

import pytest
from boards.lending import lender
from boards.served import Served
from campaigns.common import status_of
from launching import Launch, launch

from hermes_mp.errors import BoardLost, BoardUnknown, ModelNotFound, ModelsDiffer, NotAllowed, WeightsChanged

ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 16, "--memory", "none", "--remote-loader", "nas=2")
LONG = ("--prompt", "the ship", "--max-new-tokens", 58, "--memory", "none", "--remote-loader", "nas=2")


@pytest.fixture(scope="module")
def answer(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run says that reads here."""
    home = tmp_path_factory.mktemp("answer") / "home"
    return launch(home, "--model", models / "big", *ARGUMENTS[:-2], "--quiet").out


@pytest.fixture(scope="module")
def long_answer(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    home = tmp_path_factory.mktemp("answer") / "home"
    return launch(home, "--model", models / "big", *LONG[:-2], "--quiet").out


def test_beside_a_disk_of_its_own(models: Path, home: Path, tmp_path: Path, answer: str) -> None:
    with lender(tmp_path / "nas", models / "big") as nas:
        ended = launch(home, "--model", models / "big", *ARGUMENTS, "--loaders", 1, env=nas.env)
        nas.wait_until_free()
    assert (ended.code, ended.out) == (0, answer)
    assert re.search("^loaders   1, and 2 of nas; ", ended.err, re.MULTILINE)


def test_beside_a_board_that_runs_layers(models: Path, home: Path, tmp_path: Path, answer: str) -> None:
    flags = ("--model-dir", models, "--memory", "none", "--listen", "127.0.0.1:0", "--loaders", 1)
    with lender(tmp_path / "nas", models / "big") as nas, closing(Served(tmp_path / "shelf", *flags)) as shelf:
        words = ("--boards", shelf.boards_file(tmp_path / "boards.toml"), "--split", "head:5,shelf:3")
        ended = launch(home, "--model", models / "big", *ARGUMENTS, *words, "--loaders", 1, env=nas.env)
        nas.wait_until_free()
    assert (ended.code, ended.out) == (0, answer)
    assert re.search("^loaders   1, and 2 of nas; ", ended.err, re.MULTILINE), ended.err
    assert "shelf: layers 5-7" in ended.err


def test_without_a_copy(models: Path, home: Path, tmp_path: Path, answer: str) -> None:
    """Its embedding's rows come from there as well, and what it runs from is gone afterwards."""
    env = {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    with lender(tmp_path / "nas", models / "big") as nas:
        ended = launch(home, "--model", "big", *ARGUMENTS, env=nas.env | env)
        nas.wait_until_free()
    assert (ended.code, ended.out) == (0, answer)
    assert "big is not here: it runs from board nas, without a copy of the weights" in ended.err
    assert re.search("^loaders   none here, and 2 of nas; ", ended.err, re.MULTILINE)
    assert not list((tmp_path / "temporary").iterdir())


def test_within_a_budget(models: Path, home: Path, tmp_path: Path) -> None:
    """Remote loaders count, and residents stay."""
    with lender(tmp_path / "nas", models / "big") as nas:
        words = ("--model", "big", *ARGUMENTS, "--memory", "600MiB", "--json")
        ended = launch(home, *words, env=nas.env)
    report = ended.object["report"]
    assert report["remote_loaders"] == {"nas": 2}
    assert report["memory"]["peak_nbytes"] <= 600 << 20
    assert report["residents"] > 0


def test_who_looks_sees_which_loaders_are_whose(models: Path, home: Path, tmp_path: Path, long_answer: str) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", models / "big", *LONG, "--loaders", 1, env=nas.env) as run,
    ):
        run.wait_until_at_work(3)
        titles = sorted(title for title in run.processes().values() if title.startswith("hermes: loader"))
        assert titles == ["hermes: loader 0", "hermes: loader 1 (nas)", "hermes: loader 2 (nas)"]
        run.wait_for(lambda run: len((status_of(run) or {"loaders": []})["loaders"]) == 3)
        found = status_of(run)
        assert found is not None
        assert [one["board"] for one in found["loaders"]] == ["", "nas", "nas"]
        ended = run.ended()
    assert (ended.code, ended.out) == (0, long_answer)


def test_a_lender_that_is_killed_is_done_without(models: Path, home: Path, tmp_path: Path, long_answer: str) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", models / "big", *LONG, "--loaders", 1, env=nas.env) as run,
    ):
        run.wait_until_at_work(3)
        run.wait_for(lambda _: len(nas.loaders()) == 2)  # before that nobody may have reached it
        nas.kill()
        ended = run.ended()
    assert (ended.code, ended.out) == (0, long_answer)
    gone = r'loader [12] \(nas\) \(epoch \d\) ended .*last words: "board nas .* is gone"'
    assert re.search(gone, ended.err), ended.err[-4000:]


def test_a_lender_that_freezes_is_done_without(models: Path, home: Path, tmp_path: Path, long_answer: str) -> None:
    """Noticed by heartbeats; what it was to send is read here."""
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", models / "big", *LONG, "--loaders", 1, env=nas.env) as run,
    ):
        run.wait_until_at_work(3)
        nas.freeze()
        ended = run.ended()
    assert (ended.code, ended.out) == (0, long_answer)


def test_without_a_copy_a_lender_that_is_killed_ends_the_run(models: Path, home: Path, tmp_path: Path) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", "big", *LONG, env=nas.env) as run,
    ):
        run.wait_until_at_work(2)
        nas.kill()
        ended = run.ended()
    assert ended.code == BoardLost.exit_code
    assert re.search("^hermes-launch: nobody lends the model any more, .*board nas ", ended.err, re.MULTILINE)


def test_a_lender_that_comes_back_goes_on(models: Path, home: Path, tmp_path: Path, long_answer: str) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", "big", *LONG, env=nas.env) as run,
    ):
        run.wait_until_at_work(2)
        nas.kill()
        nas.restart()
        ended = run.ended()
    assert (ended.code, ended.out) == (0, long_answer)
    assert "it is replaced" in ended.err


def test_its_loaders_may_die(models: Path, home: Path, tmp_path: Path, long_answer: str) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", "big", *LONG, env=nas.env) as run,
    ):
        run.wait_until_at_work(2)
        for pid in nas.loaders():
            run.send(pid, signal.SIGKILL)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, long_answer)


def test_a_remote_loader_that_is_killed_is_replaced(models: Path, home: Path, tmp_path: Path, long_answer: str) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", "big", *LONG, env=nas.env) as run,
    ):
        run.wait_until_at_work(2)
        run.send(run.process("loader 1 (nas)"), signal.SIGKILL)
        ended = run.ended()
    assert (ended.code, ended.out) == (0, long_answer)
    assert re.search(r"loader 1 \(nas\) \(epoch 1\) ended \(killed by SIGKILL\).*; it is replaced", ended.err)


def test_a_head_that_is_killed_leaves_nothing_there(models: Path, home: Path, tmp_path: Path) -> None:
    with (
        lender(tmp_path / "nas", models / "big") as nas,
        Launch(home, "--model", models / "big", *LONG, "--loaders", 1, env=nas.env) as run,
    ):
        run.wait_until_at_work(3)
        assert len(nas.loaders()) == 2
        run.send(run.pid, signal.SIGKILL)
        nas.wait_until_free()
        assert not run.left_behind()


@pytest.mark.parametrize("how", ["truncated", "replaced"])
def test_a_file_that_changes_there_ends_the_run(models: Path, home: Path, tmp_path: Path, how: str) -> None:
    copy = tmp_path / "big"
    shutil.copytree(models / "big", copy)
    weights = copy / "model.safetensors"
    with (
        lender(tmp_path / "nas", copy) as nas,
        Launch(home, "--model", "big", *LONG, env=nas.env) as run,
    ):
        run.wait_until_at_work(2)
        if how == "truncated":
            with open(weights, "r+b") as file:
                file.truncate(weights.stat().st_size // 2)
        else:
            shutil.copy(weights, copy / "new")
            (copy / "new").replace(weights)
        ended = run.ended()
    assert ended.code == WeightsChanged.exit_code
    assert re.search(r"^hermes-launch: .*board nas: .*model\.safetensors", ended.err, re.MULTILINE)


def test_another_model_of_that_name(models: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "big"
    shutil.copytree(models / "gpt2", other)
    with lender(tmp_path / "nas", other) as nas:
        ended = launch(home, "--model", models / "big", *ARGUMENTS, env=nas.env)
    assert ended.code == ModelsDiffer.exit_code
    assert re.match(r"board nas: big is [0-9a-f]{12} on the head and [0-9a-f]{12} here; copy the same", ended.line)


def test_a_model_that_nobody_has(models: Path, home: Path, tmp_path: Path) -> None:
    with lender(tmp_path / "nas", models / "gpt2") as nas:
        ended = launch(home, "--model", "big", *ARGUMENTS, env=nas.env)
    assert ended.code == ModelNotFound.exit_code
    assert "board nas has no copy of big" in ended.line


def test_a_board_that_nobody_knows_or_that_is_not_there(models: Path, home: Path, tmp_path: Path) -> None:
    with lender(tmp_path / "nas", models / "gpt2") as nas:
        unknown = launch(home, "--model", "big", *ARGUMENTS[:-1], "pi=1", env=nas.env)
        nas.kill()
        lost = launch(home.with_name("second"), "--model", "big", *ARGUMENTS, env=nas.env)
    assert unknown.code == BoardUnknown.exit_code
    assert "not paired with pi" in unknown.line
    assert lost.code == BoardLost.exit_code
    assert "board nas" in lost.line


def test_a_head_that_is_not_allowed(models: Path, home: Path, tmp_path: Path) -> None:
    with lender(tmp_path / "nas", models / "gpt2") as nas:
        store = tmp_path / "nas" / "board" / "hermes-mp" / "pairings.json"
        said = json.loads(store.read_text())
        store.write_text(json.dumps(said | {"heads": {}}))
        ended = launch(home, "--model", "gpt2", *ARGUMENTS, env=nas.env)
    assert ended.code == NotAllowed.exit_code


def test_without_a_copy_there_are_no_loaders_here(models: Path, home: Path, tmp_path: Path) -> None:
    with lender(tmp_path / "nas", models / "gpt2") as nas:
        ended = launch(home, "--model", "gpt2", *ARGUMENTS, "--loaders", 2, env=nas.env)
    assert ended.code == 2
    assert "gpt2 is no directory here" in ended.line
