"""`hermes_mp.load` as programs live with it: how it begins, how it ends, who may be killed, and what stays behind.

That nothing stays (no child, no descriptor, no run directory) is asserted after every test by tests/conftest.py.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers
from models.families import family

from hermes_mp import load
from hermes_mp.errors import BadMessage, BadOption, DaemonLost, MissingWeights, ModelNotFound

NEW = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
INPUTS = {"input_ids": torch.tensor([[5, 9, 200, 17]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


pytestmark = pytest.mark.usefixtures("quiet_and_alone")


@pytest.fixture(scope="module")
def expected(gpt2: Path) -> torch.Tensor:
    tokens: torch.Tensor = family("gpt2").load_plain(gpt2).generate(**INPUTS, **NEW)
    return tokens


def daemon_of_this_process() -> psutil.Process:
    (daemon,) = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return daemon


def is_right(model: Any, expected: torch.Tensor) -> bool:
    return torch.equal(model.generate(**INPUTS, **NEW), expected)


# --- the ordinary end


def test_leaving_with_ends_everything(gpt2: Path, expected: torch.Tensor, run_directories: Path) -> None:
    with load(gpt2, loaders=3) as model:
        daemon = daemon_of_this_process()
        processes = [daemon, *daemon.children()]
        assert len(processes) == 4
        assert daemon.cmdline()[0] == "hermes: daemon"
        assert sorted(child.cmdline()[0] for child in daemon.children()) == [f"hermes: loader {n}" for n in range(3)]
        assert len(list(run_directories.iterdir())) == 1
        assert is_right(model, expected)
    assert not any(process.is_running() for process in processes)
    assert not list(run_directories.iterdir())
    with pytest.raises(DaemonLost, match="closed"):
        model(**INPUTS)


def test_close_may_be_repeated(gpt2: Path) -> None:
    model = load(gpt2, loaders=1)
    for _ in range(3):
        model.close()
    with model:
        pass


def test_an_exception_inside_with_passes_through(gpt2: Path) -> None:
    with pytest.raises(IndexError), load(gpt2, loaders=1) as model:
        model(torch.tensor([[-5]]))


def test_garbage_collection_ends_everything(gpt2: Path, expected: torch.Tensor) -> None:
    model = load(gpt2, loaders=1)
    assert is_right(model, expected)
    daemon = daemon_of_this_process()
    del model
    gc.collect()
    assert not daemon.is_running()


def test_a_part_that_is_kept_does_not_keep_the_processes(gpt2: Path) -> None:
    model = load(gpt2, loaders=1)
    block = model.transformer.h[0]
    del model
    gc.collect()
    assert not psutil.Process().children()
    with pytest.raises(DaemonLost):
        block(torch.ones(1, 2, 48))


def test_closing_ends_a_call_in_another_thread(gpt2: Path) -> None:
    model = load(gpt2, loaders=2)
    raised: list[BaseException] = []
    running = threading.Event()

    class Started(transformers.generation.streamers.BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            running.set()

        def end(self) -> None: ...

    def call() -> None:
        try:
            model.generate(**INPUTS, **NEW | {"max_new_tokens": 100}, streamer=Started())
        except DaemonLost as error:
            raised.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert running.wait(60)
    model.close()
    thread.join(60)
    assert len(raised) == 1


def test_closing_from_within_a_call(gpt2: Path) -> None:
    model = load(gpt2, loaders=2)
    handle = model.transformer.h[1].register_forward_hook(lambda *_: model.close())
    with pytest.raises(DaemonLost):
        model(**INPUTS)
    handle.remove()


def test_a_refused_load_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        load(tmp_path / "nowhere")
    family("bert").save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("BertModel", "BertForSequenceClassification"))
    with pytest.raises(MissingWeights):
        load(tmp_path)
    deadlines = {"soft_deadline": 0.0}, {"hard_deadline": -1.0}
    for options in ({"loaders": 0}, {"loaders": 65}, {"memory": "much"}, {"dtype": "int8"}, {"batch": 0}, *deadlines):
        with pytest.raises(BadOption):
            load(tmp_path, **options)


# --- the caller's own


def test_no_signal_handler_of_the_caller_is_touched(gpt2: Path) -> None:
    numbers = sorted(signal.valid_signals())
    before = [signal.getsignal(number) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with load(gpt2, loaders=1) as model:
        model(**INPUTS)
        assert [signal.getsignal(number) for number in numbers] == before
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    assert [signal.getsignal(number) for number in numbers] == before
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    assert wakeup == -1


def test_one_thread_is_started_and_ends_with_the_model(gpt2: Path) -> None:
    before = set(threading.enumerate())
    with load(gpt2, loaders=1) as model:
        model(**INPUTS)
        [listener] = set(threading.enumerate()) - before
        assert listener.daemon
        assert listener.name == "hermes: listener"
    listener.join(5.0)
    assert not listener.is_alive()


def test_load_in_a_thread_that_ends(gpt2: Path, expected: torch.Tensor) -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(load(gpt2, loaders=2)))
    thread.start()
    thread.join()
    with made.pop() as model:
        assert is_right(model, expected)


def test_two_models_at_a_time(gpt2: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    family("bert").save(tmp_path)
    plain = family("bert").load_plain(tmp_path)
    with load(gpt2, loaders=2, _slots=2) as one, load(tmp_path, loaders=1, _slots=2) as other:
        assert is_right(one, expected)
        with torch.no_grad():
            assert torch.equal(other(**INPUTS).last_hidden_state, plain(**INPUTS).last_hidden_state)
        assert is_right(one, expected)
        other.close()
        assert is_right(one, expected)


# --- kill -9


def test_a_daemon_killed_while_a_call_waits(gpt2: Path, expected: torch.Tensor) -> None:
    with load(gpt2, loaders=2, _slots=2) as model:
        daemon = daemon_of_this_process()
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            daemon.kill()

        def stop(*_: Any) -> None:  # it answers nobody from now on, so the call waits
            daemon.suspend()
            threading.Timer(0.3, kill).start()

        handle = model.transformer.h[2].register_forward_hook(stop)
        with pytest.raises(DaemonLost):
            model(**INPUTS)
        assert time.monotonic() - killed[0] < 1
        handle.remove()
        for _ in range(2):
            with pytest.raises(DaemonLost):
                model(**INPUTS)
    with load(gpt2, loaders=2) as model:
        assert is_right(model, expected)


def test_a_daemon_killed_between_calls(gpt2: Path) -> None:
    with load(gpt2, loaders=2, _slots=2) as model:
        model(**INPUTS)
        daemon_of_this_process().kill()
        start = time.monotonic()
        with pytest.raises(DaemonLost):
            model(**INPUTS)
        assert time.monotonic() - start < 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_loaders_killed_in_the_middle_of_a_run(number: signal.Signals, gpt2: Path, expected: torch.Tensor) -> None:
    with load(gpt2, loaders=2, _slots=2) as model:
        daemon = daemon_of_this_process()
        passes: list[int] = []

        def kill(*_: Any) -> None:
            passes.append(len(passes))
            for loader in daemon.children()[: 1 + len(passes) % 2] if len(passes) < 4 else ():
                loader.send_signal(number)

        model.transformer.h[len(passes)].register_forward_hook(kill)
        assert is_right(model, expected)
        assert len(passes) == 6


def test_a_daemon_that_gives_up_says_why(gpt2: Path) -> None:
    """Nonsense from the caller; once the line said only that it was gone, where a message was on its way to it."""
    with load(gpt2, loaders=1) as model:
        model._hermes_binder.supply._link._socket.send(b"nonsense")
        with pytest.raises(BadMessage, match=r"compute \(epoch 1\): "):
            _ = [model(**INPUTS) for _ in range(1000)]


# --- the end of the caller, in a process of its own

BEGIN = """
import os, sys, signal
import psutil, torch, transformers
from hermes_mp import load
transformers.logging.set_verbosity_error()
torch.set_num_threads(1)
model = load(sys.argv[1], loaders=2)
ids = torch.tensor([[5, 9, 200, 17]])
def call():
    return model(ids).logits.sum().item()
call()
daemon, = psutil.Process().children()
print(daemon.pid, *(child.pid for child in daemon.children()), flush=True)
sys.stdin.readline()
"""
ENDS: dict[str, tuple[str, int | None]] = {
    "falls off the end": ("", 0),
    "exception": ("raise KeyError('caller')", 1),
    "abrupt exit": ("os._exit(4)", 4),
    "inside a call": ("model.transformer.h[1].register_forward_hook(lambda *_: sys.exit(5)); call()", 5),
    "with a daemon thread in a call": (
        "import threading\n"
        "started = threading.Event()\n"
        "model.transformer.h[1].register_forward_hook(lambda *_: started.set())\n"
        "def forever():\n    while True: call()\n"
        "threading.Thread(target=forever, daemon=True).start(); started.wait()",
        0,
    ),
    "closed by a cycle": ("model.itself = model; del model", 0),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGKILL": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "SIGINT": ("os.kill(os.getpid(), signal.SIGINT); call()", None),
    "forks that exit and collect": (
        "import gc\n"
        "before = call()\n"
        "pid = os.fork()\n"
        "if pid == 0: sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0 and call() == before\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    del model; gc.collect(); os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0 and call() == before\n"
        "sys.exit(6)",
        6,
    ),
}
WITH_TRACEBACK = {"exception", "SIGINT", "with a daemon thread in a call"}  # the program's own


def run(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=root, **options
    )


def pids_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1])
    return [psutil.Process(int(pid)) for pid in line.split()]


def assert_gone(processes: list[psutil.Process], within_s: float, run_directories: Path) -> None:
    deadline = time.monotonic() + within_s
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    assert not alive
    while list(run_directories.iterdir()) and time.monotonic() < deadline:
        os.sched_yield()
    assert not list(run_directories.iterdir())


@pytest.mark.parametrize("how", ENDS)
def test_the_end_of_the_caller(how: str, gpt2: Path, run_directories: Path) -> None:
    code, exit_code = ENDS[how]
    with run(BEGIN + code, gpt2) as process:
        processes = pids_of(process)
        assert len(processes) == 3
        _, err = process.communicate("\n", timeout=120)
        if exit_code is not None:
            assert process.returncode == exit_code, err
        assert "Exception ignored" not in err
        if how not in WITH_TRACEBACK:
            assert "Traceback" not in err
        assert_gone(processes, 2.0, run_directories)


def test_a_child_of_the_caller_that_outlives_it(gpt2: Path, run_directories: Path) -> None:
    """It holds no end of the pipe that tells the daemon of the caller's end."""
    code = "if os.fork() == 0:\n    sys.stdin.read()\n    os._exit(0)\nos._exit(0)"
    with run(BEGIN + code, gpt2) as process:
        processes = pids_of(process)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(60)
        assert_gone(processes, 2.0, run_directories)
        process.communicate("", timeout=60)


def test_every_agent_imports_what_it_may(gpt2: Path) -> None:
    """The daemon behind a caller holds neither torch nor transformers, and stays small."""
    with load(gpt2, loaders=3) as model:
        model(**INPUTS)
        daemon = daemon_of_this_process()
        mapped = {Path(entry.path).name for entry in daemon.memory_maps()}
        assert not any("torch" in name for name in mapped)
        for process, most in [(daemon, 35 << 20), *((loader, 20 << 20) for loader in daemon.children())]:
            entries = process.memory_maps(grouped=False)
            arena = sum(entry.private_clean + entry.private_dirty for entry in entries if "hermes-arena" in entry.path)
            assert process.memory_full_info().uss - arena < most, process.cmdline()
