"""`hermes-doctor` as a user starts it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hermes_mp.cli import doctor
from hermes_mp.core.checkup import Finding, Level


def test_it_looks_at_this_machine(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    assert doctor.main(["--model", str(models / "big")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(re.match(r"(ok   |warn |bad  )\S| +-> \S", line) for line in lines)
    assert any(str(models / "big") in line for line in lines)


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["schema"], found["error"]) == (1, None)
    assert {one["level"] for one in found["findings"]} <= {level.value for level in Level}
    assert found["findings"][0].keys() == {"level", "what", "found", "attempt"}


def test_a_model_that_is_not_here_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--model", "openai-community/gpt2"]) == 0
    assert "warn model" in capsys.readouterr().out


def test_something_bad_has_its_exit_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    bad = [Finding(Level.OK, "python", "3.11"), Finding(Level.BAD, "memory", "100 MiB may be taken", "end others")]
    monkeypatch.setattr(doctor, "check", lambda facts: bad)
    assert doctor.main([]) == 1
    lines = ["ok   python  3.11", "bad  memory  100 MiB may be taken", "             -> end others"]
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [(["--model", "/no/such"], 10, "/no/such"), (["--modle", "x"], 2, "did you mean --model?")],
)
def test_wrong_input_is_one_line(words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([*words, "--json"]) == code
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("hermes-doctor: ")
    assert says in line
    assert json.loads(shown.out)["error"]["exit_code"] == code
