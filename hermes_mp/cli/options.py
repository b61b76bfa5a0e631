"""A command line -> its configuration; for `hermes-launch [FILE.toml] [flags]` flags beat the file, it the defaults.

Flags and keys derive from the fields in config.py (`max_new_tokens` is `--max-new-tokens` and `max-new-tokens = 64`).
In a file, `image`, `trace` and a `model` that begins with `.` are relative to the file, so that it works from
any directory; `~` is the home directory. On the command line paths are what the shell made of them.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, TypeVar

from hermes_mp.config import Config, LaunchConfig, Option, options_of
from hermes_mp.errors import BadOption

C = TypeVar("C", bound=Config)


@dataclass(frozen=True)
class Command(Generic[C]):
    """One of our programs: what it is told becomes a `config`, from flags and, where it `takes_file`, a TOML file."""

    program: str
    config: type[C]
    usage: str
    description: str
    examples: str
    takes_file: bool = False


_LAUNCH_DESCRIPTION = """\
Run a Hugging Face transformer that does not fit in memory: several loaders read its layers from disk
while one process computes them, and the answer is what transformers itself would give.
Without --prompt, --text, --image or --token-ids every line of standard input is one request."""

_LAUNCH_EXAMPLES = """\
examples:
  hermes-launch                                            rank sentences by meaning with the packaged model
  hermes-launch --text "What makes bread rise?"            the same, against a sentence of yours
  hermes-launch --model ./gpt-j-6b --memory 3GiB --prompt "The ship" --max-new-tokens 32
  hermes-launch --model ./bert-large --memory 700MiB --text "one sentence" --text "another"
  hermes-launch --model ./vit-large --memory 600MiB --image cat.png
  hermes-launch launch/text-generation.toml --seed 7       a ready run; flags beat the file
  cat questions.txt | hermes-launch --model ./gpt-j-6b     one request per line, weights stay warm

A key of a launch file is a flag without its dashes: max-new-tokens = 32"""

LAUNCH = Command(
    "hermes-launch", LaunchConfig, "hermes-launch [FILE.toml] [flags]", _LAUNCH_DESCRIPTION, _LAUNCH_EXAMPLES, True
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        switch = re.fullmatch("argument (--[a-z-]+)/--no-[a-z-]+: ignored explicit argument (.*)", message)
        raise BadOption(f"{switch[1]} takes no value, not {switch[2]}" if switch else message)


class _Version(argparse.Action):
    def __call__(self, *_: object) -> NoReturn:
        from importlib import metadata  # 25 ms that no other run has to pay

        try:
            print(f"hermes-mp {metadata.version('hermes-mp')}")
        except metadata.PackageNotFoundError:
            print("hermes-mp, run from its source without being installed")
        raise SystemExit(0)


def parse(argv: Sequence[str]) -> LaunchConfig:
    """What `hermes-launch` is told; see `parse_for`."""
    return parse_for(LAUNCH, argv)


def parse_for(command: Command[C], argv: Sequence[str]) -> C:
    """The configuration that `argv` (without the program's name) asks for; BadOption where it is wrong.

    `--help` and `--version` print and raise SystemExit(0).
    """
    return parse_with_sources(command, argv)[0]


def parse_with_sources(command: Command[C], argv: Sequence[str]) -> tuple[C, dict[str, str]]:
    """As `parse_for`, and by field what said it: "flag", or the path of the launch file; nobody where it is missing."""
    try:
        return _parsed(command, argv)
    except BadOption as error:
        if error.attempt == BadOption.attempt:
            error.attempt = f"see {command.program} --help"
        raise


def _parsed(command: Command[C], argv: Sequence[str]) -> tuple[C, dict[str, str]]:
    known, unknown = _parser(command).parse_known_args(list(argv))
    if unknown:
        flags = [f"--{key_of(one.name)}" for one, _ in options_of(command.config)]
        near = difflib.get_close_matches(unknown[0], flags, n=1)
        raise BadOption(f"unknown argument {unknown[0]!r}" + (f", did you mean {near[0]}?" if near else ""))
    given = vars(known)
    file = given.pop("file", None)
    values = _from_file(file) if file is not None else {}
    sources = dict.fromkeys(values, str(file)) | dict.fromkeys(given, "flag")
    for one, option in options_of(command.config):
        if one.name in given:
            values[one.name] = _from_flag(f"--{key_of(one.name)}", option, given[one.name])
    return command.config(**values), sources


def key_of(name: str) -> str:
    """A field as launch files spell it, and flags behind two dashes."""
    return name.replace("_", "-")


def _parser(command: Command[C]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=command.program, usage=command.usage, description=command.description, epilog=command.examples,
        allow_abbrev=False, argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    if command.takes_file:
        parser.add_argument("file", nargs="?", default=None, metavar="FILE.toml", help="a ready run, see launch/*.toml")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for one, option in options_of(command.config):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        shown = isinstance(one.default, int | float | str) and option.kind.flag == "value"
        default = f"{one.default:g}" if isinstance(one.default, float) else one.default
        text = f"{option.help} (default: {default})" if shown else option.help
        settings: dict[str, Any] = {"dest": one.name, "help": text}
        if option.kind.flag == "switch":
            settings |= {"action": argparse.BooleanOptionalAction}
        else:
            settings |= {"metavar": option.metavar}
        if option.kind.flag == "repeated":
            settings |= {"action": "append", "help": text + "; may be repeated"}
        groups[option.group].add_argument(f"--{key_of(one.name)}", **settings)
    return parser


def _from_flag(flag: str, option: Option, given: object) -> object:
    try:
        if isinstance(given, list):
            return tuple(option.kind.read(one) for one in given)
        return option.kind.read(given) if isinstance(given, str) else option.kind.check(given)
    except ValueError:
        shown = given[-1] if isinstance(given, list) else given
        raise BadOption(f"{flag} takes {option.kind.what}, not {shown!r}") from None


def _from_file(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        why = f"the launch file {path} cannot be read: {error.strerror}"
        raise BadOption(why, "a model is named with --model") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadOption(f"{path} is no TOML: {error}", "see launch/*.toml for examples") from error
    options = {key_of(one.name): (one.name, option) for one, option in options_of(LaunchConfig)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in options:
            near = difflib.get_close_matches(key.replace("_", "-"), options, n=1, cutoff=0.0)
            raise BadOption(f"{path} has an unknown key {key!r}; the nearest is {near[0]!r}")
        name, option = options[key]
        try:
            values[name] = option.kind.check(value)
        except ValueError:
            raise BadOption(f"{path}: {key} takes {option.kind.what}, not {value!r}") from None
    return _with_paths(values, os.path.dirname(path))


def _with_paths(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """Paths in the file, made relative to it; a model like `openai-community/gpt2` is a hub id and stays."""
    if "image" in values:
        values["image"] = tuple(os.path.join(folder, os.path.expanduser(one)) for one in values["image"])
    if "trace" in values:
        values["trace"] = os.path.join(folder, os.path.expanduser(values["trace"]))
    if values.get("model", "").startswith((".", "~")):
        values["model"] = os.path.normpath(os.path.join(folder, os.path.expanduser(values["model"])))
    return values
