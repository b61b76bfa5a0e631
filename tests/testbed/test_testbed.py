"""The test bed keeps what it promises: links, limits, trouble, and that nothing is left of it whatever ends it.

Figures are only bounded on the side that a noisy machine cannot break: no faster than asked, no nearer.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from testbed import ROOT, SCRIPT, TestBed, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")

MEASURE = ROOT / "cluster" / "measure.py"
PYTHON = [sys.executable, "-I", "-S", "-u"]
WITHIN_S = 30.0
# Echoes lines on one connection, and says what it has got.
ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    print("ready")
    asker = server.accept()[0]
    for line in asker.makefile("rb"):
        print("got " + line.decode().strip())
        asker.sendall(line)
"""
# For each word on stdin: sends it, and says what comes back within half a second, or that nothing does.
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as server:
    server.settimeout(0.5)
    print("ready")
    for line in sys.stdin:
        if line.strip() != "listen":
            server.sendall(line.encode())
        try:
            print(server.recv(100).decode().split())
        except TimeoutError:
            print("silence")
"""


def line_of(process: subprocess.Popen[Any]) -> str:
    """Its next line on stdout, which comes in time; read byte by byte, so that none waits in a buffer unseen."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], (), (), WITHIN_S)[0], f"it says nothing more than {line!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"it has ended, exit {process.wait(WITHIN_S)}, saying {line!r}"
        line += byte
    return line.decode().strip()


def says_nothing(process: subprocess.Popen[Any]) -> bool:
    return not select.select([process.stdout], (), (), 0)[0]


def said(process: subprocess.Popen[Any]) -> str:
    out: bytes = process.communicate(timeout=WITHIN_S)[0]
    assert process.returncode == 0
    return out.decode().strip()


def traces(bed: str) -> list[str]:
    """What is there of the bed of that name."""
    places = [("/run/netns", "hermes-bed{}-*"), ("/var/tmp/hermes-testbed", "{}"), ("/sys/fs/cgroup", "hermes-bed{}-*")]
    places += [(f"/sys/fs/cgroup/{kind}", "hermes-bed{}-*") for kind in ("memory", "blkio")]
    found = [str(path) for top, pattern in places for path in Path(top).glob(pattern.format(bed))]
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    return found + [line for line in mounts if f"hermes-testbed/{bed}/" in line]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def in_time(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        select.select((), (), (), 0.02)
    return True


@pytest.fixture
def slow_bed() -> Iterator[TestBed]:
    with TestBed(2, rate="80mbit", delay="5ms") as bed:
        yield bed


def test_two_beds_at_once_do_not_clash() -> None:
    with TestBed(3) as one, TestBed(2) as other:
        assert one.name != other.name
        assert len({bed.address(name) for bed in (one, other) for name in bed.names}) == 5
        names = [said(one.run(name, ["hostname"], stdout=subprocess.PIPE)) for name in one.names]
        assert names == ["board1", "board2", "board3"]
        homes = [said(one.run(name, ["sh", "-c", "cd; pwd"], stdout=subprocess.PIPE)) for name in one.names]
        assert homes == [str(one.home(name)) for name in one.names]
        for name in ("board2", "board3"):
            words = [*PYTHON, "-c", ECHO, one.address(name), str(one.port(name))]
            assert line_of(one.run(name, words, stdout=subprocess.PIPE)) == "ready"
            words = [*PYTHON, "-c", ASK, one.address(name), str(one.port(name))]
            assert line_of(one.run("board1", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) == "ready"
        lost = other.run("board1", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert lost.wait(WITHIN_S) == 1  # no way from one bed to the other


def test_links_are_no_better_than_asked(slow_bed: TestBed) -> None:
    server = slow_bed.run("board2", [*PYTHON, MEASURE, "serve"], stdout=subprocess.PIPE)
    assert line_of(server) == "ready"
    words = [*PYTHON, MEASURE, "link", slow_bed.address("board2")]
    mb_s, milliseconds = map(float, said(slow_bed.run("board1", words, stdout=subprocess.PIPE)).split())
    assert 0 < mb_s <= 10 * 1.1
    assert milliseconds >= 2 * 5
    slow_bed.link("board2", "delay", "20")
    slow_bed.link("board2", "rate", "8mbit")
    mb_s, milliseconds = map(float, said(slow_bed.run("board1", words, stdout=subprocess.PIPE)).split())
    assert 0 < mb_s <= 1 * 1.1
    assert milliseconds >= 2 * 20


@pytest.mark.parametrize(
    ("trouble", "arrives"), [(["cut"], False), (["half-open", "in"], False), (["half-open", "out"], True)]
)
def test_trouble_is_silent_and_heals(trouble: list[str], arrives: bool) -> None:
    with TestBed(2) as bed:
        at = [bed.address("board2"), str(bed.port("board2"))]
        server = bed.run("board2", [*PYTHON, "-c", ECHO, *at], stdout=subprocess.PIPE)
        assert line_of(server) == "ready"
        asker = bed.run("board1", [*PYTHON, "-c", ASK, *at], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert line_of(asker) == "ready"
        assert asker.stdin is not None

        def ask(word: str) -> str:
            asker.stdin.write(f"{word}\n".encode())
            asker.stdin.flush()
            return line_of(asker)

        assert ask("one") == "['one']"
        assert line_of(server) == "got one"
        bed.link("board2", *trouble)
        assert ask("two") == "silence"  # no reset, no error
        if arrives:
            assert line_of(server) == "got two"
        else:
            assert says_nothing(server)
        bed.link("board2", "restore")
        assert in_time(lambda: ask("listen") == "['two']")  # TCP has kept it
        assert ask("three") == "['three']"


def test_lost_packets_are_sent_again(slow_bed: TestBed) -> None:
    slow_bed.link("board1", "loss", "5%")
    at = [slow_bed.address("board2"), str(slow_bed.port("board2"))]
    server = slow_bed.run("board2", [*PYTHON, "-c", ECHO, *at], stdout=subprocess.PIPE)
    assert line_of(server) == "ready"
    send = "import socket, sys; to = (sys.argv[1], int(sys.argv[2]))\n"
    send += "socket.create_connection(to, 30).sendall(b'x' * 99999 + b'\\n')"
    assert slow_bed.run("board1", [*PYTHON, "-c", send, *at]).wait(WITHIN_S) == 0
    assert line_of(server) == "got " + "x" * 99999


def test_memory_kills() -> None:
    with TestBed(2, memory="64M,none") as bed:
        fill = [*PYTHON, "-c", "import sys; b'x' * 200_000_000; print('full')"]
        assert bed.run("board1", fill, stdout=subprocess.PIPE).wait(WITHIN_S) == -signal.SIGKILL
        assert said(bed.run("board2", fill, stdout=subprocess.PIPE)) == "full"


def test_the_disk_is_capped() -> None:
    with ExitStack() as stack:
        try:
            bed = stack.enter_context(TestBed(1, disk="20M", disk_of="/var/tmp"))
        except RuntimeError as error:  # no disk that can be capped: an overlay, say
            pytest.skip(str(error))
        file = bed.directory / "file"
        file.write_bytes(os.urandom(16_000_000))
        read = bed.run("board1", [*PYTHON, MEASURE, "disk", file], stdout=subprocess.PIPE)
        assert 0 < float(said(read)) <= 20 * 1.1


def test_it_ends_as_its_command_and_leaves_nothing() -> None:
    command = ["sh", "-c", "echo $HERMES_TESTBED; exit 7"]
    done = run_bed("--disk", "none", "--", *command)
    assert done.returncode == 7
    assert not traces(done.stdout.strip())


@pytest.mark.parametrize("what", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_command_and_bed(what: signal.Signals) -> None:
    script, bed, wire = started()
    with script:
        script.send_signal(what)
        assert script.wait(WITHIN_S) == 128 + what
    assert not traces(bed)
    assert in_time(lambda: not runs(wire))


def test_what_a_killed_one_leaves_is_removed() -> None:
    script, bed, wire = started()
    with script:
        script.kill()
        script.wait(WITHIN_S)
        assert traces(bed)
        subprocess.run([SCRIPT, "--clean", bed], check=True, capture_output=True, timeout=WITHIN_S)
        assert not traces(bed)
        assert in_time(lambda: not runs(wire))


def test_a_command_that_is_killed_ends_the_bed() -> None:
    command = ["sh", "-c", "echo $HERMES_TESTBED; kill -9 $$"]
    done = run_bed("--disk", "none", "--", *command)
    assert done.returncode == 128 + signal.SIGKILL
    assert not traces(done.stdout.strip())


def test_a_kept_bed_stays_until_it_is_cleaned() -> None:
    done = run_bed("--keep", "--disk", "none", "--", "sh", "-c", "echo $HERMES_TESTBED")
    bed = done.stdout.strip()
    variables = {**os.environ, "HERMES_TESTBED": bed}
    name = subprocess.run([SCRIPT, "exec", "board1", "hostname"], env=variables, check=True, capture_output=True)
    assert name.stdout == b"board1\n"
    subprocess.run([SCRIPT, "--clean", bed], check=True, capture_output=True, timeout=WITHIN_S)
    assert not traces(bed)


@pytest.mark.parametrize(
    "words",
    [
        ["0", "--", "true"], ["2"], ["2", "--rate", "fast", "--", "true"], ["2", "--delay", "-1", "--", "true"],
        ["2", "--memory", "lots", "--", "true"], ["2", "--disk"], ["2", "--unknown"],
    ],
)  # fmt: skip
def test_bad_words_get_one_line(words: list[str]) -> None:
    done = subprocess.run([SCRIPT, *words], check=False, capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def run_bed(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, "2", *words], check=False, capture_output=True, text=True, timeout=WITHIN_S)


def started() -> tuple[subprocess.Popen[bytes], str, int]:
    """A test bed with a command that would run on, and the name of the bed and its wire's pid."""
    command = ["sh", "-c", "echo $HERMES_TESTBED; exec sleep 1000"]
    script = subprocess.Popen(
        [SCRIPT, "2", "--disk", "none", "--", *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    bed = line_of(script)
    assert traces(bed)
    return script, bed, int(Path(f"/var/tmp/hermes-testbed/{bed}/wire.pid").read_text())
