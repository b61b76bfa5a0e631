"""Passes over several boards against figures worked out by hand, the forecast of one board, and bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cluster_cases import GIGABIT, LAYER_NBYTES, board, cluster, decoder, drawn, every_way, four_boards
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_mp.core.cluster.cluster import Cluster, Lending, LinkFacts
from hermes_mp.core.cluster.deals import in_rounds
from hermes_mp.core.cluster.forecast import Forecaster, Way
from hermes_mp.core.forecast import Flow, simulate
from hermes_mp.core.planner import ORDER_S, READ_S, UNIT_S


def seconds(one: Cluster, owners: tuple[int, ...], windows: tuple[int, ...] = (), **more: tuple[Lending, ...]) -> float:
    found = Forecaster(one).steady(Way(owners, windows or (0,) * len(one.boards), **more))
    assert found is not None
    return found.seconds


def dealt(layers: int, boards: int, rounds: int) -> tuple[int, ...]:
    return in_rounds([layers // boards] * boards, rounds, range(boards))


@pytest.mark.parametrize(("layers", "contiguous"), [(16, 16 / 8), (32, 32 / 24), (48, 48 / 40), (80, 80 / 72)])
def test_four_boards_pay_in_rounds_and_hardly_in_one_stretch_each(layers: int, contiguous: float) -> None:
    """With windows of two slots: in its turn a board has two layers ready and reads the others alone, so that a model
    of 48 layers is 1.2 times as fast; in rounds all four disks read all the time.
    """
    one = four_boards(layers)
    alone_s = seconds(one, (0,) * layers)
    assert alone_s / seconds(one, dealt(layers, 4, 1)) == pytest.approx(contiguous, rel=0.01)
    assert alone_s / seconds(one, dealt(layers, 4, layers // 4)) == pytest.approx(4, rel=0.01)


def test_stretches_as_long_as_the_window_are_as_good_as_single_layers() -> None:
    one = four_boards(32)
    assert seconds(one, dealt(32, 4, 4)) == pytest.approx(seconds(one, dealt(32, 4, 8)), rel=0.01)
    assert seconds(one, dealt(32, 4, 2)) > 1.3 * seconds(one, dealt(32, 4, 8))


def test_a_prompt_takes_rounds_as_well() -> None:
    """From nothing loaded, with 20 tokens of 5 ms a layer: computing it is 32 x 0.1 s, hidden behind four disks."""
    boards = [board(name, 2, prefill_s_per_token=0.005) for name in ("head", "pi1", "pi2", "pi3")]
    forecaster = Forecaster(cluster(decoder(32), boards))
    read_s = LAYER_NBYTES / 45e6 + READ_S
    rounds, contiguous, alone = (
        forecaster.first(Way(owners, (0,) * 4), 20) for owners in (dealt(32, 4, 8), dealt(32, 4, 1), (0,) * 32)
    )
    assert rounds is not None
    assert contiguous is not None
    assert alone is not None
    assert rounds.seconds == pytest.approx(8 * read_s + 0.1 * 4, rel=0.05)
    assert alone.seconds == pytest.approx(32 * read_s, rel=0.02)
    assert rounds.seconds < contiguous.seconds < alone.seconds


def test_a_hop_takes_a_round_trip_the_states_both_ways_and_what_processes_take() -> None:
    """All is resident: nothing but computing and hops is left. A stretch of the head costs none."""
    model = decoder(4)
    link = LinkFacts(1e6, 0.03, 0.002)
    one = cluster(model, [board("head", 9, layer_s=0.01), board("pi1", 9, layer_s=0.01)], {"pi1": link})
    hop_s = 0.03 + 2 * 4096 / 1e6 + 0.002
    assert seconds(one, (0, 0, 0, 0)) == pytest.approx(0.04)
    assert seconds(one, (0, 1, 1, 0)) == pytest.approx(0.04 + hop_s)
    assert seconds(one, (1, 0, 1, 0)) == pytest.approx(0.04 + 2 * hop_s)
    first = Forecaster(one).first(Way((0, 1, 1, 0), (0, 0)), 100)
    assert first is not None
    # The second read of pi1 ends at 0.936 s, when its first layer is just done; then a layer, half a hop, a layer.
    expected_s = 2 * LAYER_NBYTES / 45e6 + 0.01 + (0.032 + 200 * 4096 / 1e6) / 2 + 0.01
    assert first.seconds == pytest.approx(expected_s, rel=0.01)


def test_the_head_streams_its_own_units_in_the_shadow_of_other_boards() -> None:
    """100 MiB of vocabulary head in five units: 2.3 s of reading that hide behind the other board's pass."""
    model = decoder(16, head_nbytes=5 * LAYER_NBYTES)
    one = cluster(model, [board("head", 2), board("pi1", 2)])
    read_s = LAYER_NBYTES / 45e6 + READ_S
    assert seconds(one, (0,) * 16) == pytest.approx(21 * read_s, rel=0.01)
    assert seconds(one, (1,) * 16) == pytest.approx(16 * read_s, rel=0.25)
    assert seconds(one, in_rounds([6, 10], 5, (0, 1))) < 0.6 * seconds(one, (0,) * 16)


@pytest.mark.parametrize("hold_s", [0.01, 0.4, 0.465, 0.6])
@pytest.mark.parametrize(("slots", "window"), [(2, 2), (3, 3), (5, 2), (6, 3)])
def test_of_one_board_it_says_what_the_forecast_of_one_board_says(hold_s: float, slots: int, window: int) -> None:
    one = cluster(decoder(12), [board("head", slots, layer_s=hold_s)])
    forecaster = Forecaster(one)
    way = Way((0,) * 12, (window,))
    (load,) = forecaster.loads(way) or ()
    assert load is not None
    reads: list[float] = []
    holds: list[float] = []
    gaps: list[float] = []
    lead_s = 0.0
    for unit in range(12):
        if unit not in load.residents:
            reads.append(LAYER_NBYTES + READ_S * 45e6)
            holds.append(hold_s + UNIT_S)
            gaps.append(0.0)
        elif gaps:
            gaps[-1] += hold_s
        else:
            lead_s += hold_s
    expected = simulate(Flow(reads, holds, gaps, lead_s, (0.0, 45e6), window, ORDER_S))
    found = forecaster.steady(way)
    assert found is not None
    assert found.seconds == pytest.approx(expected.seconds, rel=0.005)
    assert found.stalled[0] == pytest.approx(expected.stall_s, rel=0.02, abs=0.02)


def test_a_lender_adds_its_disk_as_far_as_the_link_goes() -> None:
    model = decoder(24)
    boards = [board("head", 8), board("pi1", 8, 400e6), board("pi2", 8, 100e6)]
    one = cluster(model, boards, {"pi1": LinkFacts(50e6, 0.001)})
    alone = seconds(one, (0,) * 24, (4, 0, 0))
    slow = seconds(one, (0,) * 24, (4, 0, 0), lendings=(Lending("pi1", "head"),))
    assert alone / slow == pytest.approx((45 + 50) / 45, rel=0.2)
    half = seconds(one, (0,) * 24, (4, 0, 0), lendings=(Lending("pi2", "head", 0.5),))
    assert slow == pytest.approx(half, rel=0.05)


def test_a_board_without_a_copy_reads_from_a_lender_or_not_at_all() -> None:
    one = cluster(decoder(8), [board("head", 6, None), board("pi1", 6, 100e6)])
    assert Forecaster(one).steady(Way((0,) * 8, (0, 0))) is None
    assert seconds(one, (0,) * 8, lendings=(Lending("pi1", "head"),)) > 0


def test_what_fits_no_budget_is_no_way() -> None:
    one = cluster(decoder(4, kv_nbytes_per_layer=LAYER_NBYTES), [board("head", 4), board("pi1", 1.9)])
    assert Forecaster(one).steady(Way((0, 0, 0, 0), (0, 0))) is None
    assert Forecaster(one).steady(Way((0, 0, 0, 1), (0, 0))) is None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_no_way_beats_its_computing_or_its_disks_and_none_passes_its_budget(seed: int) -> None:
    one = drawn(seed)
    forecaster = Forecaster(one)
    for number, (found_s, way) in enumerate(every_way(one)):
        if number % 37:
            continue
        loads = [load for load in forecaster.loads(way) or () if load is not None]
        assert found_s >= max(load.reading_s for load in loads) - 1e-9
        assert found_s >= sum(load.compute_s for load in loads) - 1e-9
        assert all(load.peak_nbytes <= one.boards[load.board].budget_nbytes for load in loads)
        first, longer = forecaster.first(way, 1), forecaster.first(way, 50)
        assert first is not None
        assert longer is not None
        assert first.seconds <= longer.seconds + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(1.5, 20))
def test_a_faster_link_or_disk_never_hurts(seed: int, factor: float) -> None:
    """For one way: times follow from earlier ones only. 1 % is for passes that never come to a steady state."""
    slow = drawn(seed)
    boards = tuple(
        replace(one, disk_nbytes_per_s=one.disk_nbytes_per_s and one.disk_nbytes_per_s * factor) for one in slow.boards
    )
    better = Cluster(slow.model, boards, dict.fromkeys(slow.links, GIGABIT))
    forecaster = Forecaster(better)
    for number, (found_s, way) in enumerate(every_way(slow)):
        if number % 53 == 0:
            found = forecaster.steady(way)
            assert found is not None
            assert found.seconds <= found_s * 1.01
