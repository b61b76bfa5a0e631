"""Several boards that run one model: what was measured of them and of their links, and what is planned for them.

Plain figures: bytes, seconds, bytes per second. A stretch is a run of consecutive layers on one board; the head is the
board that all others talk to. `core.cluster.planner` finds a plan, `core.cluster.forecast` says how long a pass takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hermes_mp.core.budget import DAEMON_NBYTES, LOADER_NBYTES, MARGIN_NBYTES, WINDOW_NBYTES
from hermes_mp.core.cluster.stretches import Stretch
from hermes_mp.errors import BadOption, CannotBeCut

# Of processes on both sides, in one change from the head to a board and back: of 40 empty hops over loopback the
# faster ones took 1.0 to 1.5 ms, those in the middle 2, on two cores of a busy virtual machine.
HOP_S = 0.0015
MOST_BOARDS = 64


@dataclass(frozen=True)
class LinkFacts:
    """Between the head and a board, as measured with encryption. `hop_s`: see HOP_S."""

    nbytes_per_s: float
    round_trip_s: float
    hop_s: float = HOP_S


@dataclass(frozen=True)
class BoardFacts:
    """A board. `budget_nbytes` bounds all that is ours there: `base_nbytes` (processes, before there are slots),
    `reserve_nbytes` (activations, logits), the KV cache of its layers, and slots.

    `disk_nbytes_per_s`: None where it has no copy of the model. `layer_s`: of a layer of mean size and one token;
    `prefill_s_per_token`: what every further token of a prompt adds to that. `head_s`: of a pass, outside all layers.
    `idle_nbytes`: of base and reserve, what is kept free and usually not taken.
    """

    name: str
    budget_nbytes: int
    disk_nbytes_per_s: float | None
    layer_s: float
    prefill_s_per_token: float = 0.0
    base_nbytes: int = 0
    reserve_nbytes: int = 0
    is_head: bool = False
    head_s: float = 0.0
    idle_nbytes: int = 0

    @property
    def room_nbytes(self) -> int:
        """For slots and the KV cache."""
        return self.budget_nbytes - self.base_nbytes - self.reserve_nbytes


@dataclass(frozen=True)
class ClusterModel:
    """A decoder. `slot_nbytes`: of a slot; what is larger is cut into equal units that fit. The head streams
    `before_nbytes` before all layers and `head_nbytes` after them, in units of its own.
    """

    layer_nbytes: tuple[int, ...]
    head_nbytes: int
    hidden_nbytes_per_token: int
    slot_nbytes: int
    kv_nbytes_per_layer: int = 0
    before_nbytes: int = 0

    @property
    def mean_layer_nbytes(self) -> float:
        return sum(self.layer_nbytes) / len(self.layer_nbytes)

    def units_of(self, nbytes: int) -> tuple[int, ...]:
        """The bytes of the units that so many consecutive bytes are cut into."""
        count = -(-nbytes // self.slot_nbytes)
        return tuple(nbytes * (number + 1) // count - nbytes * number // count for number in range(count))


@dataclass(frozen=True)
class Cluster:
    """Boards, the model, and `links` by the name of each board that is not the head. Raises CannotBeCut, BadOption.

    `only_head_borrows`: boards do not talk to each other, so that nobody but the head has remote loaders. `lenders`:
    whose disk others may read; None: that of all that have a copy.
    """

    model: ClusterModel
    boards: tuple[BoardFacts, ...]
    links: Mapping[str, LinkFacts] = field(default_factory=dict)
    only_head_borrows: bool = False
    lenders: frozenset[str] | None = None

    def __post_init__(self) -> None:
        names = [board.name for board in self.boards]
        if not self.model.layer_nbytes:
            raise CannotBeCut("the model has no list of layers that boards could share")
        if self.model.slot_nbytes < 1 or min(self.model.layer_nbytes) < 1:
            raise CannotBeCut("a layer or a slot of no bytes cannot be dealt to boards")
        if sum(board.is_head for board in self.boards) != 1:
            raise BadOption(f"of the boards {', '.join(names) or '(none)'} exactly one must be the head")
        if len(set(names)) < len(names) or len(names) > MOST_BOARDS:
            raise BadOption(f"two boards of one name, or more than {MOST_BOARDS}: {', '.join(names)}")
        for board in self.boards:
            link = None if board.is_head else self.links.get(board.name)
            if not board.is_head and link is None:
                raise BadOption(f'nothing is known of the link to the board "{board.name}"')
            rates = [] if board.disk_nbytes_per_s is None else [board.disk_nbytes_per_s]
            rates += [link.nbytes_per_s] if link else []
            seconds = [board.layer_s, board.prefill_s_per_token, board.head_s]
            seconds += [link.round_trip_s, link.hop_s] if link else []
            if not all(0 < rate < 1e15 for rate in rates) or not all(0 <= one < 1e6 for one in seconds):
                raise BadOption(f'of the board "{board.name}" a rate or a time is out of range')

    @property
    def head(self) -> int:
        return next(number for number, board in enumerate(self.boards) if board.is_head)

    def number(self, name: str) -> int:
        """Raises BadOption for a board that is none of these."""
        for number, board in enumerate(self.boards):
            if board.name == name:
                return number
        raise BadOption(f'no board is called "{name}"; there are {", ".join(board.name for board in self.boards)}')

    def may_lend(self, board: int) -> bool:
        facts = self.boards[board]
        return facts.disk_nbytes_per_s is not None and (self.lenders is None or facts.name in self.lenders)

    def hop_s(self, board: int, tokens: int = 1) -> float:
        """From the head to a board and back, with the hidden states of so many tokens each way; 0 for the head."""
        if self.boards[board].is_head:
            return 0.0
        link = self.links[self.boards[board].name]
        return link.round_trip_s + link.hop_s + 2 * self.model.hidden_nbytes_per_token * tokens / link.nbytes_per_s

    def between(self, one: int, other: int) -> LinkFacts:
        """The link of two boards: as slow as the slower of their links to the head."""
        links = [self.links[board.name] for board in (self.boards[one], self.boards[other]) if not board.is_head]
        return LinkFacts(min(link.nbytes_per_s for link in links), max(link.round_trip_s for link in links))

    def receives_nbytes_per_s(self, board: int) -> float:
        """What a board can take in from all lenders together; the head, whose own port nobody measured: the best."""
        if self.boards[board].is_head:
            return max((link.nbytes_per_s for link in self.links.values()), default=0.0)
        return self.links[self.boards[board].name].nbytes_per_s


@dataclass(frozen=True, order=True)
class Lending:
    """`lender` reads for `receiver`, with `share` of its disk, through so many remote loaders."""

    lender: str
    receiver: str
    share: float = 1.0
    loaders: int = 1


@dataclass(frozen=True)
class BoardPlan:
    """One board's part, and what it is forecast to do in a pass. `residents`: numbers of units, in the board's order.

    Shares are of the time of a pass. `lent_nbytes`: read for others; `remote_nbytes`: by others for it.
    """

    board: str
    layers: tuple[tuple[int, int], ...]
    units: int
    slots: int
    window: int
    residents: tuple[int, ...]
    resident_nbytes: int
    streamed_nbytes: int
    lent_nbytes: int
    remote_nbytes: int
    disk_share: float
    link_share: float
    compute_share: float
    stall_share: float
    peak_nbytes: int


@dataclass(frozen=True)
class LeftOut:
    """Why a board has no part. `seconds`: of a token, were it given one; None where that cannot be."""

    board: str
    why: str
    seconds: float | None = None


@dataclass(frozen=True)
class ClusterPlan:
    """Who runs what. `seconds`: of a token; `first_s`: of the first one, after a prompt of so many tokens and with
    nothing loaded; `alone_s`: of a token on the head alone, None where it cannot; `stages`: boards that run layers.
    """

    stretches: tuple[Stretch, ...]
    boards: tuple[BoardPlan, ...]
    lendings: tuple[Lending, ...]
    seconds: float
    first_s: float
    prompt_tokens: int
    alone_s: float | None
    left_out: Mapping[str, LeftOut]

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stretch.board for stretch in self.stretches))

    @property
    def hops(self) -> int:
        """Changes from the head to a board and back in a pass."""
        head = self.boards[0].board
        return sum(stretch.board != head for stretch in self.stretches)


# What a board that only lends takes: no compute is there.
LENDER_NBYTES = DAEMON_NBYTES + LOADER_NBYTES + WINDOW_NBYTES + MARGIN_NBYTES
