"""What a lender owes whom: orders in pieces, each read into a slot of the lender's and sent from there, under credits.

A piece is read only once its borrower has allowed its bytes, and while all that is on its way fits what may be lent:
whoever grants nothing holds nothing. Borrowers take turns, of each the orders come one after the other.
It knows no file, no socket and no process; what cannot be is a `Refusal`, whatever the other board asks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hermes_mp.board_messages import MAX_PAYLOAD_NBYTES
from hermes_mp.core.layout import ALIGN, aligned_up
from hermes_mp.errors import BadMessage, HermesError, InvariantBroken, LoadersLost
from hermes_mp.messages import Range

PIECE_NBYTES = 2 << 20  # read at once, and sent in two frames; a multiple of ALIGN
SLOT_NBYTES = PIECE_NBYTES + 2 * ALIGN  # a piece lies as in its order modulo ALIGN, and its last block is read whole
PIECE_RANGES = 64  # rows of an embedding: several loaders share a thousand
GRANT_NBYTES = 1 << 20  # that came are granted again at once, so less may be owed and not be on its way
MAX_ORDERS = 16  # of one borrower
READS = 2  # of one loader: the next one begins before it has told of the last
TRIES = 3  # of a piece whose loaders die
PATIENCE_NS = 30_000_000_000  # with a borrower that has ordered, and takes nothing
HANGS_NS = 20_000_000_000  # a loader without progress for so long is killed; the borrower waits no longer than 30 s

B = TypeVar("B", bound=Hashable)
L = TypeVar("L", bound=Hashable)


def stretches(ranges: Sequence[Range]) -> list[tuple[int, int]]:
    """(byte of the slot, length) of what ranges fill without a gap, in their order; both ends go by this."""
    found: list[tuple[int, int]] = []
    for one in ranges:
        if found and sum(found[-1]) == one.at:
            found[-1] = found[-1][0], found[-1][1] + one.nbytes
        elif one.nbytes:
            found.append((one.at, one.nbytes))
    return found


def pieces_of(ranges: Sequence[Range]) -> Iterator[tuple[int, tuple[Range, ...]]]:
    """(byte of the order's slot, its reads with `at` counted from there), none longer than a piece, none with a gap."""
    at, nbytes, reads = 0, 0, list[Range]()
    for one in ranges:
        done = 0
        while done < one.nbytes:
            if reads and (one.at + done != at + nbytes or nbytes == PIECE_NBYTES or len(reads) == PIECE_RANGES):
                yield at, tuple(reads)
                nbytes, reads = 0, []
            if not reads:
                at = one.at + done
            take = min(one.nbytes - done, PIECE_NBYTES - nbytes)
            reads.append(Range(one.file, one.offset + done, take, nbytes))
            nbytes, done = nbytes + take, done + take
    if reads:
        yield at, tuple(reads)


@dataclass(frozen=True)
class Part:
    """Send `nbytes` of the arena's slot `slot`, from its byte `skip`, to byte `at` of the order's slot."""

    order: int
    at: int
    nbytes: int
    slot: int
    skip: int


@dataclass(frozen=True)
class Lent:
    """All of the order was sent."""

    order: int
    nbytes: int
    slowest_ns: int


@dataclass(frozen=True)
class Refusal:
    """The order cannot be; nothing more of it is sent."""

    order: int
    error: HermesError


@dataclass(eq=False)
class Piece:
    """One read, into `slot` once it has one: what is at byte `at` of its order lies at byte `skip` of that."""

    model: Hashable
    at: int
    nbytes: int
    ranges: tuple[Range, ...]
    number: int = 0  # of its present read
    slot: int = -1
    sent: int = 0
    tries: int = 0
    is_read: bool = False

    @property
    def skip(self) -> int:
        return self.at % ALIGN


@dataclass(eq=False)
class _Order:
    number: int
    model: Hashable
    nbytes: int
    unread: deque[Piece]
    pieces: deque[Piece] = field(default_factory=deque)  # that have slots, in order
    slowest_ns: int = 0
    looked: bool = False  # its files are what they were, after the last byte was read
    error: HermesError | None = None
    in_doubt: bool = False  # a read failed: maybe because its file has changed

    @property
    def is_read(self) -> bool:
        return not self.unread and all(piece.is_read for piece in self.pieces)


@dataclass(eq=False)
class _Borrower:
    orders: deque[_Order] = field(default_factory=deque)
    last: int = -1
    credit: int = 0
    owed: int = 0  # bytes read or sent of which it has not said that it has them
    moved_ns: int = 0


class Loans(Generic[B, L]):
    """`slots` slots; `nbytes` may be in them and on their way, to all borrowers together."""

    def __init__(self, slots: int, nbytes: int) -> None:
        if slots < 1 or nbytes < PIECE_NBYTES:
            raise InvariantBroken(f"what is lent has room for a piece: {slots} slots, {nbytes} bytes")
        self._nbytes = nbytes
        self._slots = slots
        self._free = deque(range(slots))
        self._borrowers: dict[B, _Borrower] = {}  # whose turn it is comes first
        self._loaders: dict[L, dict[int, tuple[Piece, _Order | None]]] = {}
        self._progress: dict[L, tuple[int, int]] = {}  # counter, and since when
        self._numbers = 0
        self._owners: dict[int, B] = {}  # by the number of a piece that has a slot
        self._again: deque[tuple[Piece, _Order]] = deque()  # whose loader died

    # --- borrowers

    def ordered(
        self, borrower: B, number: int, ranges: Sequence[Range], files: Sequence[int], model: Hashable, now_ns: int
    ) -> Refusal | None:
        """It wants these ranges of files of so many bytes; without any, to know that the files are what they were."""
        known = self._borrowers.setdefault(borrower, _Borrower(moved_ns=now_ns))
        wrong = _wrong(number, ranges, files, known)
        if wrong:
            return Refusal(number, BadMessage(wrong))
        known.last = number
        if not known.orders:
            known.moved_ns = now_ns
        unread = deque(
            Piece(model, at, sum(one.nbytes for one in reads), reads) for at, reads in pieces_of(ranges)
        )
        known.orders.append(_Order(number, model, sum(one.nbytes for one in ranges), unread))
        return None

    def granted(self, borrower: B, nbytes: int, now_ns: int) -> None:
        """So many bytes more may be on their way to it."""
        known = self._borrowers.setdefault(borrower, _Borrower())
        known.credit += nbytes
        known.owed = max(0, known.owed - nbytes)
        known.moved_ns = now_ns

    def left(self, borrower: B) -> None:
        """It is gone; what is still being read for it comes free with its news."""
        known = self._borrowers.pop(borrower, None)
        for order in known.orders if known is not None else ():
            self._drop(order)

    def stuck(self, now_ns: int) -> list[B]:
        """Those that have ordered, could be sent something, and took nothing for too long."""
        return [
            borrower for borrower, known in self._borrowers.items()
            if known.orders and now_ns - known.moved_ns >= PATIENCE_NS and self._waits_for_it(known)
        ]  # fmt: skip

    def _waits_for_it(self, known: _Borrower) -> bool:
        order = known.orders[0]
        if order.pieces:
            return order.pieces[0].is_read  # and it is not taken
        return bool(order.unread) and order.unread[0].nbytes > known.credit

    # --- loaders

    def started(self, loader: L, now_ns: int) -> None:
        """It can be given reads."""
        self._loaders.setdefault(loader, {})
        self._progress[loader] = 0, now_ns

    def gone(self, loader: L) -> None:
        """The kernel says so: what it was at is read by another, into the same slot, or fails."""
        self._progress.pop(loader, None)
        for piece, order in self._loaders.pop(loader, {}).values():
            if order is None:
                self._release(piece)
                continue
            piece.tries += 1
            if piece.tries < TRIES:
                self._again.append((piece, order))
            else:
                died = f"{piece.tries} loaders died while they read the same {piece.nbytes} bytes"
                self._fail(order, LoadersLost(died))

    def unkillable(self, loader: L, error: HermesError) -> None:
        """It was killed and is still there: its slots are lost until it is gone, its orders for good."""
        self._progress.pop(loader, None)
        for _, order in list(self._loaders.get(loader, {}).values()):
            if order is not None:
                self._fail(order, error)

    def seen(self, loader: L, counter: int, now_ns: int) -> None:
        """A look at its progress counter."""
        before = self._progress.get(loader)
        if before is not None and (before[0] != counter or not self._loaders.get(loader)):
            self._progress[loader] = counter, now_ns

    def hanging(self, now_ns: int) -> list[L]:
        """Those that are to be killed."""
        return [one for one, (_, since_ns) in self._progress.items() if now_ns - since_ns >= HANGS_NS]

    def next_read(self) -> tuple[L, Piece] | None:
        """Have this loader read this piece into its slot; call again until it is None."""
        able = [loader for loader in self._progress if len(self._loaders[loader]) < READS]
        if not able:
            return None
        while self._again:
            piece, order = self._again.popleft()
            if piece in order.pieces:
                return self._given(able, piece, order), piece
        if not self._free:
            return None
        for borrower, known in self._borrowers.items():
            wanted = next((one for one in known.orders if one.unread), None)
            if wanted is None or not self._may(known, wanted.unread[0].nbytes):
                continue
            piece = wanted.unread.popleft()
            piece.slot = self._free.popleft()
            wanted.pieces.append(piece)
            known.credit -= piece.nbytes
            known.owed += piece.nbytes
            self._owners[piece.number] = borrower  # 0, until it is given to a loader
            self._borrowers[borrower] = self._borrowers.pop(borrower)  # the last one now
            return self._given(able, piece, wanted), piece
        return None

    def _given(self, able: Sequence[L], piece: Piece, order: _Order) -> L:
        """Under a new number: those that a loader is told only grow, see `core.loading`."""
        owner = self._owners.pop(piece.number)
        self._numbers += 1
        piece.number = self._numbers
        self._owners[piece.number] = owner
        loader = min(able, key=lambda one: len(self._loaders[one]))
        self._loaders[loader][piece.number] = piece, order
        return loader

    def read(self, loader: L, number: int, slowest_ns: int, now_ns: int) -> None:
        """A piece is in its slot."""
        found = self._loaders.get(loader, {}).pop(number, None)
        if found is None:
            return
        self._progress[loader] = self._progress.get(loader, (0, 0))[0], now_ns
        piece, order = found
        if order is None:
            self._release(piece)
            return
        piece.is_read = True
        order.slowest_ns = max(order.slowest_ns, slowest_ns)
        owner = self._borrowers.get(self._owners[number])
        if owner is not None and owner.orders[0] is order and order.pieces[0] is piece:
            owner.moved_ns = now_ns

    def broken(self, loader: L, number: int, error: HermesError) -> None:
        """A piece cannot be read: nor can its order. Before that is said its files are looked at."""
        found = self._loaders.get(loader, {}).pop(number, None)
        if found is None:
            return
        piece, order = found
        if order is None:
            self._release(piece)
        else:
            order.in_doubt = order.error is None
            self._fail(order, error)

    def lost(self, error: HermesError) -> None:
        """No loader is left, and none will come."""
        for known in self._borrowers.values():
            for order in known.orders:
                self._fail(order, error)

    def begin_anew(self) -> None:
        """Other loaders and other memory will come: nobody has ordered anything."""
        for reads in self._loaders.values():
            for piece, _ in reads.values():
                self._release(piece)
        self._loaders.clear()
        self._progress.clear()

    # --- files

    def to_look_at(self) -> list[tuple[B, int, Hashable]]:
        """(borrower, order, model) of orders that were read: the files are to be looked at before that is said."""
        return [
            (borrower, order.number, order.model) for borrower, known in self._borrowers.items()
            for order in known.orders if order.in_doubt or (order.is_read and not order.looked and order.error is None)
        ]  # fmt: skip

    def looked(self, borrower: B, number: int, error: HermesError | None) -> None:
        """After its last byte was read its files were what they had been, or not."""
        known = self._borrowers.get(borrower)
        order = None if known is None else next((one for one in known.orders if one.number == number), None)
        if order is not None and order.in_doubt:
            order.in_doubt, order.error = False, error or order.error
        elif order is not None and error is not None:
            self._fail(order, error)
        elif order is not None:
            order.looked = True

    # --- what is sent

    @property
    def borrowers(self) -> list[B]:
        """Whose turn it is comes first."""
        return list(self._borrowers)

    def next_word(self, borrower: B) -> Part | Lent | Refusal | None:
        """What this one can be sent now; `said` once it was."""
        known = self._borrowers.get(borrower)
        if known is None or not known.orders:
            return None
        order = known.orders[0]
        if order.in_doubt:
            return None
        if order.error is not None:
            return Refusal(order.number, order.error)
        if order.pieces:
            piece = order.pieces[0]
            if not piece.is_read:
                return None
            nbytes = min(MAX_PAYLOAD_NBYTES, piece.nbytes - piece.sent)
            return Part(order.number, piece.at + piece.sent, nbytes, piece.slot, piece.skip + piece.sent)
        return Lent(order.number, order.nbytes, order.slowest_ns) if order.looked and order.is_read else None

    def said(self, borrower: B, word: Part | Lent | Refusal, now_ns: int) -> None:
        """It is on its way, and its place in the slot is free."""
        known = self._borrowers[borrower]
        known.moved_ns = now_ns
        if not isinstance(word, Part):
            known.orders.popleft()
            return
        pieces = known.orders[0].pieces
        pieces[0].sent += word.nbytes
        if pieces[0].sent == pieces[0].nbytes:
            self._release(pieces.popleft())

    @property
    def is_idle(self) -> bool:
        """Nobody has ordered, and nothing is read."""
        return not any(known.orders for known in self._borrowers.values()) and not any(self._loaders.values())

    @property
    def has_ordered(self) -> bool:
        """Whether anybody waits for something."""
        return any(known.orders for known in self._borrowers.values())

    # ---

    def _may(self, known: _Borrower, nbytes: int) -> bool:
        share = max(PIECE_NBYTES, self._nbytes // max(1, len(self._borrowers)))
        on_its_way = sum(map(_on_its_way, self._borrowers.values()))
        within = _on_its_way(known) + nbytes <= share and on_its_way + nbytes <= self._nbytes
        return within and nbytes <= known.credit

    def _release(self, piece: Piece) -> None:
        """Nobody reads or writes its slot any more."""
        self._free.append(piece.slot)
        piece.slot = -1
        self._owners.pop(piece.number, None)

    def _repay(self, borrower: B, nbytes: int) -> None:
        """Bytes that were allowed and will not come."""
        known = self._borrowers.get(borrower)
        if known is not None:
            known.credit += nbytes
            known.owed = max(0, known.owed - nbytes)

    def _fail(self, order: _Order, error: HermesError) -> None:
        order.error = order.error or error
        self._drop(order)

    def _drop(self, order: _Order) -> None:
        """Give back what it holds; a slot that is being read into comes free with the news of that."""
        order.unread.clear()
        under_way = {number: loader for loader, reads in self._loaders.items() for number in reads}
        for piece in list(order.pieces):
            order.pieces.remove(piece)
            self._repay(self._owners[piece.number], piece.nbytes - piece.sent)
            loader = under_way.get(piece.number)
            if loader is None:
                self._release(piece)
            else:
                self._loaders[loader][piece.number] = piece, None

    def check(self) -> None:
        """For tests: every slot is free, read into, or holds what is sent; nobody is owed more than may be lent."""
        held = [piece.slot for reads in self._loaders.values() for piece, order in reads.values()]
        held += [
            piece.slot for known in self._borrowers.values() for order in known.orders for piece in order.pieces
            if piece.is_read
        ]  # fmt: skip
        held += [piece.slot for piece, order in self._again if piece in order.pieces]
        if sorted([*held, *self._free]) != list(range(self._slots)):
            raise InvariantBroken(f"every slot has one use: {sorted(held)} held, {sorted(self._free)} free")
        if any(known.credit < 0 or known.owed < 0 for known in self._borrowers.values()):
            raise InvariantBroken("nothing is read that was not allowed")
        if sum(map(_on_its_way, self._borrowers.values())) > self._nbytes:
            raise InvariantBroken("no more is on its way than may be lent")


def _on_its_way(known: _Borrower) -> int:
    return max(0, known.owed - GRANT_NBYTES)


def _wrong(number: int, ranges: Sequence[Range], files: Sequence[int], known: _Borrower) -> str:
    if number <= known.last:
        return f"order {number} came after order {known.last}"
    if len(known.orders) >= MAX_ORDERS:
        return f"{MAX_ORDERS} orders wait already"
    at = 0
    for one in ranges:
        if not 0 <= one.file < len(files):
            return f"order {number}: there is no file {one.file}"
        if min(one.offset, one.nbytes, one.at) < 0 or one.offset + one.nbytes > files[one.file]:
            return f"order {number}: {one.nbytes} bytes from {one.offset} are not all in a file of {files[one.file]}"
        if one.at < at:
            return f"order {number}: its ranges are not one after the other"
        at = one.at + one.nbytes
    return ""


def reads_of(piece: Piece, first_file: int) -> tuple[Range, ...]:
    """What a loader is told: `at` counts from its slot's begin, files from the first of their model."""
    return tuple(Range(first_file + one.file, one.offset, one.nbytes, piece.skip + one.at) for one in piece.ranges)


def room_of(piece: Piece) -> int:
    """Bytes of its slot that may be written."""
    return min(SLOT_NBYTES, aligned_up(piece.skip + piece.nbytes))
