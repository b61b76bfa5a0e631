"""When another board's disk pays: on a slow card, over a fast link; and what is said where it does not."""

from __future__ import annotations

import pytest
from cluster_cases import GIGABIT, board, cluster, decoder

from hermes_mp.core.cluster.cluster import Cluster, LinkFacts
from hermes_mp.core.cluster.remote_loaders import choose_remote_loaders
from hermes_mp.errors import BadOption


def beside(local_nbytes_per_s: float | None, link: LinkFacts = GIGABIT, slots: float = 8) -> Cluster:
    """A head of so fast a disk, and a board whose disk gives 100 MB/s, on gigabit Ethernet."""
    boards = [board("head", slots, local_nbytes_per_s), board("pi1", 8, 100e6)]
    return cluster(decoder(32), boards, {"pi1": link})


def test_it_pays_beside_a_slow_card() -> None:
    """45 MB/s of its own and 100 MB/s over gigabit Ethernet."""
    found = choose_remote_loaders(beside(45e6))
    assert found is not None
    assert [(one.lender, one.receiver) for one in found.lendings] == [("pi1", "head")]
    assert found.loaders == 1
    assert found.factor >= 2.5
    assert not found.declined


def test_it_is_declined_beside_a_fast_disk_in_one_line() -> None:
    found = choose_remote_loaders(beside(1e9))
    assert found is not None
    assert not found.lendings
    assert found.seconds == found.local_s
    assert "token/s instead of" in found.declined["pi1"]
    assert "over the link it gives 100 MB/s, the disk here 1000 MB/s" in found.declined["pi1"]
    assert "\n" not in found.declined["pi1"]


def test_it_is_declined_over_a_slow_link() -> None:
    found = choose_remote_loaders(beside(45e6, LinkFacts(2e6, 0.01)))
    assert found is not None
    assert not found.lendings
    assert "over the link it gives 2 MB/s" in found.declined["pi1"]


def test_it_is_declined_where_its_memory_is_not_left() -> None:
    """Two slots are left, and a remote loader takes memory as well."""
    found = choose_remote_loaders(beside(45e6, slots=2.1))
    assert found is not None
    assert not found.lendings
    assert "not left in the budget" in found.declined["pi1"]


def test_a_board_without_a_copy_has_no_choice() -> None:
    found = choose_remote_loaders(beside(None))
    assert found is not None
    assert found.loaders == 1
    assert found.local_s is None
    assert choose_remote_loaders(cluster(decoder(8), [board("head", 4, None), board("pi1", 4, None)])) is None


def test_a_long_way_takes_more_loaders() -> None:
    """100 MB/s over 100 ms are 10 MB on their way: more than one may have there."""
    found = choose_remote_loaders(beside(None, LinkFacts(112e6, 0.1), slots=12))
    assert found is not None
    assert found.loaders == 2


def test_lenders_are_taken_as_long_as_the_port_of_the_receiver_has_room() -> None:
    boards = [board("head", 12, 20e6), *(board(name, 8, 50e6) for name in ("pi1", "pi2", "pi3", "pi4"))]
    found = choose_remote_loaders(cluster(decoder(32), boards))
    assert found is not None
    assert 2 <= len(found.lendings) <= 3
    assert len(found.declined) == 4 - len(found.lendings)


def test_only_those_that_are_named_are_asked() -> None:
    boards = [board("head", 8, 45e6), board("pi1", 8, 100e6), board("pi2", 8, 60e6), board("pi3", 8, None)]
    one = cluster(decoder(32), boards)
    found = choose_remote_loaders(one, ["pi2", "pi3"])
    assert found is not None
    assert [lending.lender for lending in found.lendings] == ["pi2"]
    assert found.declined == {"pi3": "it has no copy of the model"}
    with pytest.raises(BadOption, match="pi9"):
        choose_remote_loaders(one, ["pi9"])
