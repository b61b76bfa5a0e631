"""The kernel kills for lack of memory: loaders first, as an ordinary death; compute says what it lacked."""

from __future__ import annotations

import re
from pathlib import Path

from launching import Launch, launch
from memory_groups import crowd_out, limit, oom_kills, usage_nbytes

MIB = 1 << 20
# Without a budget: a window, so that all units are read in every pass.
ARGUMENTS = ("--prompt", "the ship", "--max-new-tokens", 24, "--memory", "none")


def test_loaders_go_first(models: Path, home: Path, tmp_path: Path, memory_cgroup: Path) -> None:
    """In a cgroup of which compute has most."""
    words = ("--model", models / "big", *ARGUMENTS[2:], "--loaders", 2)
    answer = launch(tmp_path / "whole", *words, stdin="the ship\n").out
    limit(memory_cgroup, 2000)
    with Launch(home, *words, lines=True, cgroup=memory_cgroup) as run:
        run.write("the ship\n")
        run.wait_until_at_work(2)
        limit(memory_cgroup, usage_nbytes(memory_cgroup) // MIB + 16)
        for killed in (1, 2):
            crowd_out(memory_cgroup)
            run.wait_for(lambda run, killed=killed: run.err.count("; it is replaced") >= killed)
        limit(memory_cgroup, 2000)
        run.write("the ship\n")
        ended = run.ended()
    assert (ended.code, ended.out) == (0, answer * 2)
    deaths = re.findall(r"^hermes-launch: (\w+).* ended \((.*)\)", ended.err, re.MULTILINE)
    assert len(deaths) >= 2
    assert set(deaths) == {("loader", "killed by the kernel for lack of memory")}, ended.err


def test_compute_ends_with_what_it_lacked(models: Path, home: Path, memory_cgroup: Path) -> None:
    """It needs more for itself than the cgroup has: no budget can help, and none is named."""
    limit(memory_cgroup, 120)
    words = ("--model", models / "big", *ARGUMENTS, "--loaders", 1)
    ended = launch(home, *words, cgroup=memory_cgroup)
    assert oom_kills(memory_cgroup) >= 4
    assert ended.code == 42
    assert "Traceback" not in ended.err
    told = (
        rf"{memory_cgroup} allows 120 MiB, the run took [0-9]+ MiB \(compute [0-9]+, daemon [0-9]+, loader 0 [0-9]+, "
        r"slots 0\) when last looked at"
    )
    assert re.fullmatch(
        rf"hermes-launch: compute \(epoch 4\) ended \(killed by the kernel for lack of memory: {told}\): "
        r"it died 4 times within 60 s; let it have more than [0-9]+ MiB, as it only began",
        ended.err.splitlines()[-1],
    )


def test_compute_that_was_crowded_out(models: Path, home: Path, memory_cgroup: Path) -> None:
    """By others in its cgroup, who then leave."""
    words = ("--model", models / "big", *ARGUMENTS[2:], "--loaders", 1)
    limit(memory_cgroup, 1200)
    with Launch(home, *words, lines=True, cgroup=memory_cgroup) as run:
        run.write("the ship\n")
        run.wait_for(lambda run: run.out.endswith("\n"))
        (Path("/proc") / str(run.process("compute")) / "oom_score_adj").write_text("1000")
        crowd_out(memory_cgroup)
        run.wait_for(lambda run: "it is started again" in run.err)
        run.write("the ship\n")
        ended = run.ended()
    assert ended.code == 0
    first, second = ended.out.splitlines()
    assert first == second
    told = rf"{memory_cgroup} allows 1200 MiB, the run took [0-9]+ MiB \(compute [0-9]+, .*\) and others ([0-9]+) MiB"
    found = re.search(rf"compute \(epoch 1\) ended \(killed by the kernel for lack of memory: {told}", ended.err)
    assert found, ended.err
    assert int(found[1]) > 400
