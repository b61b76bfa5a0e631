"""What this machine is called, and by which address others in the network reach it. It sends nothing."""

from __future__ import annotations

import re
import socket

from hermes_mp.config import is_name

FAR_AWAY = ("192.0.2.1", 9)  # of nobody: TEST-NET-1, RFC 5737


def host_name() -> str:
    """The first part of the host name, as a name of a board; `board` where it makes none."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])[:40].lstrip("-_")
    return name if is_name(name) else "board"


def lan_address() -> str | None:
    """The address from which packets leave this machine; None where it is in no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(FAR_AWAY)  # of a datagram socket: looks up the route, no packet
        except OSError:
            return None
        return str(probe.getsockname()[0])
