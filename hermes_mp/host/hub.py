"""From what a user calls a model to a directory: a path stays itself, a hub id goes through huggingface_hub's cache.

The download runs in a process of its own that has ended before anything else starts: huggingface_hub alone takes
35 MB. Its progress bars go to stderr; its last line on stdout is the directory, or the error as one JSON object.
It does not know what is in a weights file and never fetches a pickled one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from hermes_mp.errors import (
    CheckpointBroken,
    DownloadFailed,
    HermesError,
    HubUnreachable,
    MissingPackage,
    ModelNotFound,
    NoSafetensors,
    WriteFailed,
    by_exit_code,
)
from hermes_mp.host.checkpoint import CONFIG, OTHER_FORMATS, WEIGHTS, WEIGHTS_INDEX, read_config, weights_files
from hermes_mp.host.children import BOOTSTRAP, import_path

BESIDE_WEIGHTS = ("*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken")
TIMEOUT_S = 5.0  # for an answer to begin; a transfer may take as long as it does
GRACE_S = 2.0


def resolve(model: str, say: Callable[[str], None]) -> Path:
    """The directory of `model`, downloaded first where it is a hub id; `say` hears what takes long.

    Raises ModelNotFound, NoSafetensors, HubUnreachable, MissingPackage, UnsupportedDtype; Ctrl-C ends the download.
    """
    path = os.path.expanduser(model)
    if os.path.exists(path):
        return Path(path)
    if not may_be_hub_id(model):
        raise ModelNotFound(f"there is no directory {model or '(its name is empty)'}")
    say(f"looking for {model} on the hub")
    return _in_own_process(model)


def outline(model: str, folder: Path) -> Path:
    """A directory with the configuration and the headers of hub model `model`, none of its weights downloaded.

    It is the hub's cache where that holds the whole model; else `folder`, whose weights files are headers followed by
    holes: as long as the real ones, and taking no room. Raises what `resolve` raises, and WriteFailed.
    """
    return _in_own_process(model, str(folder))


def is_hub_id(model: str) -> bool:
    """Whether `model` is not a path, so that `resolve` would ask the hub."""
    return not os.path.exists(os.path.expanduser(model)) and may_be_hub_id(model)


def cache_place() -> Path:
    """Where the hub's cache is, or would be: there a model would be downloaded to."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "huggingface"
    )
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub"))).absolute()


@contextlib.contextmanager
def writing_to(folder: Path | str) -> Iterator[None]:
    """What the system refuses inside becomes WriteFailed: `folder` is full, or its file system knows no such files."""
    try:
        yield
    except OSError as error:
        raise WriteFailed(
            f"the headers of the model cannot be written to {folder}: {error.strerror or error}",
            "make room there, or name another folder in TMPDIR, on a file system with large sparse files",
        ) from error


def may_be_hub_id(model: str) -> bool:
    """Whether this is no path, by its look."""
    return bool(model) and not model.startswith((".", "/", "~")) and model.count("/") <= 1


def _in_own_process(model: str, *more: str) -> Path:
    alive, ours = os.pipe()  # `ours` closes when we die, however we die: then the download must end too
    with subprocess.Popen(
        [sys.executable, "-c", BOOTSTRAP.format(__name__), import_path(), model, str(alive), *more],
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
        return by_exit_code().get(told["exit_code"], DownloadFailed)(told["text"], told["attempt"])
    except (ValueError, TypeError, KeyError):
        how = f"by signal {-returncode}" if returncode < 0 else f"with exit code {returncode}"
        return DownloadFailed(f"the download of {model} ended {how}")


# --- in the child


def download(repo: str) -> Path:
    """The snapshot directory of `repo` in the cache, with what is missing fetched, weights last."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:  # asked for itself: snapshot_download waits for ever for a hub that takes the connection and says nothing
        told = HfApi().model_info(repo, timeout=TIMEOUT_S)
    except (HTTPError, OfflineModeIsEnabled) as error:
        return _cached(repo, error)
    names = {sibling.rfilename for sibling in told.siblings or ()}
    if CONFIG not in names:
        raise ModelNotFound(f"{repo} on the hub holds no {CONFIG}")
    folder = Path(snapshot_download(repo, allow_patterns=list(BESIDE_WEIGHTS)))
    config = read_config(folder)  # a quantised model is refused before gigabytes travel
    if config.get("transformers_weights") is None:
        if WEIGHTS in names:
            snapshot_download(repo, revision=folder.name, allow_patterns=[WEIGHTS])
        elif WEIGHTS_INDEX not in names:
            raise _no_weights(repo, names)
    wanted = weights_files(folder, config)
    for name in wanted:
        if name not in names:
            raise CheckpointBroken(f"{repo} on the hub lacks {name}, which its index names", "ask its author")
    snapshot_download(repo, revision=folder.name, allow_patterns=list(wanted))
    return folder


def outlined(repo: str, folder: Path) -> Path:
    """See `outline`."""
    from huggingface_hub import HfApi, snapshot_download

    with contextlib.suppress(HermesError):
        return _cached(repo, ModelNotFound(repo))
    told = HfApi().model_info(repo, timeout=TIMEOUT_S)
    names = {sibling.rfilename for sibling in told.siblings or ()}
    if CONFIG not in names:
        raise ModelNotFound(f"{repo} on the hub holds no {CONFIG}")
    snapshot = Path(snapshot_download(repo, allow_patterns=list(BESIDE_WEIGHTS)))
    with writing_to(folder):
        for path in snapshot.iterdir():
            if path.is_file() and not path.name.endswith(".safetensors"):
                shutil.copy(path, folder / path.name)
    config = read_config(folder)
    if config.get("transformers_weights") is None:
        if WEIGHTS in names:
            _write_outline(repo, snapshot.name, folder / WEIGHTS)
        elif WEIGHTS_INDEX not in names:
            raise _no_weights(repo, names)
    for name in weights_files(folder, config):
        if name not in names:
            raise CheckpointBroken(f"{repo} on the hub lacks {name}, which its index names", "ask its author")
        if not (folder / name).exists():
            _write_outline(repo, snapshot.name, folder / name)
    return folder


def _write_outline(repo: str, revision: str, path: Path) -> None:
    """A safetensors file with the header of the hub's, and a hole where the weights would be."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        found = HfApi().parse_safetensors_file_metadata(repo, path.name, revision=revision, timeout=TIMEOUT_S)
    except SafetensorsParsingError as error:
        raise CheckpointBroken(f"{path.name} of {repo} on the hub: {error}", "ask its author") from error
    tensors = {
        name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": list(one.data_offsets)}
        for name, one in found.tensors.items()
    }
    header = json.dumps({"__metadata__": found.metadata, **tensors} if found.metadata else tensors).encode()
    header += b" " * (-len(header) % 8)
    end = max((one.data_offsets[1] for one in found.tensors.values()), default=0)
    with writing_to(path.parent), open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    with writing_to(path.parent):
        os.utime(path, (0, 0))  # part of the checkpoint's digest: the next outline of this revision is to have the same


def _cached(repo: str, refusal: Exception) -> Path:
    """The snapshot that the cache holds; `refusal` is what the hub said, raised where the cache is not enough."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except LocalEntryNotFoundError as error:
        partial = getattr(error, "snapshot_path", None)  # it lacks some file of the repository: perhaps none of ours
        if partial is None:
            raise refusal from None
        folder = Path(partial)
    try:
        if all((folder / name).is_file() for name in weights_files(folder, read_config(folder))):
            return folder
    except ModelNotFound:
        pass  # no config.json or no weights in the cache: the hub's refusal says why
    raise refusal from None


def _no_weights(repo: str, names: set[str]) -> HermesError:
    other = next((name for name in sorted(names) if name.endswith(OTHER_FORMATS)), None)
    if other is not None:
        return NoSafetensors(f"{repo} on the hub holds {other}, but neither {WEIGHTS} nor {WEIGHTS_INDEX}")
    return ModelNotFound(f"{repo} on the hub holds neither {WEIGHTS} nor {WEIGHTS_INDEX}")


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
    if isinstance(error, hub.OfflineModeIsEnabled):
        return HubUnreachable(
            f"{repo} is not, or not wholly, in the hub's cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"
        )
    if isinstance(error, (hub.HTTPError, hub.LocalEntryNotFoundError)):  # type: ignore[attr-defined]
        how = reason or type(error).__name__
        return HubUnreachable(
            f"{repo} is not, or not wholly, in the hub's cache, and the hub cannot be reached ({how})"
        )
    if isinstance(error, OSError):
        return DownloadFailed(f"{repo} cannot be downloaded: {reason}")
    return None


def _end_with(alive: int) -> None:
    """Ends this process as soon as the one that waits for it is gone."""

    def wait() -> None:
        os.read(alive, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    """`python -m hermes_mp.host.hub ID [FD [FOLDER]]`: FD is a pipe's read end; the process ends when it closes.

    With FOLDER only the model's outline is fetched, into that folder.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # huggingface_hub's threads would finish their files first
    if len(arguments) > 1:
        _end_with(int(arguments[1]))
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(TIMEOUT_S)))
    failed: HermesError | None
    try:
        print(outlined(arguments[0], Path(arguments[2])) if len(arguments) > 2 else download(arguments[0]))
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
