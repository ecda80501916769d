from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel import guard
from chisel.errors import UsageError
from chisel.model import Droplet, DropletId

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMDpv2YyF9h3v4oGJr3y1yCpTqlFnD7tQzXoXbXnZV5E host"
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def droplet(
    *,
    id: int = 7,
    name: str = "bench-1",
    owner: str = "me",
    attempt: str = "a1",
    age_s: float = 3600,
    until: datetime | None = None,
) -> Droplet:
    tags = guard.make_tags(
        owner=owner, pool="bench", project="kernels", attempt=attempt, host_key=HOST_KEY, until=until, idle_s=900
    )
    return Droplet(
        id=DropletId(id),
        name=name,
        status="active",
        created_at=NOW - timedelta(seconds=age_s),
        region="atl1",
        size="gpu-mi300x1-192gb",
        image="gpu-amd-base",
        usd_per_hour=Decimal("1.99"),
        tags=tags,
    )


def refusal(one: Droplet, **changed: object) -> str | None:
    expected = {"id": DropletId(7), "name": "bench-1", "owner": "me", "attempt": "a1", **changed}
    return guard.refusal_to_destroy(one, **expected)  # type: ignore[arg-type]


def test_a_droplet_that_agrees_in_everything_may_be_destroyed() -> None:
    assert refusal(droplet()) is None


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (droplet(id=8), "answered with droplet 8"),
        (droplet(owner="other"), "owner tag says `other`"),
        (droplet(attempt="a2"), "attempt tag"),
        (droplet(name="bench-2"), "its name is `bench-2`"),
    ],
)
def test_a_droplet_that_differs_in_one_thing_is_refused(one: Droplet, word: str) -> None:
    assert word in str(refusal(one))


def test_a_droplet_without_our_tag_is_refused() -> None:
    bare = droplet()
    stripped = Droplet(**{name: getattr(bare, name) for name in bare.__slots__} | {"tags": bare.tags[1:]})
    assert "tag `chisel`" in str(refusal(stripped))


@given(st.text(max_size=30), st.text(max_size=30), st.lists(st.text(max_size=20), max_size=5))
def test_look_alike_tags_never_pass_for_ours(owner: str, attempt: str, extra: list[str]) -> None:
    tags = tuple(tag for tag in (f"chisel-owner-{owner}", f"chisel-attempt-{attempt}x", *extra) if tag != "chisel")
    bare = droplet()
    other = Droplet(**{name: getattr(bare, name) for name in bare.__slots__} | {"tags": tags})
    assert refusal(other) is not None


def test_tags_use_only_what_the_api_allows() -> None:
    tags = guard.make_tags(
        owner="ab", pool="p", project="my project.v2=é", attempt="ab12", host_key=HOST_KEY, until=NOW, idle_s=900
    )
    assert all(set(tag) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_") for tag in tags)
    assert max(map(len, tags)) <= 255
    label = guard.read_label(tags)
    assert (label.until, label.idle_s, label.attempt) == (NOW, 900, "ab12")
    assert label.host_keys == (HOST_KEY.rpartition(" ")[0],)


def test_of_several_limits_the_latest_holds_and_nonsense_is_none() -> None:
    tags = [
        guard.until_tag(NOW),
        guard.until_tag(NOW + timedelta(hours=2)),
        "chisel-until-9" + "9" * 40,
        "chisel-until-x",
    ]
    assert guard.read_label(tags).until == NOW + timedelta(hours=2)
    assert guard.limit_tags([*tags, "chisel"]) == tuple(sorted(tags))


def test_two_attempts_tags_prove_nothing() -> None:
    tags = [guard.attempt_tag("aa", HOST_KEY), guard.attempt_tag("ab", HOST_KEY)]
    assert guard.read_label(tags).attempt == ""
    assert guard.attempt_tags(tags, "aa") == (tags[0],)


@pytest.mark.parametrize("key", ["ssh-rsa AAAA", "ssh-ed25519 AAAA", "ssh-ed25519 !"])
def test_a_host_key_of_another_kind_has_no_tag(key: str) -> None:
    with pytest.raises(ValueError, match=r"ed25519|base64|padding"):
        guard.attempt_tag("aa", key)


@pytest.mark.parametrize(
    ("seconds", "usd"), [(0, "0.0332"), (60, "0.0332"), (3600, "1.9900"), (5400, "2.9850"), (86400, "47.7600")]
)
def test_cost_is_per_second_with_a_minimum(seconds: float, usd: str) -> None:
    assert guard.cost(Decimal("1.99"), seconds) == Decimal(usd)


def test_cost_is_at_least_a_cent() -> None:
    assert guard.cost(Decimal("0.007"), 60) == Decimal("0.0100")


def test_free_names_fill_the_gaps() -> None:
    assert guard.free_names("bench", ["bench-1", "BENCH-3"], 3) == ["bench-2", "bench-4", "bench-5"]


@pytest.mark.parametrize("name", ["", "Bench", "a_b", "-a", "a-", "a.b", "x" * 49, "a b", "../x"])
def test_a_name_that_is_no_hostname_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        guard.check_pool_name(name)


FLEET = {
    "fine": droplet(id=1),
    "late": droplet(id=2, name="bench-2", until=NOW - timedelta(seconds=1)),
    "half made": droplet(id=3, name="bench-3"),
    "old": droplet(id=4, age_s=9 * 3600, name="bench-4"),
    "twin": droplet(id=9, name="twin"),
    "its twin": droplet(id=10, name="twin"),
    "another's, known": droplet(id=12, owner="other", name="n", until=NOW - timedelta(days=1), age_s=9 * 3600),
    "another by that id": droplet(id=13, name="n"),
    "mine, unknown, late": droplet(id=11, name="later", until=NOW - timedelta(days=1)),
    "another's": droplet(id=5, owner="other", name="theirs"),
    "another's late": droplet(id=6, owner="other", until=NOW - timedelta(days=1)),
    "mine, unknown": droplet(id=7, name="lost"),
    "look-alike": replace(droplet(id=8), tags=("chisel", "chisel-owner-me", "chisel-attempt-zz")),
}
KNOWN = {
    one.id: guard.Known(one.name, guard.read_label(one.tags).attempt, is_ready=one.id not in {3, 12})
    for one in FLEET.values()
    if one.id in {1, 2, 3, 4, 12}
} | {DropletId(13): guard.Known("n", "another attempt", is_ready=False)}


@pytest.mark.parametrize(
    ("choice", "selected"),
    [
        (guard.Choice(), {2, 3}),
        (guard.Choice(named=("bench-1",)), {1, 2, 3}),
        (guard.Choice(named=("twin",)), {2, 3}),
        (guard.Choice(named=("twin", "9")), {2, 3, 9}),
        (guard.Choice(named=("lost",)), {2, 3, 7}),
        (guard.Choice(named=("theirs",)), {2, 3}),
        (guard.Choice(named=("5", "8")), {2, 3, 5}),
        (guard.Choice(expired=True), {2, 3, 6, 11, 12}),
        (guard.Choice(older_than=timedelta(hours=8)), {2, 3, 4}),
        (guard.Choice(unknown=True), {2, 3, 5, 6, 7, 9, 10, 11, 12, 13}),
    ],
)
def test_sweep_selects_no_more_than_it_was_told_to(choice: guard.Choice, selected: set[int]) -> None:
    items = guard.sweep_items(FLEET.values(), KNOWN, owner="me", now=NOW, choice=choice)
    assert {item.droplet_id for item in items if item.is_selected} == selected
    assert len(items) == len(FLEET)


def test_a_machine_without_a_state_selects_nothing_but_what_it_is_told() -> None:
    items = guard.sweep_items(FLEET.values(), {}, owner="nobody", now=NOW)
    assert not any(item.is_selected for item in items)
    items = guard.sweep_items(FLEET.values(), {}, owner="nobody", now=NOW, choice=guard.Choice(expired=True))
    assert {item.droplet_id for item in items if item.is_selected} == {2, 6, 11, 12}


def test_what_changed_since_the_sweep_is_not_destroyed() -> None:
    (item,) = guard.sweep_items([droplet()], {}, owner="me", now=NOW, choice=guard.Choice(named=("7",)))
    assert guard.refusal_to_sweep(droplet(), item) is None
    for changed in (droplet(owner="other"), droplet(attempt="a2"), droplet(name="x"), droplet(id=8)):
        assert guard.refusal_to_sweep(changed, item)


def test_of_several_keeps_the_latest_holds_and_it_is_no_limit() -> None:
    early, late = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)
    tags = (guard.TAG, guard.kept_tag(late), guard.kept_tag(early), "chisel-kept-soon")
    label = guard.read_label(tags)
    assert (label.kept_until, label.until) == (late, None)
    assert guard.limit_tags(tags) == ()
