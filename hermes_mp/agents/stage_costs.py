"""What a stage tells its head before it is given layers, and what it learns of their cost while it runs them.

One half is compute's (the model, its cost), the other the daemon's (the budget, what its processes take).
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from hermes_mp.core.budget import DAEMON_NBYTES, LOADER_NBYTES, MARGIN_NBYTES
from hermes_mp.core.busy import Reading
from hermes_mp.core.cluster.facts import Told
from hermes_mp.core.cluster.layer_costs import Learning
from hermes_mp.core.loading import READERS
from hermes_mp.core.planner import DAEMON_AT_WORK, LOADER_AT_WORK
from hermes_mp.core.profile import ASSUMED_DEVICE, DeviceProfile, ReadRate
from hermes_mp.errors import HermesError
from hermes_mp.host import diskspeed, profilecache
from hermes_mp.host.checkpoint import Checkpoint, find_checkpoint
from hermes_mp.messages import AssignLayers, LayersFailed, LayersRun, RunLayers, StageMeasured

if TYPE_CHECKING:
    from hermes_mp.agents.compute_model import Opened
    from hermes_mp.agents.daemon import Daemon


QUICK_S, QUICK_NBYTES = 1.0, 32 << 20  # of reading, once per device
CHUNK_NBYTES = 16 << 20  # of a read, about: a profile names one
LEAST_READ_NBYTES = 256 << 20  # by a run, that says more than the try
GROWS_NBYTES = 1 << 20  # the daemon, until the slots are divided: without it there would be one slot less at times


class StageCosts:
    """Compute's half. `settings` as the daemon gives them."""

    def __init__(self, opened: Opened, settings: dict[str, Any]) -> None:
        from hermes_mp.models.stage_costs import cluster_model, recall_costs

        assert opened.chain is not None
        self._opened, self._settings = opened, settings
        self._checkpoint = find_checkpoint(opened.directory)
        self._model = cluster_model(opened.traced, opened.made, opened.chain)
        fresh = bool(settings["options"].get("fresh"))
        self.costs = recall_costs(
            opened.traced, self._checkpoint, settings["dtype"], settings["threads"], "stage", fresh
        )
        self._learning = Learning(self.costs)
        self._layers = 0
        self._number, self._tokens, self._seconds = -1, 0, 0.0

    def measured(self, base_nbytes: int) -> StageMeasured:
        """`base_nbytes`: of compute, before it binds. The budget and the other processes are the daemon's to add."""
        from hermes_mp.models.stage_costs import rounding_nbytes, states_nbytes

        opened, nbytes = self._opened, self._model.mean_layer_nbytes
        assert opened.chain is not None
        kv = opened.traced.kv_nbytes(range(len(opened.chain.layers)))
        without = opened.made.footprint.without(kv, logits=False)
        return StageMeasured(json.dumps({
            "compute_nbytes": base_nbytes,
            "rounding_nbytes": rounding_nbytes(opened.made, self._settings["granule"]),
            "reserve_nbytes": without.reserve_nbytes + states_nbytes(opened.traced),
            "layer_s": self.costs.layer_s(nbytes) * self._settings["in_flight"],
            "prefill_s_per_token": self.costs.prefill_s_per_token(nbytes) * self._settings["in_flight"],
            "source": self.costs.source,
        }))  # fmt: skip

    def assigned(self, asked: AssignLayers) -> None:
        self._layers = sum(one.last - one.first for one in asked.stretches)
        self._number = -1

    def ran(self, asked: RunLayers, answer: LayersRun | LayersFailed) -> None:
        """A stretch was run; with the last one of its pass the pass is over."""
        several = len(asked.parts) > 1 or asked.more or asked.parts[0].chunk  # of these costs are a sum
        if isinstance(answer, LayersFailed) or several:
            self._number = -1
            return
        if asked.index == 0:
            shape = asked.parts[0].states.shape
            self._number, self._seconds, self._tokens = asked.number, 0.0, shape[1] if len(shape) > 1 else 0
        self._seconds += max(0, answer.took_ns - answer.stalled_ns) / 1e9
        if asked.last and asked.number == self._number:
            self._learning.passed(self._tokens, self._seconds, self._layers, self._model.mean_layer_nbytes)

    def keep(self) -> None:
        """What was learned, for the next run."""
        from hermes_mp.models.stage_costs import keep_costs

        learned = self._learning.learned()
        if learned != self.costs:
            settings = self._settings
            keep_costs(
                learned, self._checkpoint, settings["dtype"], settings["batch"], settings["threads"], "stage"
            )


def stage_told(daemon: Daemon, message: StageMeasured) -> str:
    """The daemon's half: what the head is told, as JSON."""
    facts = json.loads(message.facts)
    loaders = daemon.plan.loaders
    needs = daemon.accounting.needs(loaders, facts["compute_nbytes"], facts["reserve_nbytes"])
    budget: int | None = daemon.slots.budget_nbytes
    if daemon.settings.memory == "auto":
        own_nbytes, file_nbytes = daemon.accounting.held(needs)
        budget = max(0, daemon.adapting.spare(own_nbytes + daemon.arena.allocated_nbytes(), file_nbytes).nbytes)
    beside = needs.daemon + needs.loaders + needs.compute + MARGIN_NBYTES + facts["rounding_nbytes"] + GROWS_NBYTES
    told = Told(
        budget, beside, facts["reserve_nbytes"], loaders, daemon.settings.options.get("disk"), facts["layer_s"],
        facts["prefill_s_per_token"], idle_nbytes=idle_nbytes(loaders) + GROWS_NBYTES, source=facts["source"],
    )  # fmt: skip
    return json.dumps(told.to_json())


def head_beside_nbytes(compute_nbytes: int, rounding_nbytes: int, loaders: int) -> int:
    """The same of a head, by what its processes usually take."""
    return DAEMON_NBYTES + loaders * LOADER_NBYTES + compute_nbytes + MARGIN_NBYTES + rounding_nbytes


def idle_nbytes(loaders: int) -> int:
    """What is set aside for daemon and loaders, and as a margin, and is not taken by those at work."""
    each = LOADER_NBYTES - LOADER_AT_WORK
    return MARGIN_NBYTES + DAEMON_NBYTES - DAEMON_AT_WORK + loaders * each


def disk_rate(checkpoint: Checkpoint, fresh: bool = False) -> float:
    """Bytes per second: what the last run with other boards read by, else measured once per device and kept; assumed
    where it cannot be.
    """
    known: DeviceProfile | None = None
    try:
        largest = max(checkpoint.files, key=lambda file: file.nbytes).path
        name = diskspeed.device_name(largest)
        quick = profilecache.device_path(f"{name}-quick")
        known = (
            profilecache.recall_device(profilecache.device_path(f"{name}-run"))
            or profilecache.recall_device(profilecache.device_path(name))
            or profilecache.recall_device(quick)
        )
        if known is None or fresh:
            known = diskspeed.measure_device(largest, QUICK_S, QUICK_NBYTES, buffered=False) or known
            if known is not None:
                profilecache.remember(quick, known)
                profilecache.device_path(f"{name}-run").unlink(missing_ok=True)
    except (HermesError, OSError):
        pass  # whoever reads will meet the same, and name the unit
    return (known or ASSUMED_DEVICE).best.nbytes_per_s


def keep_disk_rate(checkpoint: Checkpoint, reading: Reading, loaders: int) -> None:
    """What a run has read: over seconds a disk gives other figures than in a try."""
    rate = reading.lasting_rate()
    if reading.nbytes < LEAST_READ_NBYTES or rate is None:
        return
    with contextlib.suppress(HermesError, OSError):  # the next run plans with less
        name = diskspeed.device_name(max(checkpoint.files, key=lambda file: file.nbytes).path)
        seen = DeviceProfile((ReadRate(READERS * loaders, CHUNK_NBYTES, True, rate),))
        profilecache.remember(profilecache.device_path(f"{name}-run"), seen)
