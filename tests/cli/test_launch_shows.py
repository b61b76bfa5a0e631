"""What a launch shows: its report, its trace, its progress on a terminal and elsewhere, and JSON whatever happens."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from launching import COLUMNS, DEADLINE_S, Launch, launch
from screen import Screen

MIB = 1 << 20


def events(trace: Path, row: str, name: str = "") -> list[dict[str, Any]]:
    """The events of one row of a trace, in order of time."""
    found = json.loads(trace.read_text())
    rows = {event["args"]["name"]: event["tid"] for event in found if event["name"] == "thread_name"}
    mine = [one for one in found if one["ph"] != "M" and one["tid"] == rows.get(row) and one["name"].startswith(name)]
    return sorted(mine, key=lambda event: event["ts"])


def screen_lines(written: str) -> list[str]:
    """What stands on a terminal that was written this."""
    screen = Screen(COLUMNS)
    screen.feed(written.replace("\r\n", "\n"))
    return screen.lines()


def test_the_report_has_every_figure(models: Path, home: Path) -> None:
    arguments = ("--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 6, "--memory", "560MiB")
    ended = launch(home, *arguments, "--sample-memory", "--loaders", 3)
    assert ended.code == 0
    shown = ended.err[ended.err.index("\npass ") :]  # a run of less than two seconds says nothing before it
    number = r"[0-9.e-]+"
    for line in (
        rf"^pass      {number} s \(median of 6\), {number} % of it waiting for weights$",
        rf"^token     {number} s \(median of 5\); first {number} s$",
        rf"^read      [0-9]+ [KM]iB per pass, at {number} MB/s \((direct|buffered|mixed)\), (.* in vain, )?"
        rf"first after {number} s$",
        r"^memory    [0-9]+ MiB at most, of 560 MiB allowed$",
        r"^ +daemon [0-9]+ MiB, loader 0 [0-9]+ MiB, .*loader 2 [0-9]+ MiB, compute [0-9]+ MiB, slots [0-9]+ MiB$",
        rf"^loaders   3; [0-9]+ slots of [0-9]+ MiB(, {number} units resident)?, .*pages$",
    ):
        assert re.search(line, shown, re.MULTILINE), f"{line} is not in\n{shown}"
    peak = int(re.findall(r"memory +([0-9]+) MiB", shown)[0])
    assert 200 < peak <= 560
    assert not re.search(r"[\r\x1b]", ended.err), "not on a terminal: plain lines"


def test_a_trace_has_a_row_for_every_agent(models: Path, home: Path) -> None:
    trace = home.with_name("trace.json")
    arguments = ("--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 6, "--trace", trace)
    ended = launch(home, *arguments, "--loaders", 3, "--memory", "none", "--json")
    reads = [event for number in range(3) for event in events(trace, f"loader {number}", "read unit")]
    assert len({event["tid"] for event in reads}) == 3
    computes = events(trace, "compute", "compute unit")
    units = 1 + max(event["args"]["unit"] for event in computes)
    seen = [event["args"]["unit"] for event in computes]
    assert set(seen) == set(range(units))
    kept = ended.object["report"]["residents"]  # of which compute says nothing after it has them
    assert 6 * (units - kept) <= len(seen) <= 6 * units
    waits = events(trace, "compute", "wait for unit")
    assert {event["args"]["unit"] for event in waits} <= set(range(units))
    assert len(events(trace, "passes", "pass")) == 6
    rows = sum(event["args"]["nbytes"] for event in events(trace, "compute", "read rows"))
    assert sum(event["args"]["nbytes"] for event in reads) + rows == ended.object["report"]["read_nbytes"]
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in reads + computes + waits)
    counted = [event for event in json.loads(trace.read_text()) if event["ph"] == "C"]
    slots = [event["args"] for event in counted if event["name"] == "slots"]
    assert max(sum(states.values()) for states in slots) == ended.object["report"]["slots"]
    assert all(max(states[name] for states in slots) > 0 for name in ("lent", "loaded", "held", "empty"))
    assert min(event["ts"] for event in reads) == pytest.approx(ended.object["report"]["first_read_s"] * 1e6, abs=1)


@pytest.mark.parametrize("stopped", ["before the answer", "within it"])
def test_a_terminal_is_never_silent(models: Path, home: Path, stopped: str) -> None:
    """The loaders hang: for 4 s nothing at all happens, and still something moves on the screen."""
    arguments = ("--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 40, "--memory", "none")
    plain = launch(home.with_name("plain"), *arguments, "--quiet").out
    with Launch(home, *arguments, "--loaders", 2, terminal=True) as run:
        if stopped == "within it":
            run.wait_for(lambda run: any(line.startswith(plain[:4]) for line in screen_lines(run.out)))
        loaders = [run.process(f"loader {number}") for number in range(2)]
        for pid in loaders:
            run.send(pid, signal.SIGSTOP)
        hung_s, before = run.now_s, len(run.silences)
        run.wait_for(lambda run: run.now_s > hung_s + 4)
        silence_s = max(run.silences[before:])
        for pid in loaders:
            run.send(pid, signal.SIGCONT)
        ended = run.ended()
    assert ended.code == 0
    assert silence_s < 2
    shown = "\n".join(screen_lines(ended.out)).split("\n\npass ")[0]
    assert shown.replace("\n", "") == plain.replace("\n", ""), "the answer is all that stays"


def test_a_serial_console_without_a_size_shows_progress_too(models: Path, home: Path) -> None:
    arguments = ("--model", models / "gpt2", "--prompt", "the ship", "--max-new-tokens", 1)
    with Launch(home, *arguments, terminal=True, size=(0, 0)) as run:
        assert "importing torch" in run.ended().out


def test_a_person_types_lines(models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "chat", "--max-new-tokens", 3, terminal=True) as run:
        for _ in range(2):
            seen = len(run.out)
            run.wait_for(lambda run, seen=seen: run.out.endswith("> ") and len(run.out) > seen)
            run.write("cold\n")
            run.wait_for(lambda run, seen=seen: "cold\r\n" in run.out[seen:])
        run.wait_for(lambda run: run.out.endswith("> "))
        run.write("\x04")
        ended = run.ended()
    assert ended.code == 0
    assert "pass " in ended.out


def test_json_is_one_object_also_where_everything_fails(models: Path, home: Path) -> None:
    unknown = launch(home, "--json", "--flub")
    assert unknown.code == 2
    assert unknown.object["error"] == {"exit_code": 2, "line": unknown.line}
    missing = launch(home.with_name("missing"), "--json", "--model", "./nowhere")
    assert missing.object["error"] == {"exit_code": 10, "line": missing.line}
    assert (missing.object["answers"], missing.object["report"]) == ([], None)


def test_one_request_that_fails_leaves_the_others_alone(models: Path, home: Path) -> None:
    lines = "cold\n" + 90 * "ship" + "\ncold"
    ended = launch(home, "--model", models / "gpt2", "--max-new-tokens", 4, "--json", stdin=lines)
    good, bad, again = ended.object["answers"]
    assert good == again
    assert bad == {"error": {"exit_code": 19, "line": ended.line}}
    assert ended.code == 19
    assert ended.object["error"] is None
    assert ended.object["report"]["passes"]["count"] == 8


def test_a_reader_that_has_enough_ends_the_run_quietly(models: Path, home: Path) -> None:
    with Launch(home, "--model", models / "big", "--prompt", "the ship", "--max-new-tokens", 60, "--quiet") as run:
        run.wait_for(lambda run: run.out)
        run.close_output()
        ended = run.ended()
    assert ended.code == 0
    assert ended.err == ""


@pytest.mark.parametrize(
    ("redirections", "code", "shown"),
    [
        ("<&- >&- 2>&-", 0, "^$"),
        ("</dev/null 2>/dev/full", 0, "violin"),
    ],
)
def test_closed_and_full_streams(home: Path, models: Path, redirections: str, code: int, shown: str) -> None:
    """What a shell may do; a daemon of an init system is started without any of the three."""
    home.mkdir()
    command = f'"{sys.executable}" -m hermes_mp.cli.launch --quiet {redirections}'
    ended = subprocess.run(["sh", "-c", command], cwd=home, capture_output=True, text=True, timeout=DEADLINE_S)
    assert ended.returncode == code
    assert re.search(shown, ended.stdout + ended.stderr)
    assert "Traceback" not in ended.stderr
