"""Every error a user can meet, as one tree; each leaf has a stable exit code and a line that says what to try.

HermesError
├── UserError       the request cannot be met as asked (exit 2, 10-29)
├── MachineError    the machine refused: memory, disk (30-39)
├── PeerError       a process of ours is gone or talks nonsense (40-49)
└── NeedsAllWeights the program asked a streamed model for something only a loaded one can give (50)

A traceback is for bugs only: `InvariantBroken` (70) and whatever is not a HermesError.
"""

from __future__ import annotations


class HermesError(Exception):
    """`str(error)` is one clear line: what is wrong, where; `attempt` says what to try."""

    exit_code = 1
    attempt = ""

    def __init__(self, message: str, attempt: str | None = None) -> None:
        super().__init__(message)
        if attempt is not None:
            self.attempt = attempt

    def line(self) -> str:
        """The one line shown to a user."""
        return f"{self}; {self.attempt}" if self.attempt else str(self)


class UserError(HermesError):
    """The user's request cannot be met as asked."""


class BadOption(UserError):
    """An unknown or wrong flag, TOML key or value."""

    exit_code = 2
    attempt = "see hermes-launch --help"


class ModelNotFound(UserError):
    """No such directory, and no such model on the hub."""

    exit_code = 10
    attempt = "name a directory with config.json and *.safetensors, or a hub id such as openai-community/gpt2"


class NoSafetensors(UserError):
    """Only pickled weights: we never unpickle."""

    exit_code = 11
    attempt = (
        "convert once on a machine where the model fits: "
        "AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)"
    )


class CheckpointBroken(UserError):
    """A missing shard, a truncated file, a hostile or damaged header."""

    exit_code = 12
    attempt = "download the file again"


class UnsupportedDtype(UserError):
    """A parameter in another dtype than F32, F16, BF16, or a quantised checkpoint."""

    exit_code = 13
    attempt = "use a checkpoint in float32, float16 or bfloat16"


class UnsupportedCheckpoint(UserError):
    """Tensors that would have to be merged or split on the way, or an architecture transformers does not know."""

    exit_code = 14
    attempt = "save it once with save_pretrained by the installed transformers version"


class MissingWeights(UserError):
    """The task needs weights that the file lacks; they are never invented."""

    exit_code = 15
    attempt = "use a checkpoint trained for this task"


class BudgetTooSmall(UserError):
    """It does not fit; the message names the smallest budget that would do."""

    exit_code = 16
    attempt = "raise --memory, or lower --context, --batch or --loaders"


class CallTooLarge(UserError):
    """A call needs more KV cache, logits, activations or kept states than was reserved, or an image than is left."""

    exit_code = 17
    attempt = "raise --context or --batch (API: load(..., context=, batch=)), or ask for less"


class WrongInput(UserError):
    """A prompt for an encoder, an image for a text model, a text for an image model."""

    exit_code = 18


class ContextTooLong(UserError):
    """More tokens than the model was built for."""

    exit_code = 19
    attempt = "shorten the input or lower --max-new-tokens"


class BadImage(UserError):
    """A file that cannot be read as an image."""

    exit_code = 20
    attempt = "give a PNG or JPEG file"


class HubUnreachable(UserError):
    """The hub cannot be reached and the model is not in its cache."""

    exit_code = 21
    attempt = "check the network, or name a local directory"


class MissingPackage(UserError):
    """An optional package is not installed."""

    exit_code = 22


class BoardUnknown(UserError):
    """A board that this one is not paired with, or a boards file that does not say what it must."""

    exit_code = 23
    attempt = "pair it: run hermes-board init there, then hermes-board join TOKEN here"


class ModelsDiffer(UserError):
    """Two boards hold different models under the same name; the message names both fingerprints."""

    exit_code = 24
    attempt = "copy the same files to all boards, or let a board without them use --remote-loader"


class UnsafeAddress(UserError):
    """Listening beyond loopback without keys is refused, and so are keys that others can read."""

    exit_code = 25
    attempt = "run hermes-board init first: it makes the keys"


class TokenRefused(UserError):
    """A join token that is none, was used, or has expired."""

    exit_code = 26
    attempt = "make a new one on the board: hermes-board token"


class CannotBeCut(UserError):
    """The model's layers are no chain that boards could share."""

    exit_code = 27
    attempt = "run it on one board"


class MachineError(HermesError):
    """The machine refused."""


class OutOfMemory(MachineError):
    """The kernel gave no memory for a slot."""

    exit_code = 30
    attempt = "lower --memory or --loaders, or close other programs"


class ReadFailed(MachineError):
    """The disk gave an error or fewer bytes than the file's header promised."""

    exit_code = 31
    attempt = "check the disk (dmesg) and the file"

    def __init__(self, message: str, attempt: str | None = None, offset: int = -1) -> None:
        """`offset`: the byte of the file, where that is known."""
        super().__init__(message, attempt)
        self.offset = offset


class DownloadFailed(MachineError):
    """The hub answered, but the files did not arrive: a full disk, a download that was killed."""

    exit_code = 32
    attempt = "check the disk's free space, then run it again: what has arrived is kept"


class WriteFailed(MachineError):
    """Standard output, or a model that is made, cannot be written: a full disk, an error of the device."""

    exit_code = 33
    attempt = "see where standard output goes, and whether there is room"


class WeightsChanged(MachineError):
    """A weights file changed under the run, or what was read of it has another checksum than it had."""

    exit_code = 34
    attempt = "let nothing write to the model while it runs; where bytes keep differing, download the file again"


class SystemCallFailed(MachineError):
    """The system refused a call that we cannot do without: no descriptor, no memory, no process is left."""

    exit_code = 35
    attempt = "see what is short: memory, processes and open files (ulimit -a), the disk (dmesg); then run it again"


class PeerError(HermesError):
    """A process of ours is gone or talks nonsense."""


class BadMessage(PeerError):
    """Bytes that are no message of ours: the one exception the decoder raises. `peer` is who sent it, if known."""

    exit_code = 40
    peer: object = None


class DaemonLost(PeerError):
    """The daemon is gone."""

    exit_code = 41
    attempt = "load the model again"


class ComputeLost(PeerError):
    """The compute process died; the message names its cause."""

    exit_code = 42


class LoadersLost(PeerError):
    """No loader could be kept alive."""

    exit_code = 43


class AnswerDiffers(PeerError):
    """A replay after a restart said something else than the lost process had."""

    exit_code = 44
    attempt = "run it again; please report this if it stays so"


class BoardLost(PeerError):
    """A board is gone, or does not answer; the message names it."""

    exit_code = 45
    attempt = "see that it runs (hermes-board serve) and that the network reaches it"


class ProtocolsDiffer(PeerError):
    """Another version of hermes-mp on the other board; the message names both."""

    exit_code = 46
    attempt = "install the same version of hermes-mp on both"


class NotAllowed(PeerError):
    """The board does not know our key, or has revoked it."""

    exit_code = 47
    attempt = "pair again: hermes-board token there, hermes-board join TOKEN here"


class NeedsAllWeights(HermesError):
    """The call needs all weights at once; a streamed model holds a few layers at a time."""

    exit_code = 50
    attempt = "load the model with transformers itself for that"


class InvariantBroken(HermesError):
    """A bug of ours: the message names the invariant."""

    exit_code = 70
    attempt = "please report this"


class RequestAgain(Exception):
    """Mixed into what ends the answer to a request, but not the run: it can be asked once more."""


def by_exit_code() -> dict[int, type[HermesError]]:
    """Leaf classes by exit code, for errors that travel between processes as (code, text)."""
    found: dict[int, type[HermesError]] = {}
    todo: list[type[HermesError]] = [HermesError]
    while todo:
        for child in todo.pop().__subclasses__():
            todo.append(child)
            if child.exit_code != 1 and not issubclass(child, RequestAgain):
                found[child.exit_code] = child
    return found


def refused(error: OSError | SystemCallFailed) -> SystemCallFailed:
    """What an entry point makes of an error of the system that nobody below knew a way around: which call it was."""
    if isinstance(error, SystemCallFailed):
        return error
    place, trace = "a system call", error.__traceback__
    while trace is not None:
        _, ours, path = trace.tb_frame.f_code.co_filename.rpartition("/hermes_mp/")
        if ours and path != "host/retrying.py":
            place = f"{path}, line {trace.tb_lineno} ({trace.tb_frame.f_code.co_name})"
        trace = trace.tb_next
    why = error.strerror or str(error) or type(error).__name__
    name = f": {error.filename}" if error.filename is not None else ""
    return SystemCallFailed(f"the system refused {place}{name}: {why}")


def revived(exit_code: int, text: str) -> HermesError:
    """The error that another process reported by its exit code and line."""
    return by_exit_code().get(exit_code, InvariantBroken)(text, "")


def line_of(exit_code: int, text: str) -> str:
    """The line of an error that is known by its exit code and text, with what to try."""
    return by_exit_code().get(exit_code, InvariantBroken)(text).line()
