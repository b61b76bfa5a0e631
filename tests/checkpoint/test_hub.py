"""From a name to a directory: paths, a cache without network, a hub that answers, refuses, is silent or is gone."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from local_hub import COMMIT, local_hub
from safetensors.numpy import save

from hermes_mp.errors import (
    CheckpointBroken,
    DownloadFailed,
    HermesError,
    HubUnreachable,
    ModelNotFound,
    NoSafetensors,
    UnsupportedDtype,
    WriteFailed,
)
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.hub import outline, resolve

CLOSED = "http://127.0.0.1:9"
CONFIG = b'{"model_type": "bert"}'
WEIGHTS = save({"a": np.arange(6, dtype=np.float32)})
INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}).encode()
ONE_FILE = {"config.json": CONFIG, "model.safetensors": WEIGHTS}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own, and no network."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    return tmp_path / "hf" / "hub"


def put_in_cache(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """As huggingface_hub lays it out: refs/main names the snapshot, whose files are links to blobs."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / COMMIT
    for part in (folder / "refs", folder / "blobs", snapshot):
        part.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name, body in files.items():
        (folder / "blobs" / name).write_bytes(body)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    return snapshot


def quiet(_: str) -> None:
    pass


def refusal(model: str, kind: type[HermesError], match: str) -> HermesError:
    with pytest.raises(kind, match=match) as caught:
        resolve(model, quiet)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.line()
    return caught.value


def test_a_path_stays_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("org/name", quiet) == Path("org/name")
    assert resolve(str(tmp_path), quiet) == tmp_path
    assert resolve("~/org", quiet) == tmp_path / "org"


@pytest.mark.parametrize(
    "model", ["./none", "/none", "~/none", "../none", "a/b/c", "a/b/", "", "~nobody-here/x", "./" + "x" * 5000]
)
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(model: str) -> None:
    said: list[str] = []
    with pytest.raises(ModelNotFound, match="there is no directory"):
        resolve(model, said.append)
    assert said == []


@pytest.mark.parametrize("repo", ["org/name", "name"])
@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_cached_model_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch, repo: str, offline: str) -> None:
    snapshot = put_in_cache(cache, repo, ONE_FILE)
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    said: list[str] = []
    assert resolve(repo, said.append) == snapshot
    assert repo in said[0]
    assert list(find_checkpoint(snapshot).tensors) == ["a"]


def test_offline_and_not_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refusal("org/name", HubUnreachable, "org/name is not, or not wholly,").line()


def test_no_hub_and_not_in_the_cache() -> None:
    begun = time.monotonic()
    refusal("org/name", HubUnreachable, "the hub cannot be reached")
    assert time.monotonic() - begun < 15


def test_a_hub_that_takes_the_connection_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        refusal("org/name", HubUnreachable, "the hub cannot be reached")
        assert time.monotonic() - begun < 15


@pytest.mark.parametrize(
    "files", [{"config.json": CONFIG}, {}, {"config.json": CONFIG, "model.safetensors.index.json": INDEX}]
)
def test_a_cache_that_lacks_something(cache: Path, files: dict[str, bytes]) -> None:
    put_in_cache(cache, "org/name", files)
    refusal("org/name", HubUnreachable, "not, or not wholly, in the hub's cache")


def test_a_cache_of_pickled_weights(cache: Path) -> None:
    put_in_cache(cache, "org/name", {"config.json": CONFIG, "pytorch_model.bin": b""})
    refusal("org/name", NoSafetensors, r"pytorch_model\.bin")


def test_a_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        **ONE_FILE,
        "vocab.txt": b"a b",
        "pytorch_model.bin": b"x",
        "onnx/model.onnx": b"x",
        "other.safetensors": b"x",
    }
    with local_hub({"org/name": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        folder = resolve("org/name", quiet)
    assert folder == cache / "models--org--name" / "snapshots" / COMMIT
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert list(find_checkpoint(folder).tensors) == ["a"]
    monkeypatch.setenv("HF_ENDPOINT", CLOSED)
    assert resolve("org/name", quiet) == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/name", quiet) == folder


def test_headers_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with a limit on the length of files, as FAT has, and a folder that is none: one line each."""
    nbytes = 512 << 20
    header = json.dumps({"a": {"dtype": "F32", "shape": [nbytes // 4], "data_offsets": [0, nbytes]}}).encode()
    files = {"config.json": CONFIG, "model.safetensors": len(header).to_bytes(8, "little") + header}
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    with local_hub({"org/name": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, limits[1]))
        try:
            with pytest.raises(WriteFailed, match="folder: File too large") as caught:
                outline("org/name", tmp_path / "folder")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "TMPDIR" in caught.value.line()
        with pytest.raises(WriteFailed, match="Not a directory"):
            outline("org/name", tmp_path / "file")
        assert outline("org/name", tmp_path / "folder") == tmp_path / "folder"
    assert (tmp_path / "folder" / "model.safetensors").stat().st_size >= nbytes


def test_a_download_in_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX, "part-1.safetensors": WEIGHTS}
    files["part-2.safetensors"] = save({"b": np.arange(6, dtype=np.float32)})
    with local_hub({"org/name": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert sorted(find_checkpoint(resolve("org/name", quiet)).tensors) == ["a", "b"]


def test_shards_that_the_hub_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"config.json": CONFIG, "model.safetensors.index.json": INDEX, "part-1.safetensors": WEIGHTS}
    with local_hub({"org/name": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        refusal("org/name", CheckpointBroken, r"lacks part-2\.safetensors")
        assert not [path for path in hub.asked if path.endswith("part-1.safetensors")]


@pytest.mark.parametrize(
    ("files", "kind", "match"),
    [
        ({"config.json": CONFIG, "pytorch_model.bin": b"x"}, NoSafetensors, r"pytorch_model\.bin"),
        ({"config.json": CONFIG}, ModelNotFound, "holds neither"),
        ({"model.safetensors": WEIGHTS, "pytorch_model.bin": b"x"}, ModelNotFound, r"no config\.json"),
        (
            {**ONE_FILE, "config.json": b'{"quantization_config": {"quant_method": "awq"}}'},
            UnsupportedDtype,
            "method awq",
        ),
    ],
)
def test_refused_before_weights_travel(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], kind: type[HermesError], match: str
) -> None:
    with local_hub({"org/name": files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        refusal("org/name", kind, match)
        assert not [path for path in hub.asked if path.endswith((".bin", ".safetensors"))]


def test_a_model_that_the_hub_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        refusal("org/name", ModelNotFound, "no such model on the hub")
        refusal("org/na me", ModelNotFound, "neither a directory nor a hub id")


def test_a_gated_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with local_hub({"org/name": ONE_FILE}, gated=frozenset({"org/name"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert "accept its terms" in refusal("org/name", ModelNotFound, "org/name is gated").line()


def test_a_download_that_dies_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huggingface_hub.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.syspath_prepend(str(tmp_path))
    refusal("org/name", DownloadFailed, "ended by signal 9")


@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_the_download_ends_with_the_process_that_waits_for_it(how: str) -> None:
    code = "from hermes_mp.host.hub import resolve; resolve('org/name', lambda text: None)"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        with subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL, start_new_session=True
        ) as asking:
            connection, _ = silent.accept()  # now the download waits for an answer
            with connection:
                (download,) = psutil.Process(asking.pid).children()
                if how == "ctrl-c":
                    os.killpg(asking.pid, signal.SIGINT)
                else:
                    asking.kill()
                assert asking.wait(10) == -(signal.SIGINT if how == "ctrl-c" else signal.SIGKILL)
                assert psutil.wait_procs([download], 10)[1] == []
