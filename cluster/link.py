"""The wire of a test bed: carries Ethernet frames between boards with rate, delay, loss and trouble.

`link.py serve ...` makes `eth0` in each board's network namespace (a TAP device), goes to the background once they are
there, and is the switch between them; `link.py tell SOCKET BOARD WHAT...` changes a board's link while it is up.
It knows no addresses but the boards' own MACs, starts no boards and limits neither memory nor disks: see testbed.sh.
Only the standard library: it runs with any Python from 3.10 on, and takes some 10 MB.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import fcntl
import gc
import heapq
import os
import random
import re
import select
import signal
import socket
import struct
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

# linux/if_tun.h, linux/sched.h, linux/sockios.h
TUNSETIFF, TUNSETOFFLOAD, SIOCGIFHWADDR = 0x400454CA, 0x400454D0, 0x8927
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 0x01, 0x02, 0x04
CLONE_NEWNET = 0x40000000
# struct virtio_net_hdr, before each frame: flags, kind of offload, length of headers, payload per packet of a real
# wire. With it TCP hands over up to 64 KiB at a time: 1,900 reads and writes for 125 MB instead of 83,000.
OFFLOAD = struct.Struct("=BBHH4x")
MOST_NBYTES = OFFLOAD.size + (1 << 16) + 64
BETWEEN_FRAMES_NBYTES = 24  # preamble, check sum, gap: why a wire of 125 MB/s carries 117.7 MB/s of TCP
SWITCH_NBYTES = 1 << 20  # what a small switch holds for one port; then it drops
MOST_LATE_S = 200e-6  # a virtual machine takes 100 us to come back from idle
FRAMES_PER_TURN = 16  # read from a board before others have theirs
ANSWER_S = 5.0
LOOKS_EVERY_S = 5.0  # whether its bed is still there
RATES = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
WAYS = ("in", "out")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BadLink(ValueError):
    """Nothing that can be done to a link, or no such board."""


@dataclass(frozen=True)
class Quality:
    """What a link gives; `ways` are the directions in which packets pass, as its board sees them."""

    rate_bit_s: float = 1e9
    delay_s: float = 0.0
    loss: float = 0.0
    ways: tuple[str, ...] = WAYS


class Link:
    """A board's end of the wire."""

    def __init__(self, name: str, namespace: Path, quality: Quality) -> None:
        self.name, self.asked, self.now = name, quality, quality
        self.sent_by = self.free_at = 0.0  # when what is on its way from it, to it, will have passed
        self.fd = _tap_in(namespace)
        request = fcntl.ioctl(self.fd, SIOCGIFHWADDR, bytes(40))
        self.mac = request[18:24]

    def sends_large(self, large: bool) -> None:
        """Whether the kernel may hand over 64 KiB at once, or cuts it to packets as they are on a real wire."""
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, TUN_F_CSUM | (TUN_F_TSO4 | TUN_F_TSO6 if large else 0))

    def told(self, words: list[str]) -> None:
        """Do what a line of `tell` says; raises BadLink."""
        match words:
            case ["restore"]:
                self.now = self.asked
            case ["cut"]:
                self.now = replace(self.now, ways=())
            case ["half-open", ("in" | "out") as dead]:
                self.now = replace(self.now, ways=tuple(way for way in WAYS if way != dead))
            case ["delay", text]:
                self.now = replace(self.now, delay_s=delay_s(text))
            case ["rate", text]:
                self.now = replace(self.now, rate_bit_s=rate_bit_s(text))
            case ["loss", text]:
                self.now = replace(self.now, loss=loss(text))
            case _:
                there = "cut, restore, delay MS, rate RATE, loss PCT, half-open in, half-open out"
                raise BadLink(f"no such thing to do to a link: {' '.join(words)!r}; there is {there}")


class Wire:
    """The switch that all links end in."""

    def __init__(self, links: list[Link], orders: socket.socket) -> None:
        self._links = {link.name: link for link in links}
        self._by_mac = {link.mac: link for link in links}
        self._by_fd = {link.fd: link for link in links}
        self._orders = orders
        self._due: list[tuple[float, int, Link, Link, bytes]] = []
        self._number = 0
        self._late_s = 0.0  # how late a timer wakes us, lately: we ask to be woken so much earlier, and spin the rest
        self._counts = {"carried": 0, "nbytes": 0, "lost": 0}
        self._choose_sizes()

    def _choose_sizes(self) -> None:
        """Where packets get lost, packets of their real size: else 44 of them would be lost at a time, and 44 kept."""
        lossy = any(link.now.loss for link in self._links.values())
        for link in self._links.values():
            link.sends_large(not lossy)

    def serve(self) -> None:
        """Until its socket's file is gone, and with it the bed. select, for it alone waits for microseconds."""
        watched = [*self._by_fd, self._orders.fileno()]
        looks = 0.0
        while True:
            wakes = self._due[0][0] - self._late_s if self._due else None
            wait_s = max(0.0, wakes - time.monotonic()) if wakes else LOOKS_EVERY_S
            ready = select.select(watched, (), (), wait_s)[0]
            now = time.monotonic()
            if now > looks:
                if not os.path.exists(self._orders.getsockname()):
                    return
                looks = now + LOOKS_EVERY_S
            if wakes and wait_s and not ready:
                self._late_s += (min(now - wakes, MOST_LATE_S) - self._late_s) / 16
            for fd in ready:
                if fd in self._by_fd:
                    self._take(self._by_fd[fd])
                else:
                    self._obey()
            while self._due and self._due[0][0] <= now:
                _, _, sender, receiver, frame = heapq.heappop(self._due)
                self._deliver(sender, receiver, frame)

    def _take(self, sender: Link) -> None:
        for _ in range(FRAMES_PER_TURN):
            try:
                frame = os.read(sender.fd, MOST_NBYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.EIO:  # the device is down
                    raise
                return
            target = frame[OFFLOAD.size : OFFLOAD.size + 6]
            found = self._by_mac.get(target)
            if found is not None:
                self._send(sender, found, frame)
            elif target[0] & 1:  # a broadcast or multicast
                for link in self._links.values():
                    if link is not sender:
                        self._send(sender, link, frame)

    def _send(self, sender: Link, receiver: Link, frame: bytes) -> None:
        """Put it on the way: it passes out of one link and into the other at once, each at its rate."""
        _, kind, headers_nbytes, payload_nbytes = OFFLOAD.unpack_from(frame)
        nbytes = len(frame) - OFFLOAD.size
        frames = -(-(nbytes - headers_nbytes) // payload_nbytes) if kind and payload_nbytes else 1
        nbits = 8 * (nbytes + (frames - 1) * headers_nbytes + frames * BETWEEN_FRAMES_NBYTES)
        come, gone = receiver.now, sender.now
        now = time.monotonic()
        starts = max(now, sender.sent_by)
        sender.sent_by = starts + nbits / gone.rate_bit_s
        queued_s = receiver.free_at - starts
        full = queued_s * come.rate_bit_s > 8 * SWITCH_NBYTES
        chance = gone.loss + come.loss - gone.loss * come.loss
        if full or (chance and random.random() < chance) or not self._passes(sender, receiver):
            self._counts["lost"] += 1
            return
        receiver.free_at = max(sender.sent_by, max(starts, receiver.free_at) + nbits / come.rate_bit_s)
        self._number += 1
        due = receiver.free_at + max(gone.delay_s, come.delay_s)
        heapq.heappush(self._due, (due, self._number, sender, receiver, frame))

    def _deliver(self, sender: Link, receiver: Link, frame: bytes) -> None:
        if not self._passes(sender, receiver):  # cut while it was on the way
            self._counts["lost"] += 1
            return
        try:
            os.write(receiver.fd, frame)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                raise
            self._counts["lost"] += 1
            return
        self._counts["carried"] += 1
        self._counts["nbytes"] += len(frame)

    @staticmethod
    def _passes(sender: Link, receiver: Link) -> bool:
        return "out" in sender.now.ways and "in" in receiver.now.ways

    def _obey(self) -> None:
        order, who = self._orders.recvfrom(4096)
        try:
            answer = self._told(order.decode(errors="replace").split())
        except BadLink as error:
            answer = f"wrong: {error}"
        if who:
            try:
                self._orders.sendto(answer.encode(), who)
            except OSError:  # who asked is gone
                return

    def _told(self, words: list[str]) -> str:
        if words == ["counts"]:
            return " ".join(f"{name}={count}" for name, count in self._counts.items())
        link = self._links.get(words[0]) if words else None
        if link is None:
            raise BadLink(f"no board called {words[:1]}; there are {', '.join(self._links)}")
        link.told(words[1:])
        self._choose_sizes()
        return "ok"


def rate_bit_s(text: str) -> float:
    """'1gbit', '100mbit', '64kbit' -> bits a second."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?bit|)", text.lower())
    if found is None or not float(found[1]):
        raise BadLink(f"no rate: {text!r}; try 1gbit, 100mbit or 64kbit")
    return float(found[1]) * RATES[found[2]]


def delay_s(text: str) -> float:
    """'0.3ms', '50', '1s' -> seconds; milliseconds where no unit is said."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s|)", text)
    if found is None:
        raise BadLink(f"no delay: {text!r}; try 0.3ms, 50ms or 1s")
    return float(found[1]) / {"us": 1e6, "ms": 1e3, "s": 1.0, "": 1e3}[found[2]]


def loss(text: str) -> float:
    """'1%' or '1' -> 0.01, the share of packets lost in each direction."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)%?", text)
    if found is None or float(found[1]) > 100:
        raise BadLink(f"no loss: {text!r}; try a percentage such as 1%")
    return float(found[1]) / 100


def _tap_in(namespace: Path) -> int:
    """A new device eth0 in that network namespace. It lives as long as the descriptor, that is: as this process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as home, open(namespace) as there:
        _enter(libc, there.fileno())
        try:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", b"eth0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        finally:
            _enter(libc, home.fileno())
    return fd


def _enter(libc: ctypes.CDLL, fd: int) -> None:
    if libc.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _come_first() -> None:
    """Boards that compute on every core must not make the wire slow. It needs a tenth of a core, so it may."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # also ends timer slack: 50 us of delay
    except OSError:
        os.nice(-20)


def serve(options: argparse.Namespace) -> None:
    quality = Quality(rate_bit_s(options.rate), delay_s(options.delay), loss(options.loss))
    boards = dict(board.split("=", 1) for board in options.boards)
    links = [Link(name, Path(namespace), quality) for name, namespace in boards.items()]
    orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    orders.bind(options.socket)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # or there might be a wire that no file tells of
    pid = os.fork()
    if pid:  # all is there: whoever started us may go on
        Path(options.pid_file).write_text(f"{pid}\n")
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    os.setsid()  # Ctrl-C is for the boards
    log, nothing = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), os.open("/dev/null", os.O_RDWR)
    for fd, target in ((nothing, 0), (nothing, 1), (log, 2)):
        os.dup2(fd, target)
    _come_first()
    gc.disable()  # nothing here is in a circle
    Wire(links, orders).serve()


def tell(path: str, words: list[str]) -> str:
    """The wire's answer; raises BadLink where it says no."""
    back = f"{path}.{os.getpid()}"  # a file: names without one end at the network namespace, and boards ask too
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.settimeout(ANSWER_S)
        try:
            ours.bind(back)
            ours.sendto(" ".join(words).encode(), path)
            answer = ours.recv(4096).decode()
        except OSError as error:
            raise BadLink(f"the wire does not answer at {path}: {error}") from error
        finally:
            Path(back).unlink(missing_ok=True)
    if answer.startswith("wrong: "):
        raise BadLink(answer.removeprefix("wrong: "))
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve", help="make the links, go to the background")
    for name in ("socket", "pid-file", "log", "rate", "delay", "loss"):
        server.add_argument(f"--{name}", required=True)
    server.add_argument("boards", nargs="+", metavar="NAME=NAMESPACE")
    teller = commands.add_parser("tell", help="change a link, or ask for counts")
    teller.add_argument("socket")
    teller.add_argument("words", nargs="+")
    checker = commands.add_parser("check", help="print a rate in bits a second, if all three are right")
    checker.add_argument("rate")
    checker.add_argument("delay", nargs="?", default="0")
    checker.add_argument("loss", nargs="?", default="0")
    options = parser.parse_args()
    try:
        if options.command == "serve":
            serve(options)
        elif options.command == "tell":
            answer = tell(options.socket, options.words)
            if answer != "ok":
                print(answer)
        else:
            delay_s(options.delay), loss(options.loss)
            print(round(rate_bit_s(options.rate)))
    except (BadLink, OSError) as error:
        print(f"link: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
