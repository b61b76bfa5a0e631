"""HOST:PORT as people write it, apart and together again; it does not know whether anybody lives there."""

from __future__ import annotations

import re

from hermes_mp.errors import BadOption

DEFAULT_PORT = 7946
MAX_HOST_CHARS = 253  # of a name in the DNS


def split_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """('192.168.1.7', 7946) of `192.168.1.7:7946`, `board-a`, `[fe80::1]:7946`; BadOption where it is none of these."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", text, re.ASCII)
    port = int(found[3]) if found and found[3] else default_port
    if found is None or port is None or port > 65535 or len(text) > MAX_HOST_CHARS:
        raise BadOption(f"{text[:300]!r} is no address", "write HOST:PORT, such as 192.168.1.7:7946 or board-a:7946")
    return found[1] or found[2], port


def join_address(host: str, port: int) -> str:
    """`HOST:PORT`; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it, by the address alone: `localhost`, 127.x.y.z or ::1."""
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host, re.ASCII) is not None
