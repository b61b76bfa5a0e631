"""`--memory` through the command: too small is refused with the least that would do, and that does; who takes what."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from launching import Launch, launch
from memory_groups import limit, oom_kills
from transformers import LlamaConfig, LlamaForCausalLM

from hermes_mp.host import memory

MIB = 1 << 20
LOADER_NBYTES, DAEMON_NBYTES = 20 * MIB, 35 * MIB
BASES_DIFFER_MIB = 8  # from one start of compute to the next
ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 8, "--json")


def test_too_small_a_budget_names_one_that_will_do(models: Path, home: Path) -> None:
    trace = home.with_name("trace.json")
    refused = launch(home, "--model", models / "big", *ARGUMENTS, "--memory", "200MiB", "--trace", trace)
    assert refused.code == 16
    assert refused.object["error"]["line"] == refused.line
    assert "read unit" not in trace.read_text(), "it was refused before a weight was read"
    found = re.search(r"the smallest budget for this model, context and batch is ([0-9]+) MiB", refused.line)
    assert found, refused.line
    smallest = int(found[1])
    enough = launch(
        home.with_name("enough"), "--model", models / "big", *ARGUMENTS, "--memory", f"{smallest}MiB",
        "--sample-memory",
    )  # fmt: skip
    assert enough.code == 0, enough.err
    budget = enough.object["report"]["memory"]
    assert budget["exact"]
    assert budget["budget_nbytes"] == smallest * MIB
    assert 200 * MIB < budget["peak_nbytes"] <= budget["budget_nbytes"]
    plain = launch(home.with_name("plain"), "--model", models / "big", *ARGUMENTS)
    assert enough.object["answers"] == plain.object["answers"]


def test_long_prompts_keep_it(home: Path, tmp_path: Path) -> None:
    """Activations of 16 to 32 MB: a heap that holds them grows far beyond what lies in it, here to 97 % of the budget,
    beyond it where layers are more; with mappings of their own they end at 83 %.
    """
    config = LlamaConfig(
        hidden_size=512, intermediate_size=8000, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=512, max_position_embeddings=2048, bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "wide")
    arguments = (
        "--model", tmp_path / "wide", "--token-ids", ",".join(str(3 + token % 500) for token in range(2000)),
        "--max-new-tokens", 2, "--json",
    )  # fmt: skip
    refused = launch(home, *arguments, "--memory", "200MiB")
    found = re.search(r"the smallest budget for this model, context and batch is ([0-9]+) MiB", refused.line)
    assert found, refused.line
    budget_nbytes = (int(found[1]) + BASES_DIFFER_MIB) * MIB
    ended = launch(home.with_name("enough"), *arguments, "--memory", budget_nbytes, "--sample-memory")
    assert ended.code == 0, ended.err
    assert ended.object["report"]["memory"]["peak_nbytes"] <= 0.9 * budget_nbytes


def test_loaders_and_daemon_are_small(models: Path, home: Path) -> None:
    """In a run that is under way; what they may import is held by tests/test_structure.py, and here by their maps."""
    with Launch(home, "--model", models / "big", "--max-new-tokens", 2, "--loaders", 3, lines=True) as run:
        run.write("the ship\n")
        run.wait_for(lambda run: run.out.endswith("\n"))
        loaders = [run.process(f"loader {number}") for number in range(3)]
        for pid in loaders:
            assert memory.uss_nbytes(pid) <= LOADER_NBYTES
        assert memory.uss_nbytes(run.pid) <= DAEMON_NBYTES
        for pid in (run.pid, *loaders):
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert "zmq" in maps
            assert not re.search(r"torch|numpy|tokenizers", maps)
        assert "libtorch" in Path(f"/proc/{run.process('compute')}/maps").read_text()
        assert run.ended().code == 0


def test_a_call_larger_than_what_was_reserved_is_refused_with_both_numbers(models: Path, home: Path) -> None:
    arguments = ("--model", models / "big", "--memory", "560MiB", "--context", 16, "--max-new-tokens", 4)
    ended = launch(home, *arguments, "--json", stdin="cold\n" + 10 * " the ship" + "\ncold\n")
    good, bad, again = ended.object["answers"]
    assert good == again
    assert bad["error"]["exit_code"] == ended.code == 17
    assert re.search(r"need [0-9.]+ MiB, but [0-9.]+ MiB are reserved, for 1 of 16", ended.line)


def test_auto_takes_all_units_in_where_the_machine_can_spare_it(models: Path, home: Path) -> None:
    """The median of many passes: the first few are over before a busy machine has taken the memory of all slots."""
    ended = launch(home, "--model", models / "big", *ARGUMENTS, "--max-new-tokens", 48)
    report = ended.object["report"]
    assert report["residents"] == report["slots"]
    assert report["passes"]["count"] >= 40
    assert report["read_nbytes_per_pass"] == 0
    assert report["memory"]["auto"]
    assert report["memory"]["budget_nbytes"] > report["memory"]["peak_nbytes"]
    assert report["memory"]["reserve_nbytes"] >= 64 * MIB
    assert (report["memory"]["squeezes"], report["memory"]["least_slots"]) == (0, None)


def test_auto_in_a_small_cgroup(models: Path, home: Path, memory_cgroup: Path) -> None:
    """Too small: one line with the budget that would do. That much, and the reserve: it runs, and nobody is killed."""
    limit(memory_cgroup, 280)
    refused = launch(home, "--model", models / "big", *ARGUMENTS, cgroup=memory_cgroup)
    assert refused.code == 16
    assert refused.object["error"]["line"] == refused.line
    found = re.search(r"--memory auto comes to [0-9]+ MiB here, which is too small; .* is ([0-9]+) MiB", refused.line)
    assert found, refused.line
    limit(memory_cgroup, int(found[1]) + 64)
    enough = launch(home.with_name("enough"), "--model", models / "big", *ARGUMENTS, cgroup=memory_cgroup)
    assert enough.code == 0, enough.err
    assert enough.object["report"]["memory"]["budget_nbytes"] <= (int(found[1]) + 64) * MIB
    assert oom_kills(memory_cgroup) == 0
    plain = launch(home.with_name("plain"), "--model", models / "big", *ARGUMENTS, "--memory", "none")
    assert enough.object["answers"] == plain.object["answers"]
