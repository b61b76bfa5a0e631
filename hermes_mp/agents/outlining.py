"""Makes the outline of a model of which a lender has a copy, so that a board without one can run it.

It asks for what `host.outline` writes; weights never come this way.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from hermes_mp.agents.borrowed import Lender
from hermes_mp.agents.greeting import said_by
from hermes_mp.agents.lenders import greet
from hermes_mp.board_messages import AskFile, FilePart, Refused
from hermes_mp.errors import BadMessage, BoardLost, ModelNotFound
from hermes_mp.host import outline
from hermes_mp.host.lan import LanLink
from hermes_mp.host.outline import MAX_FILE_NBYTES, WEIGHTS

ANSWER_S = 20.0  # for the next part: the lender may have to read a header from a slow card


def fetch(lender: Lender, model: str, folder: Path) -> str:
    """Write the outline of the lender's `model` into `folder`, which is empty; the fingerprint of its copy.

    Raises what `greet` raises, WriteFailed, and BadMessage where the lender sends something else.
    """
    link, welcome = greet(lender, model, "")
    with closing(link):
        files = outline.list_from_json(_file(link, lender, "", MAX_FILE_NBYTES))
        if not any(name.endswith(WEIGHTS) for name in files):
            raise ModelNotFound(f"board {lender.name} has no weights of {model}")
        for name, told in files.items():
            outline.write(folder, name, told, _file(link, lender, name, told.told_nbytes))
    return welcome.fingerprint


def _file(link: LanLink, lender: Lender, name: str, most_nbytes: int) -> bytes:
    link.send(AskFile(name))
    data = bytearray()
    while True:
        part = link.receive(ANSWER_S)
        if part is None:
            raise BoardLost(f"board {lender.name} ({lender.address}) did not answer for {ANSWER_S:g} s")
        if isinstance(part, Refused):
            raise said_by(lender.name, part.exit_code, part.text)
        good = isinstance(part, FilePart) and part.name == name and part.offset == len(data)
        if not good or part.total_nbytes > most_nbytes or len(data) + part.nbytes > part.total_nbytes:
            raise BadMessage(f"board {lender.name} was asked for {name or 'its files'}, and sends something else")
        place = bytearray(part.nbytes)
        link.payload_into(memoryview(place))
        data += place
        if len(data) == part.total_nbytes:
            return bytes(data)
        if not part.nbytes:
            raise BadMessage(f"board {lender.name} sends nothing of {name or 'its files'}")
