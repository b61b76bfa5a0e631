"""Header fuzzing: damaged checkpoints, to our reader and to the official one; what that rejects we must reject.

Ours is in a process of its own, whose memory is judged. Real headers of the tiny models, and made ones, are damaged
one to three times; a few are as large as we read. Where we refuse what the official reader takes, a
rule of ours says so.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from campaigns.common import Campaign, Failed, Record, bound
from campaigns.examined import Examined
from campaigns.header_damage import Damaged, damaged, large
from campaigns.header_reader import SMALL_NBYTES, described
from safetensors import SafetensorError, deserialize, safe_open

INPUTS = 1000  # of a run
LARGE = 1 / 250  # of them
MOST_KIB = 64 << 10
SLOWEST_S = 10.0  # of one header: a hang, not a time to be kept
DATA = bytes(at % 251 for at in range(SMALL_NBYTES))

# Why we may refuse what the official reader takes: see `core.header`.
STRICTER = {
    "larger than we read": "more than (the [0-9]+ )?(tensors )?we read",
    "not { at its beginning": "does not begin with {",
    "a name twice": "names .* twice",
    "unknown fields": "is not described by dtype, shape and data_offsets",
    "what no unknown field may hold": "where only whole numbers belong|negative number|not Unicode|nested too deeply",
    "null for metadata": "__metadata__ is not an object",
    "from 2**63 on": "too large",
}


class HeaderCampaign(Campaign):
    name = "header"

    def run(self, number: int) -> Iterator[Record]:
        chance = self._draws.chance(number)
        verdicts: collections.Counter[str] = collections.Counter()
        stricter: collections.Counter[str] = collections.Counter()
        slowest_s = 0.0
        for at in range(INPUTS):
            made = large(chance) if chance.random() < LARGE else damaged(chance, self._real)
            try:
                took_s, verdict, reason = self._judge(made)
            except Failed as error:
                raise Failed(f"input {at}, {made.how}: {error}; {made.content[:300]!r}") from None
            slowest_s = max(slowest_s, took_s)
            verdicts[verdict] += 1
            if reason:
                stricter[reason] += 1
        yield self._draws.record(
            number, inputs=INPUTS, verdicts=dict(verdicts), stricter=dict(stricter),
            most_kib=self._reader.kib("VmHWM"), slowest_s=slowest_s,
        )  # fmt: skip

    def amount(self, record: Record) -> float:
        return int(record["inputs"])

    def summary(self, records: list[Record]) -> Record:
        """Verdicts, by which rule we were stricter, and the parser's memory."""
        verdicts: collections.Counter[str] = collections.Counter()
        stricter: collections.Counter[str] = collections.Counter()
        for one in records:
            verdicts.update(one["verdicts"])
            stricter.update(one["stricter"])
        inputs = sum(one["inputs"] for one in records)
        return {
            "inputs": inputs, "verdicts": dict(verdicts), "stricter": dict(stricter.most_common()),
            "most_mib": round(max(one["most_kib"] for one in records) / 1024, 1),
            "slowest_s": max(one["slowest_s"] for one in records), "bound_95": bound(inputs),
        }  # fmt: skip

    def close(self) -> None:
        if "_reader" in vars(self):
            self._reader.close()

    @functools.cached_property
    def _real(self) -> list[bytes]:
        """The headers of all tiny models."""
        headers = []
        for path in sorted(self._model.parent.glob("*/model.safetensors")):
            with open(path, "rb") as file:
                headers.append(file.read(struct.unpack("<Q", file.read(8))[0]))
        return headers

    @functools.cached_property
    def _place(self) -> Path:
        folder = self._folder / "header"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        return folder / "model.safetensors"

    @functools.cached_property
    def _reader(self) -> Examined:
        return Examined("campaigns.header_reader", self._place.parent)

    def _judge(self, made: Damaged) -> tuple[float, str, str]:
        """How long ours took, what both said, and by which rule ours was the stricter one."""
        with open(self._place, "wb") as file:
            file.write(made.content)
            if made.nbytes <= SMALL_NBYTES:
                file.write(DATA[: made.nbytes - len(made.content)])
            file.truncate(made.nbytes)
        self._reader.tell(b"\n")
        took, _, told = self._reader.answer().partition(" ")
        kind, _, said = told[1:-1].partition(" ")
        theirs = official(self._place)
        if kind not in ("read", "refused"):
            raise Failed(told)
        if float(took) > SLOWEST_S:
            raise Failed(f"it took {took} s: {told}")
        if self._reader.kib("VmHWM") > MOST_KIB:
            raise Failed(f"it took {self._reader.kib('VmHWM')} KiB: {told}")
        if made.is_sound and kind != "read":
            raise Failed(f"a sound file is refused: {said}")
        if kind == "refused":
            return float(took), f"refused, official {'refuses' if theirs is None else 'takes'}", _rule(theirs, said)
        if theirs is None:
            raise Failed("we take what the official reader refuses")
        if theirs != said:
            raise Failed("the official reader finds something else in it")
        return float(took), "both take", ""


def _rule(theirs: str | None, said: str) -> str:
    if theirs is None:
        return ""
    for rule, pattern in STRICTER.items():
        if re.search(pattern, said):
            return rule
    raise Failed(f"refused for no rule of ours: {said}")


def official(path: Path) -> str | None:
    """What the official reader finds, as `header_reader.found_in` says it; None where it refuses."""
    try:
        with safe_open(path, framework="np") as opened:
            digest = hashlib.sha256(json.dumps(opened.metadata() or {}, sort_keys=True).encode())
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            told = {name: (one.get_dtype(), one.get_shape(), b"") for name, one in slices.items()}
    except SafetensorError:
        return None
    if path.stat().st_size <= SMALL_NBYTES:
        told = {name: (one["dtype"], one["shape"], bytes(one["data"])) for name, one in deserialize(path.read_bytes())}
    for name in sorted(told):
        digest.update(described(name, *told[name]))
    return digest.hexdigest()
