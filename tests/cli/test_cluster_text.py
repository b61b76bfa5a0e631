"""A plan for several boards as people and programs see it."""

from __future__ import annotations

import json

from hermes_mp.cli.cluster_text import as_lines, as_object, ranges, remote_lines, summary, table
from hermes_mp.core.cluster.cluster import BoardPlan, ClusterPlan, LeftOut, Lending
from hermes_mp.core.cluster.remote_loaders import RemoteLoaders
from hermes_mp.core.cluster.stretches import Stretch

MIB = 1 << 20


def part(name: str, *layers: tuple[int, int]) -> BoardPlan:
    return BoardPlan(name, layers, 8, 4, 2, (1, 3), 40 * MIB, 120 * MIB, 0, 0, 0.98, 0.01, 0.3, 0.25, 412 * MIB)


PLAN = ClusterPlan(
    stretches=(Stretch("head", 0, 6), Stretch("pi1", 6, 12), Stretch("head", 12, 13)),
    boards=(part("head", (0, 6), (12, 13)), part("pi1", (6, 12)), part("pi2")),
    lendings=(Lending("pi2", "pi1", 0.5, 2),),
    seconds=1 / 2.3,
    first_s=12.3,
    prompt_tokens=32,
    alone_s=1 / 0.8,
    left_out={
        "pi3": LeftOut("pi3", "it would make it 1.4 token/s instead of 2.3: its disk gives 20 MB/s", 1 / 1.4),
        "pi4": LeftOut("pi4", "its 100 MiB have no room for two slots", None),
    },
)


def test_the_first_line_says_what_boards_bring() -> None:
    assert summary(PLAN) == (
        '1 board: 0.8 token/s; 3 boards: 2.3; adding "pi3" makes it 1.4, left out; "pi4" cannot be used, left out'
    )


def test_a_head_alone_is_one_figure() -> None:
    alone = ClusterPlan((Stretch("head", 0, 6),), (part("head", (0, 6)),), (), 1.25, 3.0, 32, 1.25, {})
    assert summary(alone) == "1 board: 0.8 token/s"


def test_figures_that_differ_little_are_told_apart() -> None:
    close = ClusterPlan((), PLAN.boards, (), 1 / 2.31, 3.0, 32, 1 / 2.29, {})
    assert summary(close) == "1 board: 2.29 token/s; 3 boards: 2.31"


def test_of_many_boards_left_out_the_first_line_names_three() -> None:
    left_out = {f"pi{n}": LeftOut(f"pi{n}", "why", 1.0) for n in range(9)}
    many = ClusterPlan((), PLAN.boards, (), 0.5, 3.0, 32, None, left_out)
    assert summary(many).startswith('3 boards: 2 token/s; adding "pi0" makes it 1, left out; ')
    assert summary(many).endswith("; 6 more left out")


def test_the_table_has_a_line_for_every_board() -> None:
    assert table(PLAN) == [
        "board  layers   resident  streamed  disk  link  compute  waits     peak",
        "head   0-5, 12    40 MiB   120 MiB   98%    1%      30%    25%  412 MiB",
        "pi1    6-11       40 MiB   120 MiB   98%    1%      30%    25%  412 MiB",
        "pi2    -          40 MiB   120 MiB   98%    1%      30%    25%  412 MiB",
    ]


def test_many_ranges_become_a_number() -> None:
    assert ranges(tuple((n, n + 1) for n in range(0, 32, 4))) == "0, 4, 8, 12, .. (8 layers in 8 stretches)"


def test_lines_say_who_reads_for_whom_and_who_is_left_out() -> None:
    assert as_lines(PLAN)[5:] == [
        "pi2 reads for pi1, through 2 remote loaders, with 50% of its disk",
        '"pi3" is left out: it would make it 1.4 token/s instead of 2.3: its disk gives 20 MB/s',
        '"pi4" is left out: its 100 MiB have no room for two slots',
        "the first token of a prompt of 32 takes 12.3 s",
    ]


def test_the_object_is_json() -> None:
    document = json.loads(json.dumps(as_object(PLAN)))
    assert document["schema"] == 1
    assert document["stretches"][1] == {"board": "pi1", "first": 6, "last": 12}
    assert document["boards"][0]["layers"] == [[0, 6], [12, 13]]
    assert document["boards"][0]["resident_units"] == 2
    assert document["left_out"]["pi4"]["seconds"] is None
    assert document["hops"] == 1


def test_remote_loaders_are_said_or_declined() -> None:
    found = RemoteLoaders((Lending("pi1", "head"),), 0.5, 1.5, {"pi2": "it has no copy of the model"})
    assert remote_lines(found) == [
        "pi1 reads for head: 1 remote loader",
        "2 token/s instead of 0.67, 3.0 times as fast",
        'no remote loader on "pi2": it has no copy of the model',
    ]
