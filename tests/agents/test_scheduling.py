"""Short turns: taken where the kernel knows of them, and harmless where it does not."""

from __future__ import annotations

import os
import subprocess
import sys

ASK = "from hermes_mp.host.scheduling import take_short_turns as t; import os; print(t(), t(), os.getpriority(0, 0))"


def test_short_turns_are_taken_and_keep_the_nice_value() -> None:
    asking = ["nice", "-n", "3", sys.executable, "-c", ASK]
    found = subprocess.run(asking, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    supported = os.uname().machine in ("x86_64", "aarch64")  # Linux takes the call since 3.14, and minds it since 6.12
    nice = str(min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3))
    assert found == [str(supported), str(supported), nice]
