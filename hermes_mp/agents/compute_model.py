"""What every compute process begins with: torch, a plan, and the model on streamed units; not yet described.

Used for a whole model, for a head's, and for a stage's: the last two are cut between layers, so that boards can share
them. It knows neither requests nor boards.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hermes_mp.agents.supplying import LinkedSupply
from hermes_mp.host import malloc
from hermes_mp.host.checkpoint import find_checkpoint
from hermes_mp.messages import RunPlan

if TYPE_CHECKING:
    from hermes_mp.models.chain import Chain
    from hermes_mp.models.footprint import Footprint
    from hermes_mp.models.prepare import Prepared, Traced


@dataclass
class Opened:
    """`footprint` is what calls are checked against; whoever is assigned other layers sets another."""

    directory: Path
    model: Any
    traced: Traced
    made: Prepared
    chain: Chain | None
    plan: RunPlan
    footprint: Footprint
    is_limited: bool

    def settle(self) -> int:
        """Bytes of compute before it binds; what only the start needed is given back."""
        from hermes_mp.models.settle import settle

        base = settle(self.made.skeleton.dtype, images=self.model.main_input_name == "pixel_values")
        gc.freeze()  # what is there now stays
        gc.enable()
        return base


def takes_turns(settings: dict[str, Any]) -> bool:
    """Whether requests, or chunks of a prompt, run in threads that take turns."""
    return settings["in_flight"] > 1 or settings["options"].get("prefill_chunk") is not None


def open_model(settings: dict[str, Any], supply: LinkedSupply, early: bool, cut: bool) -> Opened:
    """`settings` as the daemon gives them. `early`: have the tokenizer read beside; `cut`: between all layers."""
    directory = Path(settings["directory"])
    supply.say("importing torch")
    from hermes_mp.models.light_imports import import_lightly

    import_lightly()
    import torch

    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    from hermes_mp.models.chain import find_chain
    from hermes_mp.models.choose_plan import Told, choose_plan
    from hermes_mp.models.footprint import check_call, check_generate
    from hermes_mp.models.prepare import trace_model
    from hermes_mp.models.streamed import stream

    _quiet_libraries()
    checkpoint = find_checkpoint(directory)
    if early:
        from hermes_mp.models.tasks.text_input import open_early

        open_early(directory)
    in_flight = settings["in_flight"]
    traced = trace_model(checkpoint, settings["dtype"], settings["context"], settings["batch"], supply.say, in_flight)
    chain = find_chain(traced.skeleton, traced.trace) if cut else None
    if chain is None:
        told = Told(
            settings["dtype"], settings["context"], settings["batch"], settings["threads"], settings["loaders"],
            settings["memory"], settings["granule"], in_flight, has_copy=settings["borrowed"] is None,
        )  # fmt: skip
        chosen = choose_plan(traced, checkpoint, told)
        made, plan = traced.divide(chosen.room, chosen.streamed_by), chosen.plan
    else:
        made, plan = traced.divide(settings["room"], layers=chain.layers), RunPlan(settings["loaders"] or 0)
    supply.use(made.division.list)
    opened = Opened(
        directory, None, traced, made, chain, plan, made.footprint, is_limited=settings["memory"] is not None
    )
    if opened.is_limited:
        malloc.keep_large_blocks_apart()
        if takes_turns(settings):
            malloc.keep_one_heap()

    def call_fits(call: dict[str, Any]) -> None:
        check_call(opened.footprint, supply.room_nbytes, made.skeleton.model.config, call)

    def generate_fits(*call: Any) -> None:
        check_generate(opened.footprint, supply.room_nbytes, *call)

    fits: tuple[Callable[..., None], Callable[..., None]] = (
        (call_fits, generate_fits) if opened.is_limited else (lambda call: None, lambda *call: None)
    )
    opened.model = stream(made.skeleton, made.division, supply, *fits)
    return opened


def _quiet_libraries() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
