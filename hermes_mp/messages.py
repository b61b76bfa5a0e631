"""Every message that crosses a process; this page is the protocol. It knows nothing of sockets or of packing.

The paper's signals: S_comp (a layer is loaded) = `UnitLoaded` to the daemon and `UnitReady` on to compute; S_dest
(a layer may be destroyed) = `UnitDone`; S_stop (loading must pause) = the daemon lends no slot.
Asks are imperative (`LoadUnit`), facts past tense (`UnitLoaded`). Times are CLOCK_MONOTONIC nanoseconds, the same
clock in every process of a board. A daemon is the only peer of everyone: loaders and compute never talk directly,
so one mind decides who owns a slot (the hop costs 40 us, a unit takes tens of milliseconds).
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.ids import Epoch as Epoch
from hermes_mp.ids import LoaderNo as LoaderNo
from hermes_mp.ids import SlotNo as SlotNo
from hermes_mp.ids import Ticket as Ticket
from hermes_mp.ids import UnitNo as UnitNo

MAX_FRAME_NBYTES = 64 * 1024
MAX_IN_FLIGHT = 16  # requests at once
MAX_TEXT_CHARS = 12_000  # of one message: at most 48,000 bytes of UTF-8; longer texts travel in parts
NOT_CHECKED = 2**32  # in place of a checksum
MAX_RANGES = 1024  # of one unit: 4 integers of at most 9 bytes each stay well below the frame limit


def clip(text: str, chars: int = MAX_TEXT_CHARS) -> str:
    """The text as a message can hold it: no lone surrogates, not longer than `chars`, the end rather than the start."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole if len(whole) <= chars else "..." + whole[len(whole) - chars + 3 :]


@dataclass(frozen=True)
class Range:
    """One read: `nbytes` bytes of file number `file` from `offset`, to byte `at` of the slot."""

    file: int
    offset: int
    nbytes: int
    at: int


@dataclass(frozen=True)
class RunPlan:
    """What `core.planner` chose of a run: 0 stands for what the daemon does by default.

    `loaders` that read `chunk_nbytes` at a time, past the page cache where `direct`; `window`: slots that streamed
    units share. `forecast_us`: of a pass that repeats. `source`: "measured" where the model was profiled, "estimated"
    where only the disk was, "assumed" where not even that.
    """

    loaders: int = 0
    window: int = 0
    chunk_nbytes: int = 0
    direct: bool = True
    forecast_us: int = 0
    source: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """`dtype` as torch names it without its prefix: `bfloat16`. Its bytes are shape x itemsize, row after row."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerRange:
    """Layers `first` to `last` (excluded) of the model's list: one stretch."""

    first: int
    last: int


# --- daemon -> loader


@dataclass(frozen=True)
class OpenFile:
    """Use `path` as file number `file`; it must still be `nbytes` long.

    Ask for `chunk_nbytes` at once at most (0: as the loader was told at its start), past the page cache where `direct`.
    """

    file: int
    path: str
    nbytes: int
    chunk_nbytes: int = 0
    direct: bool = True


@dataclass(frozen=True)
class LoadUnit:
    """Read `ranges` into the slot that starts at byte `base` of the arena and is `room` bytes long.

    `checked`: say the checksum of what was read.
    """

    epoch: Epoch
    ticket: Ticket
    unit: UnitNo
    base: int
    room: int
    ranges: tuple[Range, ...]
    checked: bool = False


@dataclass(frozen=True)
class StopLoader:
    """Finish and exit."""


# --- loader -> daemon


@dataclass(frozen=True)
class LoaderStarted:
    """The loader is up and has no work."""

    loader: LoaderNo
    epoch: Epoch
    pid: int


@dataclass(frozen=True)
class UnitLoaded:
    """Every byte of the unit is in its slot. The longest of its reads took `slowest_ns`.

    `checksum`: CRC-32 over its ranges, where that was asked for.
    """

    loader: LoaderNo
    epoch: Epoch
    ticket: Ticket
    nbytes: int
    direct: bool
    started_ns: int
    ended_ns: int
    slowest_ns: int = 0
    checksum: int = NOT_CHECKED


@dataclass(frozen=True)
class LoadFailed:
    """The unit could not be read; `text` is one clear line, `exit_code` that of the error it stands for.

    `where`: file number and byte, where the disk or the file is to blame.
    """

    loader: LoaderNo
    epoch: Epoch
    ticket: Ticket
    exit_code: int
    text: str
    where: tuple[int, ...] = ()


@dataclass(frozen=True)
class LoaderFailed:
    """Start-up failed; do not restart."""

    loader: LoaderNo
    epoch: Epoch
    exit_code: int
    text: str


# --- daemon -> compute


@dataclass(frozen=True)
class UnitReady:
    """The unit lies complete in the arena from byte `base`; it is compute's until its `UnitDone`.

    `keep`: a resident, which compute keeps for the passes to come, without a word, until `RecallUnit`.
    """

    ticket: Ticket
    unit: UnitNo
    base: int
    keep: bool = False


@dataclass(frozen=True)
class RecallUnit:
    """Return this unit, which was to be kept, as soon as nothing uses it."""

    ticket: Ticket
    unit: UnitNo


@dataclass(frozen=True)
class UnitFailed:
    """The unit asked for cannot be loaded: `exit_code` names the class of error."""

    unit: UnitNo
    exit_code: int
    text: str


@dataclass(frozen=True)
class RunEnded:
    """The daemon's last words to a caller: `exit_code` names the class of error that ended the run."""

    exit_code: int
    text: str


@dataclass(frozen=True)
class SlotsDivided:
    """The budget is divided: so many slots, and `reserve_nbytes` for what compute does. It may bind from now on."""

    slots: int
    slot_nbytes: int
    reserve_nbytes: int


@dataclass(frozen=True)
class RunRequest:
    """Part `part` of request `request`, a JSON text; `final` when no request can follow this one."""

    request: int
    part: int
    last: bool
    final: bool
    text: str


@dataclass(frozen=True)
class AssignLayers:
    """To a board's compute: from now on these stretches, in this order, are the stage's; its caches are dropped.

    `window`: slots that streamed units share, as planned; 0: as the daemon would.
    """

    epoch: int
    stretches: tuple[LayerRange, ...]
    window: int = 0


@dataclass(frozen=True)
class LayerCalls:
    """What request `member` of those that are in flight gives a stretch; each has caches of its own.

    `chunk`: of its prompt, in their order, which share its caches.
    At the first stretch of a pass these are to hold `past` positions and to have `rows` of the rows that they had
    (empty: as they are). `calls`: a JSON text, what each layer is given beside the states, see `models.layer_calls`;
    `tensors` are those of it that this pass has not sent yet.
    """

    member: int
    chunk: int
    past: int
    rows: tuple[int, ...]
    calls: str
    tensors: tuple[TensorSpec, ...]
    states: TensorSpec


@dataclass(frozen=True)
class RunLayers:
    """Run the stage's stretch number `index`, as part of pass `number`, on the states of each part.

    `more`: of the same stretch and pass others are to be run after these; `last`: it is the last one of the pass.
    The tensors and then the states of one part after the other are the bundle.
    """

    epoch: int
    number: int
    index: int
    last: bool
    more: bool
    parts: tuple[LayerCalls, ...]

    @property
    def bundle(self) -> list[TensorSpec]:
        return [spec for part in self.parts for spec in (*part.tensors, part.states)]


@dataclass(frozen=True)
class StopCompute:
    """Finish and exit (only ever sent to a compute process of ours, never to a caller's)."""


# --- compute -> daemon


@dataclass(frozen=True)
class ComputeStarted:
    """Compute is up; its next words describe the units."""

    pid: int


@dataclass(frozen=True)
class FileNamed:
    """File number `file` of the ranges is this one."""

    file: int
    path: str
    nbytes: int


@dataclass(frozen=True)
class UnitDescribed:
    """Unit `unit` in the predicted order: it takes `nbytes` of a slot and is read by these ranges."""

    unit: UnitNo
    nbytes: int
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class UnitsDescribed:
    """That was all: `units` units; `digest` names the list; see `core.budget` for the bytes.

    `base_nbytes` is compute's memory before it binds, `reserve_nbytes` what it must be left for KV cache, logits,
    activations and casts at the reserved context and batch, `wish_nbytes` what it would use if there is room: for
    large images. `plan`: how to run on these units; `lenders`: other boards that shall read for this run, as JSON
    of `agents.borrowed.Borrowed`, "" for none.
    """

    units: int
    digest: str
    base_nbytes: int
    reserve_nbytes: int
    wish_nbytes: int
    plan: RunPlan
    lenders: str = ""


@dataclass(frozen=True)
class AskUnit:
    """Compute wants this unit: now (`waiting`), or as its next guess."""

    unit: UnitNo
    waiting: bool


@dataclass(frozen=True)
class UnitDone:
    """The slot is free again. `computed` is false where compute returns it unused.

    Times: when it was asked for in earnest, bound, and done; `asked_ns` to `bound_ns` is the stall. `ahead`: what
    compute guesses to want after the unit that it holds already, at most one; as an `AskUnit` would say it.
    """

    ticket: Ticket
    computed: bool
    asked_ns: int
    bound_ns: int
    done_ns: int
    ahead: tuple[UnitNo, ...] = ()


@dataclass(frozen=True)
class RowsRead:
    """Compute gathered rows of an embedding itself: bytes that went through no slot."""

    nbytes: int
    started_ns: int
    ended_ns: int


@dataclass(frozen=True)
class PassForecast:
    """Whether another pass is expected after this one; without one nothing beyond the last unit is read.

    A part of the model may be called alone (an encoder without its head): of such passes only the first `units` units
    are expected. 0: all of them.
    """

    more: bool
    units: int = 0


@dataclass(frozen=True)
class PassStarted:
    """The outermost forward began: `rows` sequences of `tokens` new positions each."""

    at_ns: int
    rows: int
    tokens: int


@dataclass(frozen=True)
class PassEnded:
    """The outermost forward ended; `complete` unless an exception cut it short."""

    at_ns: int
    complete: bool


@dataclass(frozen=True)
class Progress:
    """One short line about what compute is doing (`importing torch`), for the person who waits."""

    text: str


@dataclass(frozen=True)
class Note:
    """One line that is worth keeping: a board was left out."""

    text: str


@dataclass(frozen=True)
class StageMeasured:
    """Of a stage: its model is there. `facts` is a JSON object: what it takes, and what its layers cost."""

    facts: str


@dataclass(frozen=True)
class BoardTold:
    """Of a head: what a board of the run does, has and has taken so far. `facts` is a JSON object."""

    board: str
    facts: str


@dataclass(frozen=True)
class BoardGone:
    """Another board is left out from now on: `text` is one line that names it. Without text it is there again."""

    board: str
    text: str


@dataclass(frozen=True)
class TextStreamed:
    """Some text of the answer to `request`, as it comes.

    With `--replay fast` also each token before the text that it makes, for a successor that goes on behind it.
    """

    request: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class RequestAnswered:
    """Part `part` of the answer to `request`, a JSON text."""

    request: int
    part: int
    last: bool
    text: str


@dataclass(frozen=True)
class LayersRun:
    """The answer to RunLayers; the states, one for each part, are the bundle.

    Nanoseconds it took, and of them in wait for units.
    """

    epoch: int
    number: int
    index: int
    states: tuple[TensorSpec, ...]
    took_ns: int
    stalled_ns: int


@dataclass(frozen=True)
class LayersFailed:
    """The answer to RunLayers where it cannot be: the error by its exit code and text."""

    epoch: int
    number: int
    index: int
    exit_code: int
    text: str


@dataclass(frozen=True)
class RequestRepeated:
    """A board was lost, or another has joined: once the units are described anew, ask all requests once more.

    `request` is the first of them.

    `why` is one line.
    """

    request: int
    why: str


@dataclass(frozen=True)
class RequestFailed:
    """The request cannot be answered; compute goes on with the next one."""

    request: int
    exit_code: int
    text: str


@dataclass(frozen=True)
class ComputeFailed:
    """Compute cannot go on (start-up failed, or a bug); do not restart. `traceback` is empty unless it is a bug."""

    exit_code: int
    text: str
    traceback: str


# --- hermes-ps -> daemon, and back


@dataclass(frozen=True)
class AskStatus:
    """Say how the run is, at this moment."""


@dataclass(frozen=True)
class StatusTold:
    """Part `part` of how the run is, a JSON text; see docs/json.md."""

    part: int
    last: bool
    text: str


ToLoader = OpenFile | LoadUnit | StopLoader
FromLoader = LoaderStarted | UnitLoaded | LoadFailed | LoaderFailed
ToCompute = (
    UnitReady | RecallUnit | UnitFailed | RunEnded | SlotsDivided | RunRequest | AssignLayers | RunLayers | StopCompute
)  # fmt: skip
FromCompute = (
    ComputeStarted | FileNamed | UnitDescribed | UnitsDescribed | AskUnit | UnitDone | RowsRead
    | PassForecast | PassStarted | PassEnded | Progress | TextStreamed | RequestAnswered | RequestFailed | ComputeFailed
    | LayersRun | LayersFailed | RequestRepeated | Note | BoardGone | StageMeasured | BoardTold
)  # fmt: skip
FromViewer = AskStatus
ToViewer = StatusTold
