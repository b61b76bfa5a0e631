"""A model directory as it lies on the disk: config.json, the safetensors files, and where each tensor begins.

It reads headers only (a few ms, no torch, no transformers, no mmap) and writes nothing. It does not know which tensors
a model uses; it refuses what could not be read in place: pickled weights, quantised checkpoints, broken files.
Which weights file counts follows transformers: config's `transformers_weights`, else model.safetensors, else its index.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes_mp.core.header import LENGTH_NBYTES, Header, TensorInfo, header_length, parse_header
from hermes_mp.errors import CheckpointBroken, HermesError, ModelNotFound, NoSafetensors, ReadFailed, UnsupportedDtype
from hermes_mp.host.retrying import retried

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx")
MAX_JSON_NBYTES = 32 * 1024 * 1024  # the index of a 92,000-tensor model takes 9 MB


@dataclass(frozen=True)
class Stamp:
    """What of a file changes when it is written to or replaced."""

    inode: int
    nbytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class CheckpointFile:
    """One weights file, as it was when its header was read; its place in `Checkpoint.files` is its file number."""

    path: Path
    stamp: Stamp

    @property
    def nbytes(self) -> int:
        return self.stamp.nbytes

    def change(self) -> str | None:
        """What has become of it since, in a few words; None where it is as it was."""
        try:
            now = Stamp.of(retried(os.stat, self.path))
        except FileNotFoundError:
            return "was deleted"
        except OSError:  # no change: who reads it says what is wrong
            return None
        then = self.stamp
        if now == then:
            return None
        if now.inode != then.inode:
            return "was replaced"
        if now.nbytes != then.nbytes:
            how = "was truncated" if now.nbytes < then.nbytes else "has grown"
            return f"{how} from {then.nbytes} to {now.nbytes} bytes"
        return "was written to" if now.mtime_ns != then.mtime_ns else "was touched (renamed, linked, or its rights)"


@dataclass(frozen=True)
class Checkpoint:
    """Every tensor by name as (file number, where). `digest` changes when config, headers, sizes or mtimes do."""

    directory: Path
    config: dict[str, Any]
    files: tuple[CheckpointFile, ...]
    tensors: dict[str, tuple[int, TensorInfo]]
    metadata: dict[str, str]
    digest: str

    def tensors_in(self, file: int, begin: int, end: int) -> list[str]:
        """The names of those that have bytes there, in the file's order."""
        found = [where for number, where in self.tensors.values() if number == file]
        return [one.name for one in sorted(found, key=lambda one: one.begin) if one.begin < end and begin < one.end]


def find_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers of the checkpoint in `directory`.

    Raises ModelNotFound, NoSafetensors, UnsupportedDtype, CheckpointBroken or, where the disk refuses, ReadFailed.
    """
    config = read_config(directory)
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise ModelNotFound(f"the path {str(directory)!r} is not UTF-8", "rename the directory") from None
    digest = hashlib.blake2b(json.dumps(config).encode(), digest_size=16)
    names, placed_in = _files(directory, config)
    files: list[CheckpointFile] = []
    tensors: dict[str, tuple[int, TensorInfo]] = {}
    metadata: dict[str, str] = {}
    for file_no, name in enumerate(names):
        file, header, raw = _read_header(directory / name)
        digest.update(json.dumps([name, file.nbytes, file.stamp.mtime_ns, len(raw)]).encode() + raw)
        files.append(file)
        metadata.update(header.metadata)
        for tensor in header.tensors.values():
            if tensor.name in tensors:
                other = files[tensors[tensor.name][0]].path.name
                raise CheckpointBroken(f"tensor {tensor.name!r} is both in {other} and in {name} of {directory}")
            tensors[tensor.name] = (file_no, tensor)
    for tensor_name, name in placed_in.items():
        if tensor_name not in tensors or names[tensors[tensor_name][0]] != name:
            raise CheckpointBroken(f"{directory / name} lacks tensor {tensor_name!r} that the index places there")
    return Checkpoint(directory, config, tuple(files), tensors, metadata, digest.hexdigest())


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model that is not quantised."""
    if not os.path.exists(directory):  # unlike Path.exists, no PermissionError
        raise ModelNotFound(f"there is no directory {directory}")
    if not os.path.isdir(directory):
        raise ModelNotFound(f"{directory} is not a directory")
    if not os.path.isfile(directory / CONFIG):
        raise ModelNotFound(f"{directory} holds no {CONFIG}")
    config = _json_object(directory / CONFIG, _read_json_bytes(directory / CONFIG))
    for part in (config, config.get("text_config")):
        quantization = part.get("quantization_config") if isinstance(part, dict) else None
        if quantization:
            method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else "unnamed"
            raise UnsupportedDtype(f"{directory} is quantised (method {method})")
    return config


def weights_files(directory: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The names of the weights files, in transformers' order; they need not exist."""
    return _files(directory, config)[0]


def _files(directory: Path, config: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names of the weights files in order, and the index: in which of them each tensor is said to be."""
    explicit = config.get("transformers_weights")
    if explicit is not None:
        if not _is_plain(explicit) or not explicit.endswith((".safetensors", ".safetensors.index.json")):
            raise CheckpointBroken(f"{directory / CONFIG} names weights that are no safetensors file: {explicit!r}")
        if explicit.endswith(".json"):
            return _sharded(directory / explicit)
        return (explicit,), {}
    if os.path.isfile(directory / WEIGHTS):
        return (WEIGHTS,), {}
    if os.path.isfile(directory / WEIGHTS_INDEX):
        return _sharded(directory / WEIGHTS_INDEX)
    raise _no_weights(directory)


def _sharded(index_path: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    weight_map = _json_object(index_path, _read_json_bytes(index_path)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointBroken(f"{index_path} has no weight_map")
    for name, shard in weight_map.items():
        if not _is_plain(shard) or not shard.endswith(".safetensors"):
            raise CheckpointBroken(f"{index_path} places {name!r} in {shard!r}, not a safetensors file beside it")
    return tuple(sorted(set(weight_map.values()))), weight_map


def _is_plain(name: object) -> bool:
    """A file name that cannot lead out of its directory."""
    return isinstance(name, str) and "/" not in name and "\0" not in name and name not in ("", ".", "..")


def _no_weights(directory: Path) -> HermesError:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ReadFailed(f"{directory} cannot be listed: {error.strerror}") from error
    other = next((name for name in names if name.endswith(OTHER_FORMATS)), None)
    safetensors = next((name for name in names if name == WEIGHTS_INDEX or name.endswith(".safetensors")), None)
    if safetensors in (WEIGHTS, WEIGHTS_INDEX):
        return CheckpointBroken(f"{directory / safetensors} is a broken link or not a file")
    if safetensors is not None:
        return ModelNotFound(f"{directory} holds {safetensors}, but neither {WEIGHTS} nor {WEIGHTS_INDEX}")
    if other is not None:
        return NoSafetensors(f"{directory} holds {other}, but no safetensors file")
    return ModelNotFound(f"{directory} holds no weights: neither {WEIGHTS} nor {WEIGHTS_INDEX}")


def _read_header(path: Path) -> tuple[CheckpointFile, Header, bytes]:
    """The file, what its header says, the header's bytes."""
    with _Opened(path) as opened:
        length = opened.read(LENGTH_NBYTES, 0)
        try:
            header_nbytes = header_length(length, opened.nbytes)
            raw = opened.read(header_nbytes, LENGTH_NBYTES)
            header = parse_header(raw, opened.nbytes, header_nbytes)
        except CheckpointBroken as error:
            raise CheckpointBroken(f"{path}: {error}") from error
        return CheckpointFile(path, opened.stamp), header, length + raw


def _read_json_bytes(path: Path) -> bytes:
    with _Opened(path) as opened:
        if opened.nbytes > MAX_JSON_NBYTES:
            raise CheckpointBroken(f"{path} has {opened.nbytes} bytes; {MAX_JSON_NBYTES} is the most we read")
        return opened.read(opened.nbytes, 0)


def _json_object(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors
        raise CheckpointBroken(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointBroken(f"{path} is not a JSON object")
    return value


class _Opened:
    """A regular file, open for a few small reads; the errors of the OS come out named."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> _Opened:
        try:
            # a FIFO must not hang us
            self._fd = retried(os.open, self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise CheckpointBroken(f"{self.path} is missing") from error
        except OSError as error:
            raise ReadFailed(f"{self.path} cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(self._fd)
        except OSError as error:
            os.close(self._fd)
            raise ReadFailed(f"{self.path} cannot be looked at: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise CheckpointBroken(f"{self.path} is not a file")
        self.stamp = Stamp.of(status)
        self.nbytes = status.st_size
        return self

    def read(self, nbytes: int, offset: int) -> bytes:
        """So many bytes, or all that there are from there on."""
        found = b""
        while len(found) < nbytes:
            at = offset + len(found)
            try:
                part = retried(os.pread, self._fd, nbytes - len(found), at)
            except OSError as error:
                text = f"{self.path} cannot be read at byte {at}: {error.strerror}"
                raise ReadFailed(text, offset=at) from error
            if not part:
                break
            found += part
        return found

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        os.close(self._fd)
