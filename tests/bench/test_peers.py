"""llama.cpp's benchmark as a peer: what is asked of it, what it answers, and how it may fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from hermes_mp.bench.peers import PeerFailed, llama_command, parse_llama, run_llama
from hermes_mp.bench.worker import layers_from_the_front

ANSWER = json.dumps([
    {"build_commit": "abc", "model_size": 2479, "n_threads": 2, "n_prompt": 16, "n_gen": 0, "samples_ns": [9e8]},
    {"build_commit": "abc", "model_size": 2479, "n_threads": 2, "n_prompt": 0, "n_gen": 4, "samples_ns": [2e9]},
])  # fmt: skip


def program(path: Path, *lines: str) -> list[str]:
    path.write_text("#!/bin/sh\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return [str(path)]


def test_it_is_asked_for_one_cold_run(tmp_path: Path) -> None:
    (binary,) = program(tmp_path / "old", "echo -r -p -n -mmp")
    words = llama_command(Path(binary), Path("m.gguf"), 16, 4, 2)
    assert "--no-warmup" in words
    for flag, value in (("-r", "1"), ("-p", "16"), ("-n", "4"), ("-mmp", "1"), ("-t", "2"), ("-o", "json")):
        assert words[words.index(flag) + 1] == value
    (binary,) = program(tmp_path / "new", "echo '-lm, --load-mode <auto|none|mmap>'")
    words = llama_command(Path(binary), Path("m.gguf"), 16, 4, None)
    assert words[words.index("-lm") + 1] == "mmap"
    assert not {"-mmp", "-t"} & set(words)
    with pytest.raises(PeerFailed, match="cannot be run"):
        llama_command(tmp_path / "nothing", Path("m.gguf"), 16, 4, None)


@pytest.mark.parametrize("kind", ["gpt2", "mlm"])
def test_accelerate_keeps_layers_from_the_front(models: Path, kind: str) -> None:
    """What is small always, never a matrix larger than a layer, and everything where it fits."""
    config = transformers.AutoConfig.from_pretrained(models / kind)
    model = getattr(transformers, config.architectures[0])(config)
    prefix = "transformer.h" if kind == "gpt2" else "bert.encoder.layer"
    whole = 4 * sum(one.numel() for one in model.parameters())
    assert layers_from_the_front(model, whole, 4) == {"": "cpu"}
    layer = 4 * sum(one.numel() for one in model.get_submodule(f"{prefix}.0").parameters())
    assert layers_from_the_front(model, 1, 4)[f"{prefix}.0"] == "disk"
    some = layers_from_the_front(model, whole - layer / 2, 4)
    assert some[f"{prefix}.0"] == "cpu"
    names = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    assert all(any(name == key or name.startswith(f"{key}.") for key in some) for name in names)


def test_its_answer_is_taken_apart() -> None:
    run = parse_llama(ANSWER, 3.5)
    assert (run.first_s, run.token_s, run.threads, run.nbytes, run.build) == (1.5, 0.5, 2, 2479, "abc")


@pytest.mark.parametrize("text", ["", "no json", "[]", '[{"n_gen": 4}]', '{"n_gen": 4}'])
def test_an_answer_that_is_none_is_a_failure(text: str) -> None:
    with pytest.raises(PeerFailed, match="not understood"):
        parse_llama(text, 1.0)


def test_how_it_ended_is_said(tmp_path: Path) -> None:
    path = tmp_path / "peer"
    assert run_llama(program(path, f"cat <<'END'\n{ANSWER}\nEND"), ()).token_s == 0.5
    with pytest.raises(PeerFailed, match="exit code 3: no such model"):
        run_llama(program(path, "echo no such model >&2", "exit 3"), ())
    with pytest.raises(PeerFailed, match="killed by SIGKILL"):
        run_llama(program(path, "kill -9 $$"), ())
    with pytest.raises(PeerFailed, match="cannot be run"):
        run_llama([str(tmp_path / "nothing")], ())
