"""From what a user calls a model to a directory: a path stays itself, a hub id goes through huggingface_hub's cache.

The download runs in a process of its own that has ended before anything else starts: huggingface_hub alone takes
35 MB. Its progress bars go to stderr; its last line on stdout is the directory, or the error as one JSON object.
It does not know what is in a weights file and never fetches a pickled one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hermes_mp.errors import (
    CheckpointBroken,
    HermesError,
    HubUnreachable,
    MachineError,
    MissingPackage,
    ModelNotFound,
    NoSafetensors,
    by_exit_code,
)
from hermes_mp.host.checkpoint import OTHER_FORMATS, WEIGHTS, WEIGHTS_INDEX, read_config, weights_files

BESIDE_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
TIMEOUT_S = "5"  # for an answer to begin; a transfer may take as long as it does
GRACE_S = 2.0
NETWORK_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet")


def resolve(model: str, say: Callable[[str], None]) -> Path:
    """The directory of `model`, downloaded first where it is a hub id; `say` hears what takes long.

    Raises ModelNotFound, NoSafetensors, HubUnreachable, MissingPackage, UnsupportedDtype; Ctrl-C ends the download.
    """
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not model or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"there is no directory {model or '(empty name)'}")
    say(f"looking for {model} on the hub")
    return _in_own_process(model)


def _in_own_process(model: str) -> Path:
    alive, ours = os.pipe()  # `ours` closes when we die, however we die: then the download must end too
    with subprocess.Popen(
        [sys.executable, "-m", "hermes_mp.host.hub", model, str(alive)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        pass_fds=(alive,),
    ) as child:
        os.close(alive)
        try:
            output, _ = child.communicate()
        finally:
            os.close(ours)
            _end(child)
    last = output.decode(errors="replace").rstrip("\n").rpartition("\n")[2]
    if child.returncode == 0:
        return Path(last)
    raise _told(model, last, child.returncode)


def _end(child: subprocess.Popen[bytes]) -> None:
    """By Ctrl-C it ends itself; make sure."""
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _told(model: str, line: str, returncode: int) -> HermesError:
    """The error that the child told, or that it died without a word."""
    try:
        told = json.loads(line)
        return by_exit_code().get(told["exit_code"], MachineError)(told["text"], told["attempt"])
    except (ValueError, TypeError, KeyError):
        how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
        return MachineError(f"the download of {model} ended {how}")


# --- in the child


def download(repo: str) -> Path:
    """The snapshot directory of `repo` in the cache, with what is missing fetched, weights last."""
    folder = _fetch(repo, BESIDE_WEIGHTS)
    try:
        config = read_config(folder)
    except ModelNotFound as error:
        raise ModelNotFound(f"{repo} on the hub holds no config.json") from error
    if config.get("transformers_weights") is None and not (folder / WEIGHTS).is_file():
        _fetch(repo, (WEIGHTS,), folder.name)
    if not (folder / WEIGHTS).is_file() and not _has_index(folder, config):
        raise _no_weights(repo, folder)
    missing = [name for name in weights_files(folder, config) if not (folder / name).is_file()]
    if missing:
        _fetch(repo, tuple(missing), folder.name)
    for name in missing:
        if not (folder / name).is_file():
            raise _not_there(repo, name)
    return folder


def _has_index(folder: Path, config: dict[str, Any]) -> bool:
    return config.get("transformers_weights") is not None or (folder / WEIGHTS_INDEX).is_file()


def _fetch(repo: str, patterns: tuple[str, ...], commit: str | None = None) -> Path:
    """Files that match, from the hub or, where it cannot be asked, from the cache. They need not exist."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=commit, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)  # the cache knows of more files than it has: enough for us?
        if partial is not None:
            return Path(partial)
        raise


def _no_weights(repo: str, folder: Path) -> HermesError:
    """Asks the hub for its list of files: offline, a cache without weights does not mean that there are none."""
    from huggingface_hub import HfApi

    names = sorted(HfApi().list_repo_files(repo, revision=folder.name))
    other = next((name for name in names if name.endswith(OTHER_FORMATS)), None)
    if WEIGHTS in names:
        return CheckpointBroken(f"{WEIGHTS} of {repo} could not be downloaded")
    if other is not None:
        return NoSafetensors(f"{repo} on the hub holds {other}, but no {WEIGHTS}")
    return ModelNotFound(f"{repo} on the hub holds neither {WEIGHTS} nor {WEIGHTS_INDEX}")


def _not_there(repo: str, name: str) -> HermesError:
    from huggingface_hub import HfApi

    if HfApi().file_exists(repo, name):
        return CheckpointBroken(f"{name} of {repo} could not be downloaded")
    return CheckpointBroken(f"{repo} on the hub lacks {name}, which its index names", "ask its author")


def _meaning(repo: str, error: Exception) -> HermesError | None:
    """What an exception of huggingface_hub means to the user; None for one that we do not know."""
    from huggingface_hub import errors as hub

    reason = str(error).strip().partition("\n")[0]
    if isinstance(error, HermesError):
        return error
    if isinstance(error, hub.GatedRepoError):
        return ModelNotFound(f"{repo} is gated on the hub", "accept its terms on huggingface.co, then `hf auth login`")
    if isinstance(error, (hub.RepositoryNotFoundError, hub.RevisionNotFoundError)):
        return ModelNotFound(f"there is no directory {repo}, and no such model on the hub (or it is private)")
    if isinstance(error, hub.HFValidationError):
        return ModelNotFound(f"{repo} is neither a directory nor a hub id")
    if isinstance(error, (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled)):
        return HubUnreachable(f"{repo} is not, or not wholly, in the hub's cache, and the hub cannot be reached")
    if isinstance(error, hub.HfHubHTTPError) or type(error).__module__.partition(".")[0] in NETWORK_PACKAGES:
        return HubUnreachable(f"the hub gave no {repo}: {reason}")
    if isinstance(error, OSError):
        return MachineError(f"{repo} cannot be downloaded: {reason}")
    return None


def _end_with(alive: int) -> None:
    """Ends this process as soon as the one that waits for it is gone."""

    def wait() -> None:
        os.read(alive, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    """`python -m hermes_mp.host.hub ID [FD]`: FD is a pipe's read end; the process ends when it closes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # huggingface_hub's threads would finish their files first
    if len(arguments) > 1:
        _end_with(int(arguments[1]))
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", TIMEOUT_S)
    failed: HermesError | None
    try:
        print(download(arguments[0]))
        return 0
    except ModuleNotFoundError as error:
        if error.name != "huggingface_hub":
            raise
        failed = MissingPackage("hub ids need huggingface_hub", "pip install huggingface_hub, or name a directory")
    except Exception as error:  # this is the process's entry point: it turns what it knows into the one JSON line
        failed = _meaning(arguments[0], error)
        if failed is None:
            raise
    print(json.dumps({"exit_code": failed.exit_code, "text": str(failed), "attempt": failed.attempt}))
    return failed.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
