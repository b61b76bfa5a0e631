"""A join token as text and as its fields, and what a key looks like; pure, so it cannot say whether one is still good.

A token is one line that survives copying, with a checksum, so that a mistyped one is refused before anybody is asked.
In it is a one-time secret key: the board lets its bearer in once, to say which key of its own is to be allowed.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field

from hermes_mp.config import is_name
from hermes_mp.core.address import split_address
from hermes_mp.errors import BadOption, TokenRefused

PREFIX = "hermes1-"
MAX_CHARS = 1000
CHECKSUM_NBYTES = 6
KEY_CHARS = 40
# Z85, rfc.zeromq.org/spec/32: 5 characters are 4 bytes.
CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {one: value for value, one in enumerate(CHARACTERS)}


@dataclass(frozen=True)
class Token:
    """`key` is the board's public one, `secret` the one-time one; `expires_s` by the board's clock, seconds of 1970."""

    board: str
    address: str
    key: str
    secret: str = field(repr=False)
    expires_s: int


def write_token(token: Token) -> str:
    """One line of letters, digits, `-` and `_`."""
    said = " ".join((token.board, token.address, token.key, token.secret, str(token.expires_s))).encode()
    return PREFIX + base64.urlsafe_b64encode(said + _checksum(said)).decode().rstrip("=")


def read_token(text: str) -> Token:
    """The token of a line, or TokenRefused: which never repeats the text, for a secret is in it."""
    line = "".join(text.split())  # a terminal may have wrapped it
    if not line:
        raise TokenRefused("there is no join token: standard input is empty")
    if not line.startswith(PREFIX):
        raise TokenRefused(f"this is no join token: one begins with {PREFIX}")
    try:
        data = base64.b64decode(line[len(PREFIX) : MAX_CHARS] + "===", altchars=b"-_", validate=False)
    except ValueError:
        data = b""
    said, checksum = data[:-CHECKSUM_NBYTES], data[-CHECKSUM_NBYTES:]
    exact = PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=") == line
    if not exact or checksum != _checksum(said):
        raise TokenRefused("this join token is mistyped, or a part of it is missing", "copy the whole line once more")
    try:
        board, address, key, secret, expires = said.decode().split(" ")
        split_address(address)
        token = Token(board, address, key, secret, int(expires))
        if not (is_name(board) and is_key(key) and is_key(secret)):
            raise ValueError(board)
    except (ValueError, BadOption):
        raise TokenRefused("this join token says nothing that we understand: it is of another version") from None
    return token


def is_key(text: object) -> bool:
    """Whether it could be a key as ZeroMQ writes them; some texts of the right letters stand for more than 4 bytes."""
    if type(text) is not str or len(text) != KEY_CHARS or not _VALUES.keys() >= set(text):
        return False
    return all(_number(text[at : at + 5]) < 2**32 for at in range(0, KEY_CHARS, 5))


def _number(five: str) -> int:
    value = 0
    for one in five:
        value = value * 85 + _VALUES[one]
    return value


def _checksum(said: bytes) -> bytes:
    return hashlib.sha256(said).digest()[:CHECKSUM_NBYTES]
