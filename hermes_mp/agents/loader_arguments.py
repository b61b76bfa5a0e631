"""What a daemon tells a loader on its command line; the descriptors are inherited ones."""

from __future__ import annotations

from dataclasses import astuple, dataclass

from hermes_mp.agents.borrowed import Lender


@dataclass(frozen=True)
class LoaderArguments:
    """All of it, in order."""

    loader: int
    epoch: int
    endpoint: str
    run_dir: str
    parent_pid: int
    death_fd: int
    arena_fd: int
    progress_fd: int
    chunk_nbytes: int

    def to_words(self) -> list[str]:
        """The command line."""
        return [str(value) for value in astuple(self)]

    @staticmethod
    def from_words(words: list[str]) -> LoaderArguments:
        """The same again."""
        loader, epoch, endpoint, run_dir, *rest = words
        return LoaderArguments(int(loader), int(epoch), endpoint, run_dir, *map(int, rest))

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The descriptors to inherit."""
        return self.death_fd, self.arena_fd, self.progress_fd


@dataclass(frozen=True)
class RemoteArguments:
    """Of a loader that takes from another board; `fingerprint` is what the model there must have."""

    loader: LoaderArguments
    lender: Lender
    model: str
    fingerprint: str

    def to_words(self) -> list[str]:
        """The command line."""
        lender = self.lender
        return [lender.name, lender.address, lender.key, self.model, self.fingerprint, *self.loader.to_words()]

    @staticmethod
    def from_words(words: list[str]) -> RemoteArguments:
        """The same again."""
        name, address, key, model, fingerprint, *rest = words
        return RemoteArguments(LoaderArguments.from_words(rest), Lender(name, address, key), model, fingerprint)
