"""Bad input: one clear line on standard error and a stable exit code (docs/exit-codes.md) each; never a traceback."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from launching import Ended, launch

NOBODY = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
Spoil = Callable[[Path], None]


def config(**changes: Any) -> Spoil:
    """Other keys in config.json."""

    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def weights(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """Other tensors in model.safetensors."""

    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def file(change: Callable[[bytes], bytes]) -> Spoil:
    """Other bytes in model.safetensors."""

    def spoil(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_shard(folder: Path) -> None:
    import transformers

    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    sorted(folder.glob("model-*"))[1].unlink()


def own_code(folder: Path) -> None:
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"}
    config(model_type="x", architectures=["XModel"], auto_map=auto_map)(folder)
    for name in ("configuration_x.py", "modeling_x.py"):
        (folder / name).write_text("raise SystemExit('it was run')\n")


def widen(tensors: dict[str, Any]) -> None:
    tensors["encoder.layer.0.output.dense.weight"] = tensors["encoder.layer.0.output.dense.weight"].double()


def repeated(name: bytes) -> bytes:
    one = b'"' + name + b'":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = b"{" + one + b"," + one + b"}"
    return struct.pack("<Q", len(header)) + header + b"\0" * 4


def nothing(folder: Path) -> None:
    pass


PROMPT, TEXT, IDS = ("--prompt", "the ship"), ("--text", "the ship"), ("--token-ids", "5,6,7")
# name: (model, what is done to a copy of it, further arguments, exit code, the line)
MODELS: dict[str, tuple[str, Spoil, tuple[object, ...], int, str]] = {
    "only .bin": ("gpt2", only_pickled, PROMPT, 11, r"pytorch_model\.bin, but no safetensors file; convert .*save_pre"),
    "missing shard": ("bert", without_a_shard, IDS, 12, r"model-00002-of-0000.\.safetensors is missing"),
    "truncated": ("bert", file(lambda whole: whole[:-100]), IDS, 12, r"it is truncated; download the file again"),
    "nearly nothing": ("bert", file(lambda whole: whole[:5]), IDS, 12, r"ends after 5 bytes"),
    "endless header": (
        "bert", file(lambda whole: struct.pack("<Q", 1 << 62) + b"{}"), IDS, 12, r"header of 46[0-9]+ bytes is more"),
    "name twice": ("bert", file(lambda whole: repeated(b"a")), IDS, 12, r"the header names 'a' twice"),
    "float64": ("bert", weights(widen), IDS, 13, r"encoder\.layer\.0\.output\.dense\.weight of .* stored as F64"),
    "quantised": ("gpt2", config(quantization_config={"quant_method": "gptq", "bits": 4}), PROMPT, 13, r"gptq"),
    "config is no JSON": (
        "bert", lambda folder: (folder / "config.json").write_text("{") and None, IDS, 12, r"config\.json is not JSON"),
    "unknown model type": (
        "bert", config(model_type="flub", architectures=["Flub"]), IDS, 14, r"model type `flub` .*newer transformers"),
    "unknown class": ("bert", config(architectures=["FlubModel"]), IDS, 14, r"transformers has no class FlubModel"),
    "own code": ("gpt2", own_code, PROMPT, 14, r"code"),
    "head is missing": (
        "bert", config(architectures=["BertForSequenceClassification"]), TEXT, 15, r"lacks .*: classifier\.bias"),
    "layer is missing": ("gpt2", config(n_layer=3), PROMPT, 15, r"lacks weights .*transformer\.h\.2\.attn"),
    "budget": ("gpt2", nothing, (*PROMPT, "--memory", "100MiB"), 16, r"smallest budget .* is [0-9]+ MiB"),
    "prompt for an encoder": ("bert", nothing, PROMPT, 18, r"BertModel takes --text or --token-ids, not --prompt"),
    "image for a text model": ("gpt2", nothing, ("--image", "x.png"), 18, r"takes --prompt .*, not --image"),
    "text for an image model": ("vit", nothing, TEXT, 18, r"ViTForImageClassification takes --image, not --text"),
    "text without a tokenizer": ("mute", nothing, PROMPT, 18, r"has no tokenizer; give --token-ids"),
    "stop without a tokenizer": ("mute", nothing, (*IDS, "--stop", "x"), 18, r"no tokenizer.*; leave --stop out"),
    "token of no vocabulary": ("mute", nothing, ("--token-ids", "5,300"), 18, r"300 is not in .* of 300 tokens"),
    "context": ("gpt2", nothing, (*PROMPT, "--context", 65), 19, r"--context 65 is more than the 64 positions"),
    "long prompt": ("gpt2", nothing, ("--prompt", "ship " * 70), 19, r"tokens long, the model takes 64"),
    "long answer": ("gpt2", nothing, (*PROMPT, "--max-new-tokens", 63), 19, r"2 tokens of input and 63 .* for 64"),
    "no image": ("vit", nothing, ("--image", "config.json"), 20, r"config\.json does not exist"),
    "unreadable image": ("vit", nothing, ("--image", "../model/config.json"), 20, r"cannot be read as an image"),
}  # fmt: skip
# name: (arguments, exit code, the line)
OPTIONS: dict[str, tuple[tuple[object, ...], int, str]] = {
    "no such directory": (("--model", "./nowhere", *PROMPT), 10, r"there is no directory \./nowhere"),
    "no model in it": (("--model", ".", *PROMPT), 10, r"holds no config\.json"),
    "no loaders": (("--loaders", 0), 2, r"--loaders takes auto or a whole number from 1 to 64, not '0'"),
    "too many loaders": (("--loaders", 65), 2, r"--loaders takes auto or a whole number from 1 to 64, not '65'"),
    "a value where none belongs": (("--json=3",), 2, r"--json takes no value, not '3'; see hermes-launch --help"),
    "budget below a unit": (("--memory", 1), 16, r"--memory 1 MiB is too small; the smallest budget .* is [0-9]+ MiB"),
    "seed too large": (("--seed", 1 << 63), 2, r"--seed takes a whole number from 0 to 2\*\*63 - 1, not"),
    "unknown flag": (("--loader", 3), 2, r"unknown argument '--loader', did you mean --loaders\?"),
    "ambiguous size": (("--memory", "3G"), 2, r"--memory takes auto, none, a size such as 700MiB"),
    "unknown key": (("run.toml",), 2, r"run\.toml has an unknown key 'loadrs'; the nearest is 'loaders'"),
    "no launch file": (("none.toml",), 2, r"none\.toml cannot be read: No such file"),
    "no directory for the trace": (("--trace", "none/trace.json"), 2, r"the trace none/trace\.json cannot be written"),
    "no hub": (("--model", "openai-community/gpt2"), 21, r"the hub cannot be reached .*name a local directory"),
}


@pytest.fixture(scope="module")
def refused(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Ended]]:
    """All of them, two at a time: most wait for an import."""
    folder = tmp_path_factory.mktemp("refused")
    started = {}
    with ThreadPoolExecutor(2) as pool:
        for number, (name, (model, spoil, arguments, _, _)) in enumerate(MODELS.items()):
            home = folder / str(number) / "home"
            shutil.copytree(models / model, home.with_name("model"))
            spoil(home.with_name("model"))
            started[name] = pool.submit(launch, home, "--quiet", "--model", "../model", *arguments)
        (folder / "run.toml").write_text("loadrs = 3\n")
        for name, (arguments, _, _) in OPTIONS.items():
            words = ["../run.toml" if word == "run.toml" else word for word in arguments]
            started[name] = pool.submit(launch, folder / name, "--quiet", *words, env=NOBODY)
    return started


@pytest.mark.parametrize("name", [*MODELS, *OPTIONS])
def test_one_line_and_an_exit_code(refused: dict[str, Future[Ended]], name: str) -> None:
    code, line = MODELS[name][3:] if name in MODELS else OPTIONS[name][1:]
    ended = refused[name].result()
    assert re.search(line, ended.line), ended.line
    assert ended.code == code
    assert ended.out == ""
    assert ended.err == f"hermes-launch: {ended.line}\n"


def test_the_exit_codes_are_those_of_the_page() -> None:
    from hermes_mp.errors import by_exit_code

    page = (Path(__file__).resolve().parents[2] / "docs/exit-codes.md").read_text()
    found = {int(code): name for code, name in re.findall(r"^\| ([0-9]+) \| (\w+) \|", page, re.MULTILINE)}
    assert found == {code: error.__name__ for code, error in by_exit_code().items()}
    assert {code for *_, code, _ in [*MODELS.values(), *OPTIONS.values()]} <= set(found)
