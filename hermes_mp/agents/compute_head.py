"""A head's compute: has other boards run layers of its model, divides them anew when a board is lost or comes back.

The request under way is then repeated from its beginning; what was said of it is not said again (`core.retelling`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.board_link import BoardEntry, LostBoard, StageForgotten
from hermes_mp.agents.boards import Boards
from hermes_mp.agents.borrowed import Borrowed, Lender
from hermes_mp.agents.cluster_planning import Choice, ClusterPlanning, head_facts
from hermes_mp.agents.cluster_watching import Watching
from hermes_mp.agents.compute_model import Opened, takes_turns
from hermes_mp.agents.greeting import Greeting
from hermes_mp.agents.supplying import LinkedSupply
from hermes_mp.core.bundle import Placed
from hermes_mp.core.cluster.stretches import Stretch, of_board
from hermes_mp.errors import HermesError, RequestAgain
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.host.fingerprint import fingerprint
from hermes_mp.host.pairings import Store
from hermes_mp.host.wire import Link
from hermes_mp.messages import (
    BoardGone,
    LayerCalls,
    Note,
    RequestRepeated,
    RunLayers,
    RunPlan,
    ToCompute,
    clip,
)

if TYPE_CHECKING:
    import torch

    from hermes_mp.models.sharing import Hop, Sharing

HERE = "head"  # the head's own name among the boards
STOP_S = 1.0
LOOK_S, TURN_S = 0.25, 0.002  # how long one board, and each of several, is waited for


class Head:
    """`settings["boards"]`: `entries` (name, address, key), `split` (pairs of board and layers, or None), `stage`."""

    def __init__(self, settings: dict[str, Any], supply: LinkedSupply, link: Link[ToCompute]) -> None:
        self._settings, self._supply, self._link = settings, supply, link
        told = settings["boards"]
        entries = [BoardEntry(*entry) for entry in told["entries"]]
        self._split: list[tuple[str, int]] | None = told["split"]
        directory = Path(settings["directory"])
        own = Store().identity() if any(entry.key for entry in entries) else None
        own_name = HERE if own is None else own.name
        greeting = Greeting(told["software"], own_name, directory.name, fingerprint(find_checkpoint(directory)))
        self._entries, self._greeting = {entry.name: entry for entry in entries}, greeting
        self.boards = Boards(
            entries, None if own is None else own.keys, greeting, supply.say, self._note, settings["death_fd"]
        )
        self.epoch = 0
        self._lenders: dict[str, int] = {}  # by how many remote loaders of ours
        self._repeated: set[int] = set()  # the requests that were repeated last
        self._apart: list[str] = []  # boards that were asked, and not waited for
        self._is_again = False  # what is answered now has been asked before
        self._opened: Opened | None = None
        self._sharing: Sharing | None = None
        self._base = self._wish = 0
        self._stretches: list[Stretch] = []
        self._planning: ClusterPlanning | None = None
        self._watching: Watching | None = None

    @property
    def sharing(self) -> Sharing:
        assert self._sharing is not None
        return self._sharing

    def close(self) -> None:
        if self._planning is not None:
            self._planning.keep(self._settings)
        self.boards.stop(self.epoch, STOP_S)
        self.boards.close()

    # --- the beginning

    def greet(self) -> None:
        """Greet all boards and have those that are there start up; who is not there is left out."""
        for name in self.boards.linked:
            self._supply.say(f"greeting board {name}")
            try:
                self.boards.greet(name)
                self.boards.start([name], self._settings["boards"]["stage"], self.epoch)
            except LostBoard as error:
                self._gone(error)

    def begin(self, opened: Opened, base: int, wish: int) -> None:
        """The head's model is there: share its layers, and describe what is left for this board."""
        from hermes_mp.models.sharing import share

        assert opened.chain is not None
        self._opened, self._base, self._wish = opened, base, wish
        self._sharing = share(opened.model, opened.chain, self, HERE)
        self._begin_planning(opened)
        self._divide_somehow()

    def _begin_planning(self, opened: Opened) -> None:
        from hermes_mp.models.binding import call_arguments, call_extent

        assert opened.chain is not None
        head = head_facts(
            self._settings, find_checkpoint(opened.directory), opened.traced, opened.made, opened.chain, self._base
        )
        self._planning = ClusterPlanning(self.boards, head, HERE, self._supply.say, self._note, self._link.send)
        self._planning.lent(self._settings["remote_loaders"])
        watching = self._watching = Watching(self.boards, self._planning, lambda: self._supply.stalled_ns)

        def began(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            watching.began(call_extent(call_arguments(module, args, kwargs))[1])

        if not takes_turns(self._settings):  # the times of several passes at once say nothing of one
            opened.model.register_forward_pre_hook(began, with_kwargs=True)

    def _divide(self) -> None:
        """Say who runs what from now on, and wait until all can. Raises LostBoard, and BudgetTooSmall of this board."""
        from hermes_mp.models.units import units_of

        opened, sharing = self._opened, self._sharing
        assert opened is not None
        assert opened.chain is not None
        assert sharing is not None
        assert self._planning is not None
        assert self._watching is not None
        self.epoch += 1
        layers = opened.chain.layers
        self.boards.await_opened()
        choice = self._planning.choose(self._split)
        self._watching.reset(divided=True)
        self._stretches = choice.stretches
        own = {name: of_board(self._stretches, name) for name in self.boards.there}
        used = {name: ranges for name, ranges in own.items() if ranges}
        for name, loaders in choice.lenders.items():
            self.boards.let_lend(name, self.epoch)
            self._lenders[name] = loaders
            self._planning.lent(loaders)
        self.boards.assign(self.epoch, used, choice.windows)
        sharing.assign(self._stretches)
        far = [layer for one in self._stretches if one.board != HERE for layer in range(one.first, one.last)]
        apart = {unit for layer in far for unit in units_of(opened.made.division, layers[layer])}
        opened.footprint = opened.made.footprint.without(opened.traced.kv_nbytes(far), logits=True)
        self._supply.assign([unit for unit in range(len(opened.made.division.list.units)) if unit not in apart])
        reserve, run_plan = opened.footprint.reserve_nbytes, self._run_plan(choice)
        self._supply.describe(self._base, reserve, self._wish, run_plan, self._borrowed())
        self.boards.await_ready(self.epoch, used)

    def _run_plan(self, choice: Choice) -> RunPlan:
        assert self._opened is not None
        assert self._planning is not None
        return choice.run_plan(self._opened.plan, HERE, self._planning.source)

    def _borrowed(self) -> str:
        """All lenders so far, for the daemon."""
        entries = [(self._entries[name], count) for name, count in self._lenders.items()]
        lenders = tuple(Lender(one.name, one.address, one.key, count) for one, count in entries)
        borrowed = Borrowed(lenders, self._greeting.model, self._greeting.fingerprint)
        return json.dumps(borrowed.as_json()) if lenders else ""

    # --- requests

    def answer(self, number: int, answer: Callable[[], None]) -> None:
        """Answer a request; where a board is lost in it, or has come back before it, have the daemon ask once more."""
        # Once for a request: a board that fails each time would have it repeated for ever.
        why = self.come_back(number)
        if why:
            self._again([number], why)
            return
        assert self._planning is not None
        assert self._watching is not None
        if self._planning.change:
            self._again([number], "a board was found slow; the layers are dealt anew")
            return
        self._watching.reset()
        self._is_again = number in self._repeated  # once is enough: load may move between boards for ever
        try:
            answer()
        except (LostBoard, StageForgotten) as error:
            self.ask_again([number], error)

    def come_back(self, number: int) -> str:
        """Before this request is begun: why requests are to be repeated, if boards have come back."""
        back = [] if number in self._repeated else self._rejoin()
        return f"board {', '.join(back)} is there again and joins" if back else ""

    def ask_again(self, numbers: Sequence[int], error: HermesError) -> None:
        """These were ended by that error: have the daemon ask them once more."""
        what = "the request is repeated" if len(numbers) == 1 else f"{len(numbers)} requests are repeated"
        if isinstance(error, LostBoard):
            self._gone(error)
            self._again(numbers, f"{what} without it")
        elif isinstance(error, StageForgotten):
            self._again(numbers, f"{error}; {what}")
        else:
            self._again(numbers, str(error))

    def _again(self, numbers: Sequence[int], why: str) -> None:
        self._repeated, self._apart = set(numbers), []
        self._link.send(RequestRepeated(numbers[0], clip(why, 1000)))
        self._divide_somehow()

    def _divide_somehow(self) -> None:
        while True:
            try:
                self._divide()
                return
            except LostBoard as error:
                self._gone(error)
            except StageForgotten as error:
                self._note(str(error))

    def _rejoin(self) -> list[str]:
        """Lost boards that are there again take part from this request on."""
        back = []
        for name in self.boards.come_back():
            try:
                self.boards.start([name], self._settings["boards"]["stage"], self.epoch)
            except HermesError:
                continue
            self._link.send(BoardGone(name, ""))
            back.append(name)
        return back

    # --- layers of other boards (models.sharing.Far)

    def run(self, board: str, hops: Sequence[Hop]) -> list[torch.Tensor]:
        self._ask(board, hops, more=False)
        while not self.boards.has_answered(board, LOOK_S):
            pass
        return self._given(board)

    def send(self, board: str, hop: Hop, more: bool) -> None:
        self._ask(board, [hop], more)
        self._apart.append(board)

    def arrived(self, wait: bool) -> list[tuple[str, torch.Tensor | Exception]]:
        while True:
            timeout_s = (LOOK_S if len(self._apart) == 1 else TURN_S) if wait else 0.0
            found = [board for board in self._apart if self.boards.has_answered(board, timeout_s)]
            for board in found:
                self._apart.remove(board)
            if found or not wait:
                return [(board, self._given_or_why(board)) for board in found]

    def _ask(self, board: str, hops: Sequence[Hop], more: bool) -> None:
        from hermes_mp.models.binding import byte_view
        from hermes_mp.models.layer_calls import spec_of

        if self._planning is not None and self._planning.change == "now" and not self._is_again:
            raise StageForgotten(board, "slow; its layers are dealt anew")
        tensors = [one.contiguous() for hop in hops for one in (*hop.tensors, hop.states)]
        parts = tuple(
            LayerCalls(
                hop.member, hop.chunk, hop.past, hop.rows, hop.calls, tuple(spec_of(one) for one in hop.tensors),
                spec_of(hop.states),
            )
            for hop in hops
        )  # fmt: skip
        first = hops[0]
        ask = RunLayers(self.epoch, first.number, first.index, first.last, more, parts)
        self.boards.begin(board, ask, [byte_view(one) for one in tensors])

    def _given_or_why(self, board: str) -> torch.Tensor | Exception:
        try:
            return self._given(board)[0]
        except HermesError as error:
            if isinstance(error, RequestAgain):
                raise
            return error

    def _given(self, board: str) -> list[torch.Tensor]:
        import torch

        from hermes_mp.models.binding import byte_view

        given: list[torch.Tensor] = []

        def room(placed: Sequence[Placed]) -> memoryview:
            whole = torch.empty(placed[-1].end, dtype=torch.uint8)
            for one in placed:
                raw = whole[one.at : one.end]
                given.append(raw.view(getattr(torch, one.spec.dtype)).view(one.spec.shape))
            return byte_view(whole)

        self.boards.finish(board, room)
        return given

    def keeps_all(self, board: str) -> bool:
        stage = self.boards.linked[board].stage  # as it was when it became ready: slots yet to be filled count
        slots, units = stage.get("slots"), stage.get("units")
        return type(slots) is int and type(units) is int and 0 < units <= slots

    def look(self) -> None:
        self.boards.look()

    def tell(self) -> None:
        """An answer is there: the report shall know what all boards have taken."""
        if self._watching is not None:
            self._watching.tell(self.epoch)

    def _gone(self, error: LostBoard) -> None:
        self._link.send(BoardGone(error.board, clip(str(error), 1000)))

    def _note(self, text: str) -> None:
        self._link.send(Note(clip(text, 1000)))
