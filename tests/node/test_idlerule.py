"""The rule that decides when a droplet's time is over, over random days on a faked clock."""

from __future__ import annotations

from dataclasses import asdict, replace
from random import Random

import pytest

from chisel.node import idlerule
from chisel.node.idlerule import Limits, Memory, Sight, judge
from tests.node.days import a_life, check, live

TEN = Limits(idle_s=600)


def ticks(limits: Limits, *sights: Sight) -> idlerule.Verdict:
    memory = Memory()
    for sight in sights:
        memory, verdict = judge(memory, sight, limits)
    return verdict


@pytest.mark.timeout(120)
def test_a_thousand_random_lives_end_in_time_and_never_while_a_command_runs() -> None:
    ended = [check(a_life(Random(seed))) for seed in range(1000)]
    assert len({round(one) for one in ended}) > 300


def test_the_simulation_finds_a_rule_that_kills_what_runs_and_one_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = idlerule.judge

    def blind(memory: Memory, sight: Sight, limits: Limits) -> tuple[Memory, idlerule.Verdict]:
        return right(memory, replace(sight, busy=()), limits)

    def lazy(memory: Memory, sight: Sight, limits: Limits) -> tuple[Memory, idlerule.Verdict]:
        return right(memory, sight, replace(limits, idle_s=limits.idle_s * 1.5 + 100))

    for wrong in (blind, lazy):
        monkeypatch.setattr(idlerule, "judge", wrong)
        with pytest.raises(AssertionError):
            [check(a_life(Random(seed))) for seed in range(200)]


def test_idleness_adds_up_over_a_reboot_and_the_time_off_does_not_count() -> None:
    first = [Sight("a", 60.0, {"x": "1"}), Sight("a", 100.0, {"x": "1"}), Sight("a", 440.0, {"x": "1"})]
    assert not ticks(TEN, *first, Sight("b", 100.0, {"x": "1"})).is_over
    assert ticks(TEN, *first, Sight("b", 300.0, {"x": "1"})).is_over


def test_a_clock_that_went_back_is_no_idleness() -> None:
    assert not ticks(
        TEN, Sight("a", 5000.0, {"x": "1"}), Sight("a", 10.0, {"x": "1"}), Sight("a", 500.0, {"x": "1"})
    ).is_over


@pytest.mark.parametrize(
    ("limits", "busy", "is_over", "words"),
    [
        (Limits(ttl_s=100), (), True, "its time of 100 s is over"),
        (Limits(ttl_s=100), ("make runs",), False, "its time is over, but make runs"),
        (Limits(ttl_s=100, ends_busy=True), ("make runs",), True, "its time of 100 s is over"),
        (Limits(idle_s=50), ("make runs",), False, "make runs"),
        (Limits(idle_s=50), (), True, "nothing was asked of it for 140 s"),
        (Limits(), (), False, "idle for 140 s"),
        (Limits(idle_s=50, kept_until_s=1000), (), False, "idle for 140 s"),
    ],
)
def test_what_ends_a_droplet(limits: Limits, busy: tuple[str, ...], is_over: bool, words: str) -> None:
    verdict = ticks(limits, Sight("a", 60.0, {"x": "1"}, busy), Sight("a", 200.0, {"x": "1"}, busy))
    assert (verdict.is_over, verdict.reason) == (is_over, words)


def test_a_first_boot_is_a_use_but_not_for_ever() -> None:
    booting = [Sight("a", 60.0 * n, is_first_boot=True) for n in range(1, 60)]
    assert ticks(TEN, *booting).reason == "the first boot"
    late = [Sight("a", 60.0 * n, is_first_boot=True) for n in range(60, 72)]
    assert ticks(TEN, *booting, *late).is_over


def test_keep_makes_nothing_shorter() -> None:
    memory = Memory(age_s=1000, on_s=500)
    held = idlerule.extended(memory, Limits(idle_s=900, ttl_s=9000), now_on_s=530, by_s=3600)
    assert (held.ttl_s, held.kept_until_s) == (9000, 4630)
    assert idlerule.extended(memory, held, now_on_s=530, by_s=60) == held
    assert idlerule.extended(memory, Limits(idle_s=900), now_on_s=530, by_s=60).ttl_s == 0


@pytest.mark.parametrize("torn", [None, [], {}, {"age_s": "x"}, {"marks": 3, "on_s": None}])
def test_what_is_not_a_memory_is_none(torn: object) -> None:
    assert idlerule.read_memory(torn) == Memory()
    assert idlerule.read_limits(torn, TEN) == TEN


def test_memory_and_limits_survive_their_files() -> None:
    memory = Memory("a", 7, "b", 1.5, 2.5, 3.5, {"x": "1"}, 4)
    assert idlerule.read_memory(asdict(memory)) == memory
    assert idlerule.read_limits(asdict(replace(TEN, ends_busy=True)), TEN).ends_busy


def test_a_life_without_any_request_ends_after_its_limit() -> None:
    life = replace(a_life(Random(1)), requests=[], busy=[], outages=[], silences=[], reboots=[], first_boot_until=0.0)
    life = replace(life, limits=Limits(idle_s=900), tick_s=60.0)
    assert live(life) == 960.0
