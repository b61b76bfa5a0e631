"""A head's plan for its boards: gathers what they told and what links gave, asks the planner, and watches the run.

It knows the boards by `agents.boards`, and neither sockets nor tensors; what is fast is `core.cluster.planner`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.boards import Boards
from hermes_mp.agents.stage_costs import disk_rate, head_beside_nbytes, idle_nbytes
from hermes_mp.core.budget import LOADER_NBYTES, WINDOW_NBYTES
from hermes_mp.core.cluster.cluster import Cluster, ClusterModel, ClusterPlan, LinkFacts
from hermes_mp.core.cluster.facts import ESTIMATED, MEASURED, Told, differences, make_cluster, read_told
from hermes_mp.core.cluster.layer_costs import LayerCosts, Learning
from hermes_mp.core.cluster.planner import given_plan, plan, plan_lending
from hermes_mp.core.cluster.report import BoardPart
from hermes_mp.core.cluster.stretches import Stretch, check_stretches, layers_of, split_of
from hermes_mp.core.cluster.watch import Slow, Turn, Watch, corrected, expected, when_to_change
from hermes_mp.errors import BadMessage, BudgetTooSmall, CannotBeCut
from hermes_mp.host import profilecache
from hermes_mp.host.cachedir import versions
from hermes_mp.host.checkpoint import Checkpoint
from hermes_mp.messages import BoardTold, RunPlan

if TYPE_CHECKING:
    from hermes_mp.models.chain import Chain
    from hermes_mp.models.prepare import Prepared, Traced

@dataclass
class HeadFacts:
    """What planning needs of the head and of the model. `costs` and `checkpoint` are for `keep`."""

    model: ClusterModel
    told: Told
    costs: LayerCosts
    checkpoint: Checkpoint
    about: dict[str, Any] = field(default_factory=dict)  # versions, processor, threads


def head_facts(
    settings: dict[str, Any], checkpoint: Checkpoint, traced: Traced, made: Prepared, chain: Chain, base_nbytes: int,
    fresh: bool = False,
) -> HeadFacts:  # fmt: skip
    """Of this process; `settings` as the daemon gives them. `base_nbytes`: of compute, before it binds."""
    from hermes_mp.models.stage_costs import cluster_model, recall_costs, rounding_nbytes

    model = cluster_model(traced, made, chain)
    costs = recall_costs(traced, checkpoint, settings["dtype"], settings["threads"], "head", fresh)
    kv = traced.kv_nbytes(range(len(chain.layers)))
    loaders = settings["loaders"] or settings["crew"]
    nbytes = model.mean_layer_nbytes
    told = Told(
        budget_nbytes=_budget(settings["memory"]),
        base_nbytes=head_beside_nbytes(base_nbytes, rounding_nbytes(made, settings["granule"]), loaders),
        reserve_nbytes=made.footprint.without(kv, logits=True).reserve_nbytes,
        loaders=loaders,
        disk_nbytes_per_s=disk_rate(checkpoint, fresh),
        layer_s=costs.layer_s(nbytes) * traced.in_flight,
        prefill_s_per_token=costs.prefill_s_per_token(nbytes) * traced.in_flight,
        head_s=costs.outside_s(model.head_nbytes + model.before_nbytes) * traced.in_flight,
        idle_nbytes=idle_nbytes(loaders),
        source=costs.source,
    )
    threads = settings["threads"] or os.cpu_count() or 1
    about = {"versions": versions(), "processor": profilecache.processor(), "threads": threads}
    return HeadFacts(model, told, costs, checkpoint, about)


def _budget(memory: int | str | None) -> int | None:
    if memory != "auto":
        assert not isinstance(memory, str)
        return memory
    from hermes_mp.models.choose_plan import spare_nbytes

    return spare_nbytes()


@dataclass
class Choice:
    """Who runs what, by which plan (None: none could be made), over which cluster."""

    stretches: list[Stretch]
    plan: ClusterPlan | None
    cluster: Cluster | None

    @property
    def windows(self) -> dict[str, int]:
        return {} if self.plan is None else {one.board: one.window for one in self.plan.boards}

    @property
    def lenders(self) -> dict[str, int]:
        """Boards that read for the head, and by how many remote loaders."""
        return {} if self.plan is None else {one.lender: one.loaders for one in self.plan.lendings}

    def run_plan(self, usual: RunPlan, here: str, source: str) -> RunPlan:
        """Of the head's own daemon."""
        if self.plan is None:
            return usual
        window = self.windows.get(here, 0)
        forecast_us = round(self.plan.seconds * 1e6)
        return replace(usual, window=window, forecast_us=forecast_us, source=source)


class ClusterPlanning:
    """`say` takes what is under way, `note` what is worth a line, `tell` a message for the daemon."""

    def __init__(
        self, boards: Boards, head: HeadFacts, here: str, say: Callable[[str], None], note: Callable[[str], None],
        tell: Callable[[object], None],
    ) -> None:  # fmt: skip
        self._boards, self._head, self._here, self._say, self._note, self._tell = boards, head, here, say, note, tell
        self._links: dict[str, LinkFacts] = {}
        self._slow: dict[str, tuple[dict[str, Any], Cluster]] = {}  # with what it had told: it may come back another
        self._noted: dict[str, str] = {}
        self.choice = Choice([], None, None)
        self._watch = Watch({})
        self.learning = Learning(head.costs)
        self._lent = 0  # remote loaders of ours, of which nothing more is planned
        self.change = ""  # "now" or "next", once a board was found slow and another deal is better

    # --- planning

    def cluster(self) -> Cluster:
        """Of the head and all boards that are there and have opened. Raises LostBoard."""
        ours = self._head.told
        beside = self._lent * (LOADER_NBYTES + WINDOW_NBYTES)
        told, links = {self._here: replace(ours, base_nbytes=ours.base_nbytes + beside)}, {}
        for name in self._boards.there:
            try:
                told[name] = self.told(name)
            except BadMessage as error:
                raise self._boards.lose(name, str(error)) from error
            if name not in self._links:
                self._say(f"measuring the link to board {name}")
                rate, trip_s = self._boards.measure(name)
                self._links[name] = LinkFacts(rate, trip_s)
            links[name] = self._links[name]
        return self._as_found(make_cluster(self._head.model, self._here, told, links))

    def told(self, name: str) -> Told:
        """What the board tells of itself. Raises BadMessage."""
        return read_told(name, self._boards.linked[name].opened)

    def _as_found(self, cluster: Cluster) -> Cluster:
        """With the figures of boards that were found slow, as long as they are the same."""
        boards, links = list(cluster.boards), dict(cluster.links)
        for name, (opened, found) in self._slow.items():
            if name in links and self._boards.linked[name].opened is opened:
                facts = found.boards[found.number(name)]
                at = cluster.number(name)
                boards[at] = replace(boards[at], layer_s=facts.layer_s, disk_nbytes_per_s=facts.disk_nbytes_per_s)
                links[name] = found.links[name]
        return replace(cluster, boards=tuple(boards), links=links)

    def choose(self, split: Sequence[tuple[str, int]] | None) -> Choice:
        """The best deal, or that of `split` where all that it names are there. Raises LostBoard, BadOption."""
        layers = len(self._head.model.layer_nbytes)
        cluster = self.cluster()
        there = {board.name for board in cluster.boards}
        self._say("planning who runs which layers")
        given = None
        if split is not None and all(name in there for name, _ in split):
            given = split_of(split)
            check_stretches(given, layers)
        try:
            if given is not None:
                found = given_plan(cluster, given)
            else:
                found = plan(cluster) if self._lent else plan_lending(cluster)
            self.choice = Choice(list(found.stretches), found, cluster)
        except (BudgetTooSmall, CannotBeCut) as error:  # by what is known here; the daemons judge by what is so
            if given is None:
                self._note(f"no plan: {error}; the layers are dealt in equal parts")
            self.choice = Choice(given or _equal([board.name for board in cluster.boards], layers), None, cluster)
        chosen = self.choice.plan
        self._watch = Watch({} if chosen is None else expected(cluster, chosen))
        self.change = ""
        for name, loaders in self.choice.lenders.items():
            through = f"{loaders} remote loader{'s' * (loaders > 1)}"
            self._once(name, f'board "{name}" runs no layers, and lends its disk to {through} here')
        for name, one in ({} if chosen is None else chosen.left_out).items():
            self._once(name, f'board "{name}" is left out: {one.why}')
        return self.choice

    def lent(self, loaders: int) -> None:
        """So many remote loaders read from now on, whatever is chosen later."""
        self._lent += loaders

    def _once(self, name: str, text: str) -> None:
        if self._noted.get(name) != text:
            self._noted[name] = text
            self._note(text)

    @property
    def source(self) -> str:
        """What the figures are, of all boards with a part."""
        told = [self._head.told.source]
        told += [self.told(name).source for name in self._boards.there]
        return MEASURED if all(one == MEASURED for one in told) else ESTIMATED

    # --- while it runs

    def passed(self, turns: dict[str, Turn], pass_s: float, made: int) -> None:
        """A pass over one token is over, the `made`-th of its request."""
        slow = self._watch.look(turns, pass_s)
        if slow is None or self.choice.plan is None or self.choice.cluster is None:
            return
        self._note(slow.text() + self._consider(slow, made))

    def _consider(self, slow: Slow, made: int) -> str:
        """Plan with what was found; what is done about it, in words."""
        assert self.choice.plan is not None
        assert self.choice.cluster is not None
        if self._lent:
            return ""  # a forecast of what is would have to know how fast they read
        found = corrected(self.choice.cluster, self.choice.plan, slow)
        self._slow[slow.board] = self._boards.linked[slow.board].opened, found
        try:
            now = given_plan(found, self.choice.stretches)
            then = plan(found)
        except (BudgetTooSmall, CannotBeCut):
            return ""
        self.choice.cluster = found
        # A forecast may flatter what is now; what was measured does not.
        now_s = max(now.seconds, slow.pass_s)
        when = when_to_change(now_s, then.seconds, then.first_s, made)
        if when == "never":
            return "; no other deal is better"
        self.change = when
        at = "now" if when == "now" else "from the next request on"
        return f"; the layers are dealt anew {at}: {then.seconds:.2g} s a token instead of {now_s:.2g}"

    # --- what it came to

    def tell_parts(self, parts: dict[str, dict[str, Any]]) -> None:
        """Have the daemon's report know of every board; `parts` adds what was measured of it."""
        for name in (self._here, *self._boards.linked):
            part = self._part(name, **parts.get(name, {}))
            self._tell(BoardTold(name, json.dumps(_as_told(part))))

    def _part(self, name: str, **measured: Any) -> BoardPart:
        linked = self._boards.linked.get(name)
        chosen = self.choice.plan
        facts: dict[str, Any] = {"layers": tuple(layers_of(self.choice.stretches, name))}
        if linked is not None and linked.lends:
            return BoardPart(name)  # by how many loaders the daemon knows
        if linked is not None and not linked.is_there:
            return BoardPart(name, left_out=linked.why or "it is lost")
        if linked is not None:
            facts["differs"] = tuple(differences(self._head.about, linked.facts))
        if chosen is not None and name in chosen.left_out:
            facts["left_out"] = chosen.left_out[name].why
        for one in () if chosen is None else chosen.boards:
            if one.board == name and chosen is not None and self.choice.cluster is not None:
                turn = expected(self.choice.cluster, chosen).get(name)
                facts |= {
                    "forecast_s": None if turn is None else turn.away_s,
                    "forecast_stalled_s": one.stall_share * chosen.seconds,
                    "forecast_peak_nbytes": one.peak_nbytes,
                    "forecast_read_nbytes": one.streamed_nbytes,
                }
        return BoardPart(name, **{**facts, **measured})

    @property
    def resident_nbytes(self) -> dict[str, int]:
        chosen = self.choice.plan
        return {} if chosen is None else {one.board: one.resident_nbytes for one in chosen.boards}

    def keep(self, settings: dict[str, Any]) -> None:
        """What this run has shown of the head's own computing, for the next one."""
        from hermes_mp.models.stage_costs import keep_costs

        learned = self.learning.learned()
        if learned != self._head.costs:
            batch, threads = settings["batch"], settings["threads"]
            keep_costs(learned, self._head.checkpoint, settings["dtype"], batch, threads, "head")

    @property
    def own_layers(self) -> int:
        """How many the head runs itself."""
        return len(layers_of(self.choice.stretches, self._here))

    @property
    def model(self) -> ClusterModel:
        return self._head.model


def _equal(names: Sequence[str], layers: int) -> list[Stretch]:
    """As equal as can be, one stretch each."""
    counts = [layers * (at + 1) // len(names) - layers * at // len(names) for at in range(len(names))]
    return split_of((name, count) for name, count in zip(names, counts, strict=True) if count)


def _as_told(part: BoardPart) -> dict[str, Any]:
    """Without what is not known, so that a message holds it."""
    return {name: value for name, value in vars(part).items() if value not in (None, (), "")}
