"""A loader or compute that says what it should not: it is replaced, or what it said ignored; the answer is the same."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest
from any_message import UNIONS
from campaigns.shim.failing_calls import BEFORE, FRAME
from campaigns.wire_frames import frame
from launching import Launch, launch
from test_calls import failing

from hermes_mp import messages
from hermes_mp.errors import BadMessage
from hermes_mp.host.codec import pack, unpack
from hermes_mp.ids import Epoch, LoaderNo, Ticket, UnitNo

# Deadlines are short: a frame that is sent in the place of a message leaves that out.
ARGUMENTS = (
    "--prompt", "the ship", "--max-new-tokens", 24, "--memory", "none", "--loaders", 2,
    "--soft-deadline", 0.5, "--hard-deadline", 1.5,
)  # fmt: skip
SITES = {"loader": "loader send ", "compute": "compute send "}
HEARS = {"loader": "FromLoader", "compute": "FromCompute"}
FIRST, OTHER, FAR = Epoch(1), LoaderNo(1), 2**62
LIES = {
    "another's": ("loader", messages.LoaderStarted(OTHER, FIRST, 1)),
    "from the future": ("loader", messages.LoaderStarted(LoaderNo(0), Epoch(FAR), 1)),
    "no such ticket": ("loader", messages.UnitLoaded(LoaderNo(0), FIRST, Ticket(FAR), 1, True, 0, FAR)),
    "no such unit": ("compute", messages.AskUnit(UnitNo(FAR), True)),
    "never lent": ("compute", messages.UnitDone(Ticket(FAR), True, 0, FAR, 0, (UnitNo(FAR),))),
    "rows of nothing": ("compute", messages.PassStarted(0, FAR, FAR)),
}


@pytest.fixture(scope="module")
def answer(models: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run without faults says."""
    home = tmp_path_factory.mktemp("answer") / "home"
    return launch(home, "--model", models / "big", *ARGUMENTS, "--quiet").out


def broken(role: str, chance: Random) -> bytes:
    """A frame that is no message of this one's."""
    while True:
        how, found, union = frame(chance)
        if union == HEARS[role] and how != "sound":
            try:
                unpack(found, UNIONS[union])
            except BadMessage:
                return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))])
@pytest.mark.parametrize("role", list(SITES))
def test_what_is_no_message(models: Path, home: Path, answer: str, role: str, seed: int) -> None:
    chance = Random(f"{role} {seed}")
    sent = broken(role, chance)
    env = failing(home, SITES[role], FRAME + sent.hex(), chance.randint(2, 40))
    with Launch(home, "--model", models / "big", *ARGUMENTS, env=env) as run:
        ended = run.ended()
    assert home.with_suffix(".fired").exists()
    assert (ended.code, ended.out) == (0, answer), ended.err
    assert "Traceback" not in ended.err
    assert re.search(rf"^hermes-launch: {role}[ 0-9]*\(epoch 1\).*ended \(killed by SIGKILL", ended.err, re.MULTILINE)


@pytest.mark.parametrize("lie", list(LIES))
def test_what_is_not_true(models: Path, home: Path, answer: str, lie: str) -> None:
    role, message = LIES[lie]
    env = failing(home, SITES[role], BEFORE + pack(message).hex(), 9 if role == "loader" else 40)
    with Launch(home, "--model", models / "big", *ARGUMENTS, env=env) as run:
        ended = run.ended()
    assert home.with_suffix(".fired").exists()
    assert (ended.code, ended.out) == (0, answer), ended.err
    assert "Traceback" not in ended.err
