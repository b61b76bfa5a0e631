"""A lender as visitors meet it: what they order comes as it lies in the files, and nonsense costs nobody anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from boards.lending import DEADLINE_S, LenderProcess, lender
from hanging_disk import hanging_disk

from hermes_mp.agents.borrowed import Borrowed
from hermes_mp.agents.lenders import greet
from hermes_mp.agents.outlining import fetch
from hermes_mp.agents.remote_rows import RemoteRows
from hermes_mp.board_messages import (
    AskFile,
    FilePart,
    GrantCredit,
    Hello,
    LendFailed,
    LendUnit,
    Refused,
    UnitLent,
    UnitPart,
)
from hermes_mp.core.budget import WINDOW_NBYTES
from hermes_mp.errors import BadMessage, ModelNotFound
from hermes_mp.host import outline
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.fingerprint import fingerprint
from hermes_mp.host.lan import LanLink
from hermes_mp.host.outline import Told
from hermes_mp.messages import Range

MIB = 1 << 20


@pytest.fixture
def nas(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LenderProcess]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    with lender(tmp_path / "nas", models / "big", plain=True) as found:
        yield found


def borrow(nas: LenderProcess, credit: int = WINDOW_NBYTES) -> LanLink:
    link, _ = greet(nas.lender, "big", "")
    if credit:
        link.send(GrantCredit(credit))
    return link


def answer(link: LanLink, order: int, into: bytearray, grant: bool = True) -> object:
    """The word that ends this order; its parts are put where they belong."""
    while True:
        said = link.receive(DEADLINE_S)
        assert said is not None
        if not isinstance(said, UnitPart):
            return said
        assert said.order == order
        with memoryview(into)[said.at : said.at + said.nbytes] as place:
            link.payload_into(place)
        if grant:
            link.send(GrantCredit(said.nbytes))


def weights(models: Path) -> Path:
    return models / "big" / "model.safetensors"


@pytest.mark.parametrize(
    "ranges",
    [
        (Range(0, 0, 1, 0),), (Range(0, 4096, 5 * MIB, 0),), (Range(0, 4097, 5 * MIB + 3, 11),),
        (Range(0, 4096, 8192, 0), Range(0, 9 * MIB, 3 * MIB, 8192), Range(0, 0, 5, 4 * MIB)),
        tuple(Range(0, 12345 + 70_000 * row, 3000, 3000 * row) for row in range(512)),
    ],
    ids=["byte", "unit", "unaligned", "gaps", "rows"],
)  # fmt: skip
def test_what_is_ordered_comes_as_it_is(models: Path, nas: LenderProcess, ranges: tuple[Range, ...]) -> None:
    data = weights(models).read_bytes()
    end = ranges[-1].at + ranges[-1].nbytes
    wanted, got = bytearray(end), bytearray(end)
    for one in ranges:
        wanted[one.at : one.at + one.nbytes] = data[one.offset : one.offset + one.nbytes]
    with closing(borrow(nas)) as link:
        link.send(LendUnit(1, ranges))
        said = answer(link, 1, got)
    assert isinstance(said, UnitLent)
    assert said.nbytes == sum(one.nbytes for one in ranges)
    assert got == wanted
    nas.wait_until_free()


def test_the_end_of_a_file(models: Path, nas: LenderProcess) -> None:
    data = weights(models).read_bytes()
    begin = (len(data) - 3 * MIB) // 4096 * 4096
    got = bytearray(len(data) - begin)
    with closing(borrow(nas)) as link:
        link.send(LendUnit(1, (Range(0, begin, len(data) - begin, 0),)))
        assert isinstance(answer(link, 1, got), UnitLent)
    assert got == data[begin:]


def test_nothing_comes_without_credit(nas: LenderProcess) -> None:
    with closing(borrow(nas, 0)) as link:
        link.send(LendUnit(1, (Range(0, 0, 4 * MIB, 0),)))
        link.send(LendUnit(2, ()))
        assert link.receive(0.5) is None
        link.send(GrantCredit(WINDOW_NBYTES))
        assert isinstance(answer(link, 1, bytearray(4 * MIB)), UnitLent)
        assert answer(link, 2, bytearray()) == UnitLent(2, 0, 0)


@pytest.mark.parametrize(
    "ranges",
    [
        (Range(7, 0, 1, 0),), (Range(0, 2**62, 1, 0),), (Range(0, 0, 2**62, 0),), (Range(0, 2**62, 2**62, 2**62),),
        (Range(0, 0, 9, 0), Range(0, 0, 9, 8)),
    ],
)  # fmt: skip
def test_an_order_that_makes_no_sense_is_refused_and_the_next_is_not(
    nas: LenderProcess, ranges: tuple[Range, ...]
) -> None:
    with closing(borrow(nas)) as link:
        link.send(LendUnit(1, ranges))
        said = answer(link, 1, bytearray(9))
        assert isinstance(said, LendFailed)
        assert (said.order, said.exit_code) == (1, BadMessage.exit_code)
        link.send(LendUnit(2, (Range(0, 0, 9, 0),)))
        assert isinstance(answer(link, 2, bytearray(9)), UnitLent)


@pytest.mark.parametrize(
    "name",
    ["../big/config.json", "/etc/passwd", "..", "model.safetensors/", "no.json", "\0", "config.json\0", "x" * 4000],
)
def test_no_file_outside_of_the_model_is_told(nas: LenderProcess, name: str) -> None:
    with closing(borrow(nas)) as link:
        link.send(AskFile(name))
        said = link.receive(DEADLINE_S)
        assert isinstance(said, Refused)
        assert said.exit_code == ModelNotFound.exit_code
        link.send(AskFile("config.json"))
        assert isinstance(link.receive(DEADLINE_S), FilePart)


def test_programs_and_hidden_files_are_not_told(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "gpt2", tmp_path / "gpt2")
    for name in (".secret.json", "modeling.py", "notes.md"):
        (tmp_path / "gpt2" / name).write_text("{}")
    (tmp_path / "gpt2" / "folder.json").mkdir()
    told = outline.contents(find_checkpoint(tmp_path / "gpt2"))
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(told)
    assert not {".secret.json", "modeling.py", "notes.md", "folder.json"} & set(told)
    weights = told["model.safetensors"]
    assert weights.told_nbytes < weights.nbytes == (models / "gpt2" / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b"{", b'{"a.json": 1}', b'{"a.json": [1]}', b'{"../a.json": [1, 1]}', b'{"/a.json": [1, 1]}',
        b'{"a.json": [1, 2]}', b'{"a.json": [9, 1]}', b'{"a.py": [1, 1]}', b'{"a.json": [true, true]}',
        b'{"a.json": [1.0, 1.0]}', b'{"a.json": [-1, -1]}', b'{".json": [1, 1]}',
        b'{"a.safetensors": [99999999999999999, 9]}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_list_of_files_that_makes_no_sense(text: bytes) -> None:
    with pytest.raises(BadMessage):
        outline.list_from_json(text)


def test_an_outline_is_the_model_without_its_weights(models: Path, nas: LenderProcess, tmp_path: Path) -> None:
    folder = tmp_path / "outline"
    folder.mkdir()
    assert fetch(nas.lender, "big", folder) == fingerprint(find_checkpoint(models / "big"))
    ours, theirs = find_checkpoint(folder), find_checkpoint(models / "big")
    assert (ours.config, ours.tensors) == (theirs.config, theirs.tensors)
    assert [file.nbytes for file in ours.files] == [file.nbytes for file in theirs.files]
    assert (folder / "model.safetensors").stat().st_blocks * 512 < MIB
    assert (folder / "tokenizer.json").read_bytes() == (models / "big" / "tokenizer.json").read_bytes()
    digest = ours.digest
    for path in folder.iterdir():
        path.unlink()
    fetch(nas.lender, "big", folder)
    assert find_checkpoint(folder).digest == digest


def test_an_outline_names_files_once(tmp_path: Path) -> None:
    outline.write(tmp_path, "a.json", Told(2, 2), b"{}")
    with pytest.raises(Exception, match="cannot be written"):
        outline.write(tmp_path, "a.json", Told(2, 2), b"{}")


def test_rows_come_one_after_the_other_also_after_the_lender_was_away(models: Path, nas: LenderProcess) -> None:
    data = weights(models).read_bytes()
    asked = [(999 + 7001 * row, 2048) for row in range(1300)]
    wanted = b"".join(data[offset : offset + nbytes] for offset, nbytes in asked)
    alive, ours = os.pipe()
    rows = RemoteRows(Borrowed((nas.lender,), "big", ""), alive)
    with closing(rows):
        for _ in range(2):
            into = bytearray(len(wanted))
            assert rows.reader(0).read_rows(asked, memoryview(into)) == len(wanted)
            assert into == wanted
            nas.kill()
            nas.restart()
        with pytest.raises(BadMessage, match="board nas: order 1"):
            rows.reader(3).read_rows(asked, memoryview(bytearray(len(wanted))))
    os.close(alive)
    os.close(ours)


def test_visitors_share(models: Path, nas: LenderProcess) -> None:
    """One that takes nothing holds nobody else up."""
    with closing(borrow(nas)) as deaf, closing(borrow(nas, 0)) as mute, closing(borrow(nas)) as good:
        deaf.send(LendUnit(1, (Range(0, 0, 64 * MIB, 0),)))
        mute.send(LendUnit(1, (Range(0, 0, 64 * MIB, 0),)))
        got = bytearray(64 * MIB)
        good.send(LendUnit(1, (Range(0, 0, 64 * MIB, 0),)))
        assert isinstance(answer(good, 1, got), UnitLent)
    assert got == weights(models).read_bytes()[: 64 * MIB]
    nas.wait_until_free()


def test_orders_without_end_and_nonsense_by_the_hundred(nas: LenderProcess) -> None:
    with closing(borrow(nas, 0)) as link:
        for number in range(1, 40):
            link.send(LendUnit(number, (Range(0, 0, 1, 0),)))
        refused = [link.receive(DEADLINE_S) for _ in range(20)]
        assert all(isinstance(one, LendFailed) for one in refused)
        link.send(Hello(0, "", "", "", ""))
    with closing(borrow(nas)) as link:
        link.send(LendUnit(1, (Range(0, 0, 1, 0),)))
        assert isinstance(answer(link, 1, bytearray(1)), UnitLent)


def test_a_visitor_that_was_not_greeted_gets_nothing(nas: LenderProcess) -> None:
    with closing(nas.link()) as link:
        for message in (AskFile("config.json"), LendUnit(1, (Range(0, 0, 1, 0),))):
            link.send(message)
            said = link.receive(DEADLINE_S)
            assert isinstance(said, Refused | LendFailed)
            assert said.exit_code == ModelNotFound.exit_code


def test_a_disk_that_hangs_there_stops_no_visitor(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The board answers all the same, and what was ordered comes once the disk is back."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    (tmp_path / "disk").mkdir()
    with hanging_disk(models, tmp_path / "disk") as disk:
        if disk is None:
            pytest.skip("no FUSE here")
        model = tmp_path / "disk" / "big"
        with lender(tmp_path / "nas", model, loaders=1, plain=True) as nas, closing(borrow(nas)) as link:
            link.send(LendUnit(1, (Range(0, 0, MIB, 0),)))
            assert isinstance(answer(link, 1, bytearray(MIB)), UnitLent)
            disk.hang()
            link.send(LendUnit(2, (Range(0, 0, MIB, 0),)))
            assert link.receive(1.0) is None
            with closing(greet(nas.lender, "big", "")[0]):
                pass
            disk.go_on()
            assert isinstance(answer(link, 2, bytearray(MIB)), UnitLent)
