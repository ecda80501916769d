"""Let hypothesis choose commands, several at once, some killed, on a cloud that misbehaves: no droplet is ever unknown.

python -m tests.torture.random_commands [EXAMPLES]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from chisel import guard
from tests.torture.crash_walk import COUNT, SCHEDULES, VERBS, World, a_world, end_of, in_child, misbehave, start_child

_VERBS = ["up", "down", "sweep"]
_NEVER = "vanishing"


class Commands(RuleBasedStateMachine):
    """One user's commands from several terminals; between them every droplet of theirs is on record."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._scratch = Path(tempfile.mkdtemp())
        self.world: World = self._stack.enter_context(a_world(self._scratch))
        self.commands = 0

    @initialize()
    def begin(self) -> None:
        assert in_child(VERBS["up"], self.world, None) == 0

    @rule(name=st.sampled_from([name for name in SCHEDULES if name != _NEVER]))
    def the_cloud_misbehaves(self, name: str) -> None:
        misbehave(self.world, SCHEDULES[name])

    @rule(
        verbs=st.lists(st.sampled_from(_VERBS), min_size=1, max_size=3),
        deadly=st.lists(st.none() | st.integers(1, 220), min_size=3, max_size=3),
    )
    def commands_at_once(self, verbs: list[str], deadly: list[int | None]) -> None:
        started = [
            (start_child(VERBS[verb], self.world, point), verb) for verb, point in zip(verbs, deadly, strict=False)
        ]
        for pid, verb in started:
            end_of(pid, verb)
        self.commands += len(started)

    @rule(seconds=st.integers(1, 3600))
    def time_passes(self, seconds: int) -> None:
        self.world.cloud.clock.advance(seconds)

    @invariant()
    def every_droplet_is_on_record(self) -> None:
        part = self.world.part()
        recorded = {int(one.id) for pool in part.pools.values() for one in pool.values()}
        droplets = self.world.cloud.droplets
        for id in self.world.mine():
            attempt = guard.read_label(droplets[id].tags).attempt
            assert id in recorded or attempt in part.intents, f"droplet {id} is on no record"

    @invariant()
    def what_is_not_ours_stays(self) -> None:
        assert self.world.stranger in self.world.cloud.droplets

    def teardown(self) -> None:
        try:
            self.world.server.schedule.clear()
            misbehave(self.world, SCHEDULES["none"])
            self.world.cloud.clock.advance(10)
            assert in_child(VERBS["up"], self.world, None) == 0
            assert len(self.world.mine()) >= COUNT
            for _ in range(2):  # an older record of the same pool may have waited for its end
                assert in_child(VERBS["down"], self.world, None) == 0
            assert self.world.mine() == []
            assert not self.world.part().intents
        finally:
            self._stack.close()
            shutil.rmtree(self._scratch, ignore_errors=True)


def walk(examples: int, steps: int) -> None:
    """Let so many machines take at most so many steps each."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Commands,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks
        ),
    )


if __name__ == "__main__":
    numbers = [int(text) for text in sys.argv[1:]]
    walk(*(numbers or [200]), *([] if len(numbers) > 1 else [12]))
    print("every droplet was on record, always")
