"""What was published of weights, what is known of them from earlier runs, and how that is kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hermes_mp.errors import CheckpointBroken
from hermes_mp.host import cachedir, checksums
from hermes_mp.host.checkpoint import Checkpoint, find_checkpoint

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/hermes-mp"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": np.arange(3_000_000, dtype=np.float32), "b": np.ones((2, 2), np.float32)}, folder / WEIGHTS)
    return folder


@pytest.fixture
def checkpoint(directory: Path) -> Checkpoint:
    return find_checkpoint(directory)


def sha256(directory: Path) -> str:
    return hashlib.sha256((directory / WEIGHTS).read_bytes()).hexdigest()


def hush(text: str) -> None: ...


def test_sums_beside_the_weights(directory: Path, checkpoint: Checkpoint) -> None:
    right = sha256(directory)
    other = "0" * 64
    (directory / checksums.SUMS).write_text(
        f"# comment\n{other}  ../{WEIGHTS}\n{right.upper()} *./{WEIGHTS}\n{other}  config.json\nxyz  {WEIGHTS}\n"
    )
    assert checksums.published(checkpoint) == {WEIGHTS: right}


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"0" * 4_000_000])
def test_sums_that_say_nothing(directory: Path, checkpoint: Checkpoint, content: bytes) -> None:
    (directory / checksums.SUMS).write_bytes(content)
    assert checksums.published(checkpoint) == {}


def test_the_hubs_cache_names_blobs_by_their_sum(tmp_path: Path, directory: Path) -> None:
    right = sha256(directory)
    (tmp_path / "blobs").mkdir()
    (directory / WEIGHTS).rename(tmp_path / "blobs" / right)
    (directory / WEIGHTS).symlink_to(Path("../blobs") / right)
    assert checksums.published(find_checkpoint(directory)) == {WEIGHTS: right}
    (tmp_path / "blobs" / right).rename(tmp_path / "blobs" / right[:40])  # a file of git itself: not its SHA-256
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).symlink_to(Path("../blobs") / right[:40])
    assert checksums.published(find_checkpoint(directory)) == {}


def test_a_file_is_compared_once(directory: Path, checkpoint: Checkpoint) -> None:
    said: list[str] = []
    (directory / checksums.SUMS).write_text(f"{sha256(directory)}  {WEIGHTS}\n")
    assert checksums.prove(checkpoint, {}, said.append) == ""
    assert said == [f"comparing {WEIGHTS} with its SHA-256: {percent} %" for percent in (0, 69)]
    assert checksums.prove(checkpoint, {}, said.append) == ""
    assert len(said) == 2
    assert checksums.recall(checkpoint).sha256 == {WEIGHTS: sha256(directory)}


def test_of_a_file_nothing_may_be_published_any_more(directory: Path, checkpoint: Checkpoint) -> None:
    (directory / checksums.SUMS).write_text(f"{sha256(directory)}  {WEIGHTS}\n")
    assert checksums.prove(checkpoint, {}, hush) == ""
    (directory / checksums.SUMS).write_text(f"{'0' * 64}  another\n")
    assert checksums.prove(checkpoint, {"another": "0" * 64}, hush) == ""


def test_sums_that_are_no_file(directory: Path, checkpoint: Checkpoint) -> None:
    os.mkfifo(directory / checksums.SUMS)
    assert checksums.published(checkpoint) == {}


def test_a_file_that_is_another_than_was_published(directory: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointBroken, match=f"{WEIGHTS} has the SHA-256 {sha256(directory)}, it was published with"):
        checksums.prove(checkpoint, {WEIGHTS: "0" * 64}, hush)
    assert checksums.recall(checkpoint).sha256 == {}


def test_nothing_published_nothing_read(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "sha256_of", None)
    assert checksums.prove(checkpoint, {}, hush) == ""


def test_the_index_is_of_these_very_files(directory: Path, checkpoint: Checkpoint, cache: Path) -> None:
    index = checksums.recall(checkpoint)
    index.units["u"] = 7
    assert index.keep() == ""
    assert checksums.recall(checkpoint).units == {"u": 7}
    assert [one for one in directory.iterdir() if one.name not in ("config.json", WEIGHTS)] == []
    assert [one.suffix for one in (cache / "checksums").iterdir()] == [".json"]
    content = (directory / WEIGHTS).read_bytes()
    (directory / "new").write_bytes(content)
    (directory / "new").rename(directory / WEIGHTS)
    assert checksums.recall(find_checkpoint(directory)).units == {}


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"sha256": {}, "units": {"a": "b"}}', '{"sha256": 3, "units": {}}',
                                    '{"sha256": {}, "units": {"a": Infinity}}'])
def test_a_damaged_index_is_none(checkpoint: Checkpoint, damage: str) -> None:
    index = checksums.recall(checkpoint)
    index.path.parent.mkdir(parents=True)
    index.path.write_text(damage)
    assert (checksums.recall(checkpoint).units, checksums.recall(checkpoint).sha256) == ({}, {})


def test_what_becomes_of_a_file(directory: Path) -> None:
    path = directory / WEIGHTS
    before = path.read_bytes()

    def change(how: object) -> str | None:
        (file,) = find_checkpoint(directory).files
        assert file.change() is None
        how()  # type: ignore[operator]
        found = file.change()
        path.write_bytes(before)
        return found

    size = len(before)
    assert change(lambda: os.truncate(path, 99)) == f"was truncated from {size} to 99 bytes"
    assert change(lambda: os.truncate(path, size + 1)) == f"has grown from {size} to {size + 1} bytes"
    assert change(path.unlink) == "was deleted"
    assert change(lambda: path.chmod(0o600)) == "was touched (renamed, linked, or its rights)"
    assert change(lambda: path.open("r+b").close()) is None
    assert change(lambda: os.utime(path, ns=(0, 0))) == "was written to"

    def replaced() -> None:
        (directory / "new").write_bytes(before)
        (directory / "new").rename(path)

    assert change(replaced) == "was replaced"


def test_a_full_disk_is_told_and_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = cache / "units/a.json"
    assert cachedir.keep(path, "old") == ""
    monkeypatch.setattr(os, "fsync", full)
    why = cachedir.keep(path, "new")
    assert why == f"nothing can be kept in {path.parent} (No space left on device)"
    assert path.read_text() == "old"
    assert [one.name for one in path.parent.iterdir()] == ["a.json"]


def test_what_is_kept_survives_a_power_cut(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on the disk before it gets its name, and the name before we go on."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def renamed(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    assert cachedir.keep(cache / "units/a.json", json.dumps(1)) == ""
    scratch, *others = done
    assert scratch.startswith("a.")
    assert scratch != "a.json"
    assert others == ["rename", "units"]
