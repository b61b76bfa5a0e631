"""Every error of the tree is provoked by what a user, a machine or a process really does: one line, its exit code.

What is wrong with options, models and requests is in `test_launch_refusals`; here is the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from launching import DEADLINE_S, Ended, Launch, launch
from local_hub import local_hub
from serving import Serving
from test_launch_refusals import MODELS, OPTIONS

from hermes_mp import errors
from hermes_mp.board_messages import Hello, Welcome
from hermes_mp.errors import HermesError, by_exit_code
from hermes_mp.host.lan import LanHub, new_keys
from hermes_mp.host.pairings import Identity, PairedBoard, Store

PROMPT = ("--prompt", "the ship", "--max-new-tokens", 60)
LAUNCH = f"exec '{sys.executable}' -m hermes_mp.cli.launch"

# A program that uses `hermes_mp.load`, and ends as a command of ours would.
PROGRAM = """
import sys
import psutil, torch
from hermes_mp import load
from hermes_mp.errors import HermesError
model = load(sys.argv[1], loaders=1)
def call(): return model(input_ids=torch.tensor([[5, 9, 7]]))
try:
    call()
    {misfortune}
    call()
except HermesError as error:
    print("program:", error.line(), file=sys.stderr)
    model.close()
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True)
class Stage:
    """Where a provocation happens: the models, and a folder of its own."""

    models: Path
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def copy(self, model: str) -> Path:
        return Path(shutil.copytree(self.models / model, self.folder / model))

    def module(self, name: str, text: str) -> dict[str, str]:
        """The environment in which this module is found first."""
        path = self.folder / "modules" / name
        path.parent.mkdir()
        path.write_text(text)
        ours = os.environ.get("PYTHONPATH", "")
        return {"PYTHONPATH": os.pathsep.join([str(path.parent), *([ours] if ours else [])])}

    def run(self, *words: object) -> Ended:
        """A command to its end."""
        self.home.mkdir()
        ended = subprocess.run(
            list(map(str, words)), cwd=self.home, capture_output=True, text=True, timeout=DEADLINE_S,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def program(self, misfortune: str) -> Ended:
        return self.run(sys.executable, "-c", PROGRAM.format(misfortune=misfortune), self.models / "gpt2")


def call_too_large(stage: Stage) -> Ended:
    arguments = ("--memory", "560MiB", "--context", 16, "--max-new-tokens", 4, "--prompt", 10 * " the ship")
    return launch(stage.home, "--model", stage.models / "big", *arguments)


def missing_package(stage: Stage) -> Ended:
    env = stage.module("PIL.py", "raise ImportError('No module named PIL')")
    return launch(stage.home, "--model", stage.models / "vit", "--image", "x.png", env=env)


def out_of_memory(stage: Stage) -> Ended:
    return stage.run("sh", "-c", f"ulimit -v 1500000; {LAUNCH} --model '{stage.models}/gpt2' --prompt ship")


def read_failed(stage: Stage) -> Ended:
    """The kernel answers EIO to whoever reads where a process has no memory."""
    model = stage.copy("gpt2")
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("/proc/self/mem")
    return launch(stage.home, "--model", model, *PROMPT)


def system_call_failed(stage: Stage) -> Ended:
    return stage.run("sh", "-c", f"ulimit -n 100; {LAUNCH} --model '{stage.models}/gpt2' --prompt ship")


def weights_changed(stage: Stage) -> Ended:
    model = stage.copy("big")
    with Launch(stage.home, "--model", model, *PROMPT, "--memory", "none") as run:
        run.wait_for(lambda run: len(run.out) > 3)
        os.truncate(model / "model.safetensors", 1 << 20)
        return run.ended()


def download_failed(stage: Stage) -> Ended:
    files = {path.name: path.read_bytes() for path in (stage.models / "gpt2").iterdir()}
    (stage.folder / "cache").write_text("a file where a folder should be")
    with local_hub({"org/name": files}) as hub:
        env = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(stage.folder / "cache")}
        return launch(stage.home, "--model", "org/name", *PROMPT, env=env)


def write_failed(stage: Stage) -> Ended:
    return stage.run("sh", "-c", f"{LAUNCH} --model '{stage.models}/gpt2' --prompt ship --json >/dev/full")


def bad_message(stage: Stage) -> Ended:
    """A compute whose parts do not agree on what it said."""
    digest = "from hermes_mp.core.unitlist import UnitList; UnitList.digest = lambda self: 'another'"
    env = stage.module("sitecustomize.py", f"import sys\nif 'agents.compute' in ' '.join(sys.orig_argv): {digest}\n")
    return launch(stage.home, "--model", stage.models / "gpt2", *PROMPT, env=env)


def daemon_lost(stage: Stage) -> Ended:
    return stage.program("psutil.Process().children()[0].kill()")


def compute_lost(stage: Stage) -> Ended:
    with Launch(stage.home, "--model", stage.models / "big", *PROMPT, "--timeout", 2) as run:
        run.wait_for(lambda run: len(run.out) > 3)
        run.send(run.process("compute"), signal.SIGSTOP)
        return run.ended()


def loaders_lost(stage: Stage) -> Ended:
    """Every loader is killed as soon as it shows up: they are given up one by one."""
    with Launch(stage.home, "--model", stage.models / "big", *PROMPT, "--loaders", 2, "--memory", "none") as run:
        run.wait_for(lambda run: run.out)

        def kill_all(run: Launch) -> bool:
            for pid in run.loaders():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return "going on with 1 loader:" in run.err and not run.is_running

        run.wait_for(kill_all)
        return run.ended()


def answer_differs(stage: Stage) -> Ended:
    """Somebody changes the vocabulary during the run; compute dies, and its successor reads it anew."""
    model = stage.copy("big")
    with Launch(stage.home, "--model", model, *PROMPT) as run:
        run.wait_for(lambda run: len(run.out) > 12)
        tokenizer = json.loads((model / "tokenizer.json").read_text())
        words = tokenizer["model"]["vocab"]
        tokenizer["model"]["vocab"] = dict(zip(words, [*words.values()][::-1], strict=True))
        (model / "tokenizer.json").write_text(json.dumps(tokenizer))
        run.send(run.process("compute"), signal.SIGKILL)
        return run.ended()


def shared(stage: Stage, address: str, model: str = "gpt2", **words: object) -> Ended:
    """A run that is to be shared with the board at this address of loopback."""
    stage.folder.mkdir(exist_ok=True)
    (stage.folder / "boards.toml").write_text(f'[shelf]\naddress = "{address}"\n')
    return launch(stage.home, "--model", stage.models / model, *PROMPT, "--boards", stage.folder / "boards.toml")


def board_unknown(stage: Stage) -> Ended:
    env = {"XDG_CONFIG_HOME": str(stage.folder / "config")}
    return launch(stage.home, "--model", stage.models / "gpt2", *PROMPT, "--board", "shelf", env=env)


def models_differ(stage: Stage) -> Ended:
    """The board's model of that name has other weights."""
    theirs = stage.copy("gpt2")
    with open(theirs / "model.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    with Serving(stage.folder / "boards", stage.folder, 1) as boards:
        return launch(stage.home, "--model", stage.models / "gpt2", *PROMPT, "--boards", boards.file)


def unsafe_address(stage: Stage) -> Ended:
    return shared(stage, "192.0.2.1:7946")


def token_refused(stage: Stage) -> Ended:
    return stage.run(sys.executable, "-m", "hermes_mp.cli.board", "join", "hermes1-nonsense")


def cannot_be_cut(stage: Stage) -> Ended:
    """Layers that are one and the same; the board is not even there."""
    import transformers

    sizes = {"embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    model = stage.folder / "albert"
    config = transformers.AlbertConfig(intermediate_size=64, vocab_size=401, **sizes)
    transformers.AlbertModel(config).save_pretrained(model)
    (stage.folder / "boards.toml").write_text('[shelf]\naddress = "127.0.0.1:9"\n')
    words = ("--token-ids", "5,6", "--boards", stage.folder / "boards.toml")
    return launch(stage.home, "--model", model, *words)


def board_lost(stage: Stage) -> Ended:
    """What is left cannot hold the model."""
    with Serving(stage.folder / "boards", stage.models, 1) as boards:
        words = ("--boards", boards.file, "--split", "head:1,b1:7", "--context", 64, "--batch", 100, "--loaders", 1)
        with Launch(stage.home, "--model", stage.models / "big", *PROMPT, "--memory", "680MiB", *words) as run:
            run.wait_for(lambda run: len(run.out) > 3)
            boards.kill("b1")
            return run.ended()


def at_a_board(stage: Stage, answer: Callable[[Hello], object]) -> Ended:
    """Of a board that answers like this to who greets it."""
    import threading

    done = threading.Event()
    with contextlib.closing(LanHub("127.0.0.1:0", None, lambda key: None)) as hub:

        def serve() -> None:
            while not done.wait(0.02):
                while (found := hub.receive()) is not None:
                    if isinstance(found[1], Hello):
                        hub.send(found[0], answer(found[1]))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return shared(stage, hub.address)
        finally:
            done.set()
            thread.join()


def protocols_differ(stage: Stage) -> Ended:
    return at_a_board(stage, lambda hello: Welcome(hello.protocol + 1, "9.9", "shelf", hello.fingerprint, "{}"))


def not_allowed(stage: Stage) -> Ended:
    """The board has revoked us."""
    ours = Store(stage.folder / "config" / "hermes-mp")
    ours.keep_identity(Identity("desk", "", new_keys()))
    theirs = new_keys()
    import threading

    done = threading.Event()
    with contextlib.closing(LanHub("127.0.0.1:0", theirs, lambda key: None)) as hub:

        def serve() -> None:
            while not done.wait(0.02):
                while hub.receive() is not None:
                    pass

        with ours.change(0) as pairings:
            pairings.boards["shelf"] = PairedBoard(hub.address, theirs.public)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            env = {"XDG_CONFIG_HOME": str(stage.folder / "config")}
            return launch(stage.home, "--model", stage.models / "gpt2", *PROMPT, "--board", "shelf", env=env)
        finally:
            done.set()
            thread.join()


def needs_all_weights(stage: Stage) -> Ended:
    return stage.program("model.lm_head.weight.clone()")


def invariant_broken(stage: Stage) -> Ended:
    """A bug in compute."""
    env = stage.module("sitecustomize.py", "import gc; gc.freeze = None")
    return launch(stage.home, "--model", stage.models / "gpt2", *PROMPT, env=env)


FAULTS: dict[type[HermesError], tuple[Callable[[Stage], Ended], str]] = {
    errors.CallTooLarge: (call_too_large, r"need [0-9.]+ MiB, but [0-9.]+ MiB are reserved, .*raise --context"),
    errors.MissingPackage: (missing_package, r"images need Pillow, which is not installed; run `pip install pillow`"),
    errors.OutOfMemory: (out_of_memory, r"no address space for [0-9]+ MiB of slots: Cannot allocate.*; lower --memory"),
    errors.ReadFailed: (read_failed, r"model\.safetensors cannot be read at byte 0: Input/output error; check"),
    errors.SystemCallFailed: (system_call_failed, r"may open more than 100 files, and \d+ may be needed; raise that: "),
    errors.WeightsChanged: (weights_changed, r"model\.safetensors was truncated from .*; let nothing write"),
    errors.DownloadFailed: (download_failed, r"org/name cannot be downloaded: .*; check the disk's free space"),
    errors.WriteFailed: (write_failed, r"standard output cannot be written: No space left on device; see where"),
    errors.BadMessage: (bad_message, r"compute described [0-9]+ of [0-9]+ units, or others than it named"),
    errors.DaemonLost: (daemon_lost, r"the daemon is gone; load the model again"),
    errors.ComputeLost: (compute_lost, r"compute \(epoch 1\) has done nothing for 2 s: it is stopped; run it again"),
    errors.LoadersLost: (loaders_lost, r"loader [01] was the last one: it died 6 times within 30 s"),
    errors.AnswerDiffers: (answer_differs, r"its answer goes another way at character [0-9]+; run it again"),
    errors.BoardUnknown: (board_unknown, r"no board called 'shelf' is paired with this one; pair it: run hermes"),
    errors.ModelsDiffer: (models_differ, r"board b1: gpt2 is [0-9a-f]{12} on the head and [0-9a-f]{12} on "),
    errors.UnsafeAddress: (unsafe_address, r"192\.0\.2\.1:7946 is not on loopback, .*; pair it"),
    errors.TokenRefused: (token_refused, r"hermes-board: this join token is mistyped, or a part of it is"),
    errors.CannotBeCut: (cannot_be_cut, r"AlbertModel has no list of layers in which each runs once.*; run it on one"),
    errors.BoardLost: (board_lost, r"board b1 \(127\.0\.0\.1:\d+\) is gone; without it --memory 680 MiB"),
    errors.ProtocolsDiffer: (protocols_differ, r"board shelf speaks version 3 of our protocol \(hermes-mp 9\.9\)"),
    errors.NotAllowed: (not_allowed, r"board shelf \(127\.0\.0\.1:\d+\) refuses our key; pair again: hermes-board"),
    errors.NeedsAllWeights: (needs_all_weights, r"lm_head\.weight is not in memory.*; load the model with "),
    errors.InvariantBroken: (invariant_broken, r"TypeError: 'NoneType' object is not callable; please report this"),
}


@pytest.fixture(scope="module")
def provoked(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[type[HermesError], Future[Ended]]:
    """All of them, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return {
            error: pool.submit(provoke, Stage(models, tmp_path_factory.mktemp(error.__name__)))
            for error, (provoke, _) in FAULTS.items()
        }


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: error.__name__)
def test_one_line_and_an_exit_code(
    provoked: dict[type[HermesError], Future[Ended]], error: type[HermesError]
) -> None:
    ended = provoked[error].result()
    assert ended.code == error.exit_code, ended.err
    lines = [one for one in ended.err.splitlines() if re.match(r"hermes-launch: |hermes-board: |program: ", one)]
    assert re.search(FAULTS[error][1], lines[-1]), ended.err
    assert sum(bool(re.search(FAULTS[error][1], one)) for one in ended.err.splitlines()) == 1
    assert ("Traceback" in ended.err) == (error is errors.InvariantBroken)


def test_every_leaf_is_provoked() -> None:
    refused = {code for *_, code, _ in [*MODELS.values(), *OPTIONS.values()]}
    assert refused | {error.exit_code for error in FAULTS} == set(by_exit_code())
    assert not refused & {error.exit_code for error in FAULTS}
