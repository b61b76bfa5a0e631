"""Short turns: taken where the kernel knows of them, and harmless where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from hermes_mp.host.scheduling import SLICE_NS, short_turns, slice_ns

ASK = "from hermes_mp.host.scheduling import take_short_turns as t; import os; print(t(), t(), os.getpriority(0, 0))"


def test_short_turns_are_taken_and_keep_the_nice_value() -> None:
    asking = ["nice", "-n", "3", sys.executable, "-c", ASK]
    found = subprocess.run(asking, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    supported = os.uname().machine in ("x86_64", "aarch64")  # Linux takes the call since 3.14, and minds it since 6.12
    nice = str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3))
    assert found == [str(supported), str(supported), nice]


def test_threads_started_inside_keep_short_turns_and_the_caller_has_its_own_again() -> None:
    before_ns, inside = slice_ns(), threading.Event()
    found: list[int] = []

    def look() -> None:
        inside.wait(10)
        found.append(slice_ns())

    with short_turns():
        thread = threading.Thread(target=look)
        thread.start()
    assert slice_ns() == before_ns
    inside.set()
    thread.join()
    assert found == [SLICE_NS if before_ns else 0], "kernels before 6.12 know of none"


def test_a_child_takes_usual_turns() -> None:
    ask = (
        "from hermes_mp.host.scheduling import slice_ns, take_short_turns, take_usual_turns; import subprocess, sys\n"
        "usual = slice_ns(); take_short_turns(); print(usual)\n"
        "words = 'from hermes_mp.host.scheduling import *; print(slice_ns()); take_usual_turns(); print(slice_ns())'\n"
        "print(subprocess.run([sys.executable, '-c', words], capture_output=True, text=True).stdout)"
    )
    asking = [sys.executable, "-c", ask]
    usual, inherited, own = subprocess.run(asking, capture_output=True, text=True, check=True).stdout.split()
    assert own == usual
    assert inherited == (str(SLICE_NS) if usual != "0" else "0")
