"""Which device a path lies on, by the kernel's list of mounts: the path itself is not touched, its disk may hang."""

from __future__ import annotations

import os
import re


def device_of(path: str, root: str = "") -> str:
    """As it was mounted (`/dev/mmcblk0p2`, `server:/models`) and where; "" where that cannot be told."""
    best = found = ""
    try:
        with open(f"{root}/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    for line in lines:
        left, _, right = line.partition(" - ")
        mount, source = plain(left.split()[4]), plain(right.split()[1])
        if os.path.commonpath((path, mount)) == mount and len(mount) >= len(best):  # the last one hides earlier ones
            best, found = mount, f"{source} on {mount}"
    return found


def plain(path: str) -> str:
    """As mountinfo writes it, with blanks and the like in octal, to what it is."""
    return re.sub(r"\\([0-7]{3})", lambda one: chr(int(one[1], 8)), path)
