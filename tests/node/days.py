"""Simulate days of a droplet's life on a faked clock, and hold the watchdog's rule against what truly happened."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from chisel.node import idlerule

DAY_S = 86400.0


@dataclass
class Life:
    """One droplet: when it is used, when its timer does not tick, when the API is down, when it reboots.

    Times are seconds since its creation by a clock that nobody sets; the wall clock, which jumps, is nowhere used.
    """

    limits: idlerule.Limits
    tick_s: float
    requests: list[float]
    busy: list[tuple[float, float]]
    outages: list[tuple[float, float]]
    silences: list[tuple[float, float]]
    reboots: list[float] = field(default_factory=list)
    first_boot_until: float = 0.0


def a_life(random: Random) -> Life:
    """Make a random day, or several: bursts of work, long commands, outages, killed watchdogs, reboots."""
    idle_s = random.choice([20.0, 300.0, 900.0, 3600.0])
    tick_s = max(1.0, min(60.0, idle_s / 4))
    ttl_s = random.choice([0.0, 0.0, 3600.0, 8 * 3600.0])
    ends_busy = random.random() < 0.3
    busy, requests, at = [], [], 0.0
    for _ in range(random.randint(0, 30)):
        at += random.expovariate(1 / random.choice([5.0, idle_s / 3, idle_s * 0.9]))
        if random.random() < 0.5:
            length = random.expovariate(1 / random.choice([2.0, 60.0, 5000.0]))
            busy.append((at, at + length))
            at += length
        requests.append(at)
    spans = [
        [
            (start, start + random.expovariate(1 / 3000.0))
            for start in sorted(random.uniform(0, 20000) for _ in range(n))
        ]
        for n in (random.choice([0, 0, 1, 3]), random.choice([0, 0, 1, 3]))
    ]
    reboots = sorted(random.uniform(0, 20000) for _ in range(random.choice([0, 0, 1, 2])))
    return Life(
        limits=idlerule.Limits(idle_s=idle_s, ttl_s=ttl_s, ends_busy=ends_busy),
        tick_s=tick_s,
        requests=requests,
        busy=busy,
        outages=spans[0],
        silences=spans[1],
        reboots=reboots,
        first_boot_until=random.choice([0.0, 0.0, 200.0, 900.0]),
    )


def within(spans: list[tuple[float, float]], at: float) -> bool:
    return any(start <= at < end for start, end in spans)


def live(life: Life) -> float:
    """Let the timer tick until the DELETE arrives; return when that was."""
    memory, at = idlerule.Memory(attempt="a"), 0.0
    while at < 60 * DAY_S:
        at += life.tick_s
        if within(life.silences, at):
            continue  # the watchdog was killed, or systemd could not start it
        boot = max([0.0, *(reboot for reboot in life.reboots if reboot <= at)])
        seen = sum(request <= at for request in life.requests)
        sight = idlerule.Sight(
            boot_id=str(boot),
            on_s=at - boot,
            marks={"activity": str(seen)},
            busy=("a command runs",) if within(life.busy, at) else (),
            is_first_boot=at < life.first_boot_until,
        )
        memory, verdict = idlerule.judge(memory, sight, life.limits)
        if verdict.is_over and not within(life.outages, at):
            return at
    raise AssertionError("it is never destroyed")


def check(life: Life) -> float:
    """Live a life; the droplet must go while nothing runs, not before its limit, and soon after it."""
    ended = live(life)
    limits, slack = life.limits, 2 * life.tick_s
    used = [0.0, *(one for one in life.requests if one <= ended), *(end for _, end in life.busy if end <= ended)]
    is_past_ttl = bool(limits.ttl_s) and ended >= limits.ttl_s - life.tick_s
    if not (is_past_ttl and limits.ends_busy):
        assert not within(life.busy, ended), f"destroyed at {ended} while a command ran"
    if not is_past_ttl:
        assert ended - max(used) >= limits.idle_s - 1e-6, f"destroyed at {ended}, used at {max(used)}"
    # It was due at the first moment from which on nothing happened for a limit's time, or at its age.
    assert ended <= due_at(life) + slack + lost_s(life, due_at(life), ended), f"{ended}, due at {due_at(life)}"
    return ended


def due_at(life: Life) -> float:
    """Return the first moment at which a limit is reached."""
    boot_end = min(life.first_boot_until, idlerule.FIRST_BOOT_S)
    ends = sorted([(0.0, boot_end), *((one, one) for one in life.requests), *life.busy])
    last, due = 0.0, None
    for start, end in ends:
        if start - last >= life.limits.idle_s + 2 * life.tick_s:
            due = last + life.limits.idle_s
            break
        last = max(last, end)
    due = due if due is not None else last + life.limits.idle_s
    if not life.limits.ttl_s or due <= life.limits.ttl_s:
        return due
    if life.limits.ends_busy:
        return life.limits.ttl_s
    running = [end for start, end in life.busy if start <= life.limits.ttl_s < end]
    return min(due, max([life.limits.ttl_s, *running]))


def lost_s(life: Life, due: float, ended: float) -> float:
    """Return how much of the time until the end nobody could act: no watchdog, no API, a reboot's unseen seconds.

    Ticks that did not happen are only missed looks, but what was used in one counts from the next look on; and a
    command may have begun meanwhile.
    """
    spans = [*life.silences, *life.outages]
    lost = sum(max(0.0, min(end, ended) - max(0.0, start)) + life.tick_s for start, end in spans if start < ended)
    lost += sum(2 * life.tick_s for reboot in life.reboots if reboot < ended)
    later = sum(
        end - start + life.limits.idle_s + life.tick_s for start, end in life.busy if due <= end and start <= ended
    )
    again = [one for one in life.requests if due - life.tick_s <= one <= ended]
    extra = later + len(again) * (life.limits.idle_s + life.tick_s)
    return lost + (extra if lost or life.limits.ttl_s else 0.0)
