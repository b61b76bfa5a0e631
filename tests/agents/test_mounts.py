"""Which device a path lies on, of trees with the kernel's list of mounts in them."""

from __future__ import annotations

from pathlib import Path

from hermes_mp.host.mounts import device_of

MOUNTS = """\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
22 21 8:2 / /data rw - ext4 /dev/sda2 rw
23 22 0:44 / /data/my\\040models rw - nfs4 server:/models rw
24 21 8:3 / /data rw - ext4 /dev/sdb1 rw
"""


def test_the_innermost_and_last_mount_counts(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(MOUNTS)
    root = str(tmp_path)
    assert device_of("/home/x.safetensors", root) == "/dev/sda1 on /"
    assert device_of("/data/x.safetensors", root) == "/dev/sdb1 on /data"
    assert device_of("/database/x", root) == "/dev/sda1 on /"
    assert device_of("/data/my models/x", root) == "server:/models on /data/my models"


def test_without_a_list_nothing_is_said(tmp_path: Path) -> None:
    assert device_of("/data/x", str(tmp_path)) == ""
