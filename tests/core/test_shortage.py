"""What is said of a run whose process was killed for lack of memory."""

from __future__ import annotations

from hermes_mp.core.shortage import MIB, Shortage

TOOK = {"daemon": 20 * MIB, "compute": 200 * MIB, "slots": 100 * MIB}


def test_a_cgroup_that_others_use_as_well() -> None:
    shortage = Shortage("/sys/fs/cgroup/app", 400 * MIB, 60 * MIB, TOOK, None)
    assert shortage.story() == (
        "/sys/fs/cgroup/app allows 400 MiB, the run took 320 MiB (compute 200, slots 100, daemon 20) and others 60 MiB "
        "when last looked at"
    )
    assert shortage.attempt() == "let it have 444 MiB or more, or run it with --memory 276MiB"


def test_a_machine_and_a_budget_that_was_too_much_for_it() -> None:
    shortage = Shortage("machine", 1024 * MIB, 300 * MIB, TOOK, 900 * MIB)
    assert shortage.story().startswith("this machine has 1024 MiB, the run took 320 MiB (")
    assert " and others 300 MiB when" in shortage.story()
    assert shortage.attempt() == "it takes a machine with 1264 MiB or more, or run it with --memory 660MiB"


def test_no_budget_is_named_that_leaves_no_room_for_the_processes() -> None:
    shortage = Shortage("/sys/fs/cgroup/app", 200 * MIB, 0, {"daemon": 20 * MIB, "compute": 170 * MIB}, None)
    assert "others" not in shortage.story()
    assert shortage.attempt() == "let it have 254 MiB or more"


def test_no_budget_is_named_that_is_more_than_the_present_one() -> None:
    """Others were what was too much, and are gone."""
    assert "--memory" not in Shortage("/sys/fs/cgroup/app", 2048 * MIB, 0, TOOK, 400 * MIB).attempt()


def test_of_one_that_only_began_it_is_not_known_what_it_takes() -> None:
    shortage = Shortage("/sys/fs/cgroup/app", 400 * MIB, 0, TOOK, None, starting=True)
    assert shortage.attempt() == "let it have more than 384 MiB, as it only began"
