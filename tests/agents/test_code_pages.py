"""Pages of code are given back, and the process goes on as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys

MIB = 1 << 20


def test_code_is_given_back_and_runs_all_the_same() -> None:
    code = """
import json, os
import torch
from hermes_mp.host import memory
from hermes_mp.host.code_pages import give_back_code
x = torch.randn(64, 64)
before, product = memory.quick(os.getpid()), x @ x
give_back_code()
after = memory.quick(os.getpid())
assert torch.equal(x @ x, product)
print(json.dumps([before.file_nbytes, after.file_nbytes, before.private_nbytes, after.private_nbytes]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    file_before, file_after, private_before, private_after = json.loads(done.stdout)
    assert file_after < file_before / 2
    assert abs(private_after - private_before) < 2 * MIB, "what differs from the file must stay"
