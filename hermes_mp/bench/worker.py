"""A model in a process of its own: told by JSON lines what to do, it answers in JSON lines.

Resident models and accelerate may run in another environment, by its Python: nothing of hermes_mp is imported before a
streamed model is asked for. Random but fixed inputs, the same for all. It measures time, stalls and bytes; its
memory is looked at from outside, in runs that are not timed.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

HEAP_NBYTES, HEAP_BLOCK_NBYTES = 900 << 20, 16 << 20  # less than where our malloc gives back, and where it maps
UP_S = 60.0  # how long the slots may take to get their memory, and the loaders to start


def main() -> int:
    """Orders: open, first, steady, close; see the methods of `Subject`. Ends with its standard input."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    settings = json.loads(sys.argv[1])
    subject: Subject = KINDS[settings["backend"]](settings)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = getattr(subject, order["do"])(*order.get("with", ()))
        except Exception as error:  # the parent makes a row of it
            say = getattr(error, "line", None)
            answer = {"failed": say() if say else f"{type(error).__name__}: {error}"}
            with contextlib.suppress(Exception):
                subject.close()
        said.write(json.dumps(answer) + "\n")
        said.flush()
    subject.close()
    return 0


class Subject:
    """A model and its passes. `settings`: backend, directory, tokens, new_tokens, batch, threads, dtype and more."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.lighten()
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        self.settings = settings
        self.model: Any = None
        self.state: Any = None
        self.stalled_s = 0.0
        self.rows_nbytes = 0

    def open(self, warm: bool = False) -> dict[str, Any]:
        """Everything up, no weight in memory. `warm`: the heap has the memory that a pass takes."""
        import torch

        self.prepare()
        if warm:
            self.warm()
        return {"threads": torch.get_num_threads(), "pid": os.getpid()} | self.facts()

    def first(self) -> dict[str, Any]:
        """The first inference from here on: seconds, and how much of that it took to have the weights if that came
        before computing. Of a generating model: to its first token."""
        return self._timed(self._first)

    def steady(self, count: int) -> dict[str, Any]:
        """`count` more tokens, or the same pass so many times again: the seconds of each."""
        each: list[float] = []

        def work() -> dict[str, Any]:
            for _ in range(count):
                started = time.perf_counter()
                self._again()
                each.append(time.perf_counter() - started)
            return {}

        return self._timed(work) | {"each": each}

    def close(self) -> dict[str, Any]:
        """Without weights again."""
        self.state = None
        if self.model is not None:
            self.release()
        self.model = None
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        return {}

    # --- what kinds of models differ in

    def lighten(self) -> None:
        """Before torch is imported."""

    def prepare(self) -> None: ...

    def warm(self) -> None:
        """Have the memory of a pass in the heap, where malloc keeps what is freed."""

    def fetch(self) -> None:
        """Have all weights before the first computation."""

    def release(self) -> None: ...

    def facts(self) -> dict[str, Any]:
        return {}

    def weight_nbytes(self) -> int:
        """Bytes of weights in memory now."""
        unique = {parameter.data_ptr(): parameter.nbytes for parameter in self.model.parameters()}
        return sum(unique.values())

    # ---

    def _timed(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        import torch

        before = read_nbytes()
        self.stalled_s, self.rows_nbytes = 0.0, 0
        started = time.perf_counter()
        with torch.inference_mode():
            found = work()
        seconds = time.perf_counter() - started
        found |= {"seconds": seconds, "stalled_s": self.stalled_s, "nbytes": read_nbytes() - before}
        return found | {"weight_nbytes": self.weight_nbytes()}

    def _first(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.fetch()
        fetched = time.perf_counter()
        given = inputs(self.model, self.settings)
        if generates(self.model):
            given |= {"use_cache": True}
            if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
                given["logits_to_keep"] = 1  # as generate() does
        self.state = self.model(**given)
        return {"load_s": fetched - started, "kind": kind_of(self.model)}

    def _again(self) -> None:
        if not generates(self.model):
            self.state = self.model(**inputs(self.model, self.settings))
            return
        token = self.state.logits[:, -1:].argmax(-1)
        self.state = self.model(input_ids=token, past_key_values=self.state.past_key_values, use_cache=True)


class Resident(Subject):
    """Plain transformers with the whole model loaded.

    `unmapped`: in memory of its own. transformers maps the file, and pages that somebody has mapped cannot be evicted.
    """

    def prepare(self) -> None:
        self._class()  # its import is no part of the first pass

    def fetch(self) -> None:
        if self.model is not None:
            return
        self.model = self._class().from_pretrained(
            self.settings["directory"], dtype=self.settings["dtype"], **self.placed()
        ).eval()

        if self.settings.get("unmapped"):
            for parameter in self.model.parameters():
                parameter.data = copied(parameter.data)

    def placed(self) -> dict[str, Any]:
        return {}

    def _class(self) -> Any:
        import transformers

        with open(os.path.join(self.settings["directory"], "config.json"), encoding="utf-8") as file:
            names = json.load(file).get("architectures") or ["AutoModel"]
        return getattr(transformers, names[0])


class Accelerate(Resident):
    """Disk offload through transformers' own path: layers that do not fit `cpu_nbytes` are read at every pass.

    At its best, as docs/peers.md found: layers are kept from the front, matrices larger than a layer are not, and what
    is kept is copied, as transformers leaves it a view of the mapped file, which the kernel evicts like any page.
    """

    offloaded: tempfile.TemporaryDirectory[str] | None = None

    def prepare(self) -> None:
        import accelerate  # noqa: F401

        self.map = self._device_map()

    def placed(self) -> dict[str, Any]:
        self.offloaded = tempfile.TemporaryDirectory(prefix="hermes-bench-")
        return {"device_map": self.map, "offload_folder": self.offloaded.name}

    def fetch(self) -> None:
        if self.model is not None:
            return
        super().fetch()
        copies: dict[int, Any] = {}  # tied weights stay one
        model: Any = self.model
        for weight in model.parameters():
            if weight.device.type != "meta":
                weight.data = copies.setdefault(weight.data_ptr(), weight.data.clone())

    def _device_map(self) -> dict[str, str]:
        import torch
        import transformers

        with torch.device("meta"):
            model = self._class()(transformers.AutoConfig.from_pretrained(self.settings["directory"]))
        return layers_from_the_front(model, self.settings["cpu_nbytes"], self.settings["itemsize"])

    def release(self) -> None:
        if self.offloaded is not None:
            self.offloaded.cleanup()
            self.offloaded = None

    def weight_nbytes(self) -> int:
        """Those that stay; a layer that is computed comes on top."""
        return sum(one.nbytes for one in self.model.parameters() if one.device.type != "meta")

    def facts(self) -> dict[str, Any]:
        import accelerate

        return {"version": accelerate.__version__}


class Streamed(Subject):
    """Our own: `pipeload` with its slots, `pipeline` and `sequential` with a slot for every unit.

    A process as light as the compute agent of a launch is.
    """

    def lighten(self) -> None:
        from hermes_mp.models.light_imports import import_lightly

        import_lightly()

    def prepare(self) -> None:
        from hermes_mp import load

        settings = self.settings
        whole = settings["backend"] != "pipeload"
        self.model = load(
            settings["directory"], loaders=settings["loaders"], memory=settings["memory"],
            context=settings["context"], batch=settings["batch"], dtype=settings["dtype"],
            verify=settings.get("verify", "first"),
            _slots=1 << 20 if whole else settings["slots"], _window=0 if whole else settings["slots"] or 0,
            _room=settings["room"], _eager=False, _trace=settings.get("trace"),
        )  # fmt: skip
        self.supply: Any = self.model._hermes_binder.supply
        self._count()
        self._wait_until_up()

    def warm(self) -> None:
        import torch

        from hermes_mp.host.memory import available_nbytes

        nbytes = min(self.supply.divided.reserve_nbytes, HEAP_NBYTES, available_nbytes() // 2)
        _ = [torch.ones(HEAP_BLOCK_NBYTES, dtype=torch.uint8) for _ in range(0, nbytes, HEAP_BLOCK_NBYTES)]

    def fetch(self) -> None:
        if self.settings["backend"] != "sequential":
            return
        for unit in range(len(self.supply._list.units)):
            self.supply.acquire(unit)
            self.supply.release(unit, False)

    def release(self) -> None:
        self.model.close()

    def facts(self) -> dict[str, Any]:
        divided, units = self.supply.divided, self.supply._list
        return {
            "arena_fd": self.supply._arena.fd,
            "slots": divided.slots,
            "slot_nbytes": divided.slot_nbytes,
            "units": len(units.units),
            "needed_nbytes": units.read_nbytes,
            "pinned_nbytes": self._pinned_nbytes(),
        }

    def weight_nbytes(self) -> int:
        """The arena as it is allocated, weights that are always there, and the rows of embeddings that were read."""
        return self._allocated() + self._pinned_nbytes() + self.rows_nbytes

    def _allocated(self) -> int:
        return os.fstat(self.supply._arena.fd).st_blocks * 512

    def _pinned_nbytes(self) -> int:
        from hermes_mp.models.placeholder import Placeholder

        return sum(one.nbytes for one in self.model.parameters() if not isinstance(one, Placeholder))

    def _wait_until_up(self) -> None:
        """Until the slots have their memory and every loader has started: six that still start take a first pass a
        tenth longer. The daemon does not say when the last one has, so we look."""
        wanted = self.supply.divided.slots * self.supply.divided.slot_nbytes
        deadline = time.monotonic() + UP_S
        while time.monotonic() < deadline:
            if self._allocated() >= wanted and self._loaders() >= self.settings["loaders"]:
                return
            time.sleep(0.02)

    def _loaders(self) -> int:
        """How many have the title that they give themselves once they have started."""
        found = 0
        for pid in processes():
            with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                found += file.read().startswith(b"hermes: loader")
        return found

    def _count(self) -> None:
        """Stalls and rows, at the two doors through which weights come."""
        acquire, read_rows = self.supply.acquire, self.supply.read_rows

        def timed_acquire(unit: int) -> int:
            started = time.perf_counter()
            base: int = acquire(unit)
            self.stalled_s += time.perf_counter() - started
            return base

        def counted_rows(file: int, ranges: Any, into: memoryview) -> None:
            self.rows_nbytes += len(into)
            read_rows(file, ranges, into)

        self.supply.acquire, self.supply.read_rows = timed_acquire, counted_rows


KINDS: dict[str, type[Subject]] = {
    "resident": Resident, "accelerate": Accelerate,
    "sequential": Streamed, "pipeline": Streamed, "pipeload": Streamed,
}  # fmt: skip


def copied(weight: Any) -> Any:
    """The weight in memory of its own, at the same address modulo 64 as in the mapped file, which is what plain
    transformers computes with: multiples of 64 have other last bits, and a token of the shape of Llama-3.2-1B, whose
    weights lie at 40, took 8 to 11 % less.
    """
    import torch

    memory = torch.empty(weight.nbytes + 64, dtype=torch.uint8)
    skip = (weight.data_ptr() - memory.data_ptr()) % 64
    return memory[skip : skip + weight.nbytes].view(weight.dtype).view(weight.shape).copy_(weight)


def layers_from_the_front(model: Any, room: float, itemsize: float) -> dict[str, str]:
    """A device map that keeps about `room` bytes: what is small, then as many layers as fit; `itemsize` of a weight."""
    import torch

    def nbytes(module: Any) -> float:
        return itemsize * float(sum(one.numel() for one in module.parameters()))

    if nbytes(model) <= room:
        return {"": "cpu"}
    layers = max((one for one in model.modules() if isinstance(one, torch.nn.ModuleList)), key=nbytes)
    largest = max(nbytes(layer) for layer in layers)
    placed: dict[str, str] = {}
    small: list[tuple[str, Any]] = []
    streamed: list[tuple[str, Any]] = []
    todo = list(model.named_children())
    while todo:
        name, module = todo.pop(0)
        if module is layers:
            streamed = [(f"{name}.{number}", layer) for number, layer in enumerate(layers)]
        elif any(inner is layers for inner in module.modules()):
            todo += [(f"{name}.{inner}", child) for inner, child in module.named_children()]
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            placed |= {f"{name}.{inner}": "cpu" for inner, _ in own}
        elif nbytes(module) > largest:
            placed[name] = "disk"
        else:
            small.append((name, module))
    for name, module in small + streamed:
        room -= nbytes(module)
        placed[name] = "cpu" if room >= 0 or (name, module) in small else "disk"
    return placed


def generates(model: Any) -> bool:
    """Whether a token follows a token."""
    can: Callable[[], bool] = getattr(model, "can_generate", lambda: False)
    return can() and model.main_input_name == "input_ids" and not getattr(model.config, "is_encoder_decoder", False)


def kind_of(model: Any) -> str:
    if generates(model):
        return "tokens"
    return "image" if model.main_input_name == "pixel_values" else "text"


def inputs(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The same for every backend."""
    import torch

    generator = torch.Generator().manual_seed(1)
    rows, config = settings["batch"], model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, int) else config.image_size[0]
        channels = getattr(config, "num_channels", 3)
        pixels = torch.randn(rows, channels, size, size, generator=generator)
        return {"pixel_values": pixels.to(next(model.parameters()).dtype)}
    low = min(1000, config.vocab_size // 2)
    return {"input_ids": torch.randint(low, config.vocab_size, (rows, settings["tokens"]), generator=generator)}


def read_nbytes() -> int:
    """Bytes that this process and all behind it have read from disks so far, as the kernel counts them."""
    total = 0
    for pid in processes():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/io", encoding="ascii") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("read_bytes"))
    return total


def processes() -> list[int]:
    """This process and all behind it, but those that go while we look."""
    found, todo = [], [os.getpid()]
    while todo:
        found.append(todo.pop())
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{found[-1]}/task"):
                with open(f"/proc/{found[-1]}/task/{task}/children", encoding="ascii") as file:
                    todo += [int(word) for word in file.read().split()]
    return found


if __name__ == "__main__":
    sys.exit(main())
