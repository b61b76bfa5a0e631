"""Every message that crosses between boards; this page is the protocol, as messages.py is that of one board.

A head asks, boards answer; boards never talk to each other. A message is one frame, packed and checked as those of one
board are; of the kinds in `WITH_PAYLOAD` a second frame of exactly `nbytes` raw bytes follows, at most 1 MiB, which is
received into the place that it is for. Tensors travel as their `TensorSpec`s in the message that announces them, and
then as parts of one bundle, in which they lie one after the other, each at a multiple of 64 (core.bundle).
Nothing is said before `Hello` was answered by `Welcome`: protocol and model must be the same.

A stage: StartStage -> StageOpened, AssignLayers -> StageReady; then, for every pass and stretch, RunLayers -> LayersRun
(messages.py: the board's compute is told the same). `epoch` counts what the head has assigned; older news is dropped.
A lender: LendUnit -> UnitPart ... UnitLent or LendFailed, as far as GrantCredit reaches; AskFile -> FilePart ... or
Refused. Orders are met in their order, and the parts of each come in that of its ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermes_mp.messages import AssignLayers, LayersFailed, LayersRun, Range, RunLayers

PROTOCOL = 2
MAX_PAYLOAD_NBYTES = 1 << 20
HEARTBEAT_S, HEARTBEAT_TIMEOUT_S = 1.0, 4.0


# --- head -> board


@dataclass(frozen=True)
class Hello:
    """The first word. `fingerprint` of the model (empty: none is meant yet), under the name `model`."""

    protocol: int
    software: str
    head: str
    model: str
    fingerprint: str


@dataclass(frozen=True)
class PairHead:
    """By the one-time key of a join token: let the board allow `key`, under `name`, from now on."""

    key: str
    name: str


@dataclass(frozen=True)
class Probe:
    """Answer with `answer_nbytes` raw bytes: what the link gives is measured by it. `nbytes` follow."""

    number: int
    answer_nbytes: int
    nbytes: int


@dataclass(frozen=True)
class StartStage:
    """Run a stage of the model that was greeted with; `settings` is a JSON object, see `agents.board`."""

    epoch: int
    settings: str


@dataclass(frozen=True)
class StopStage:
    """The head needs the stage no more."""

    epoch: int


@dataclass(frozen=True)
class AskStage:
    """Say what the stage has taken so far: StageTold."""

    epoch: int


@dataclass(frozen=True)
class LendUnit:
    """Read these ranges of the model that was greeted with and send them one after the other, as order `order`.

    They lie one after the other in the slot; file numbers are those of the checkpoint's files in order, and order
    numbers only grow. No ranges: say (UnitLent) that the files are what they were, which is said of every order.
    """

    order: int
    ranges: tuple[Range, ...]


@dataclass(frozen=True)
class GrantCredit:
    """So many bytes more may be on their way. The lender reads 2 MiB at once, as soon as so many are allowed."""

    nbytes: int


@dataclass(frozen=True)
class AskFile:
    """Send this file of the model (configuration, tokenizer, headers of weights), by its name.

    No name: the list of them, a JSON object of `name: [bytes that it has, bytes from its begin that are sent]`.
    """

    name: str


# --- both ways


@dataclass(frozen=True)
class TensorPart:
    """`nbytes` raw bytes of the bundle that was announced, from its byte `offset`."""

    offset: int
    nbytes: int


# --- board -> head


@dataclass(frozen=True)
class Welcome:
    """The board's answer to Hello: what it is, and what it knows of itself. `facts` is a JSON object, see docs."""

    protocol: int
    software: str
    board: str
    fingerprint: str
    facts: str


@dataclass(frozen=True)
class Refused:
    """It cannot be: the error by its exit code and text."""

    exit_code: int
    text: str


@dataclass(frozen=True)
class Paired:
    """The head's key is allowed from now on."""

    board: str


@dataclass(frozen=True)
class Probed:
    """The answer to a Probe; `nbytes` follow."""

    number: int
    nbytes: int


@dataclass(frozen=True)
class StageSaid:
    """One short line for the person who waits; a `note` is worth keeping, the rest is progress."""

    epoch: int
    note: bool
    text: str


@dataclass(frozen=True)
class StageOpened:
    """The model is built, without its weights. `facts` is a JSON object: what planning needs of the board."""

    epoch: int
    facts: str


@dataclass(frozen=True)
class StageReady:
    """The layers of `epoch` can be run. `facts` is a JSON object: slots, residents, bytes."""

    epoch: int
    facts: str


@dataclass(frozen=True)
class StageTold:
    """The answer to AskStage. `facts` as in StageReady."""

    epoch: int
    facts: str


@dataclass(frozen=True)
class StageForgot:
    """The process that held the caches of `epoch` died: a pass that goes on from them cannot be; a new one can."""

    epoch: int
    text: str


@dataclass(frozen=True)
class StageEnded:
    """The stage is over: by what error, 0 where the head wanted it. `facts` is a JSON object: what it took."""

    epoch: int
    exit_code: int
    text: str
    facts: str


@dataclass(frozen=True)
class StillThere:
    """While something is asked of the board: its loop runs. `waits_for` says what for, in a few words."""

    waits_for: str


@dataclass(frozen=True)
class UnitPart:
    """`nbytes` raw bytes of order `order`, to byte `at` of the slot."""

    order: int
    at: int
    nbytes: int


@dataclass(frozen=True)
class UnitLent:
    """Every byte of the order was sent; the longest of its reads took `slowest_ns`."""

    order: int
    nbytes: int
    slowest_ns: int


@dataclass(frozen=True)
class LendFailed:
    """The order cannot be read: the error by its exit code and text."""

    order: int
    exit_code: int
    text: str


@dataclass(frozen=True)
class FilePart:
    """`nbytes` raw bytes of the file `name`, of which `total_nbytes` are sent, from byte `offset` on."""

    name: str
    offset: int
    total_nbytes: int
    nbytes: int


ToBoard = (
    Hello | PairHead | Probe | StartStage | AssignLayers | RunLayers | TensorPart | StopStage
    | AskStage | LendUnit | GrantCredit | AskFile
)  # fmt: skip
FromBoard = (
    Welcome | Refused | Paired | Probed | StageSaid | StageOpened | StageReady | StageTold | StageForgot | StageEnded
    | StillThere | LayersRun | LayersFailed | TensorPart | UnitPart | UnitLent | LendFailed | FilePart
)  # fmt: skip
WITH_PAYLOAD = Probe | Probed | TensorPart | UnitPart | FilePart
