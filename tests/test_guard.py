from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel import guard
from chisel.errors import UsageError
from chisel.model import Droplet, DropletId

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
    tags = guard.make_tags(owner=owner, pool="bench", project="kernels", attempt=attempt, until=until)
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
    tags = guard.make_tags(owner="ab", pool="p", project="my project.v2=é", attempt="x", until=NOW)
    assert all(set(tag) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_") for tag in tags)
    assert guard.read_label(tags, NOW).until == NOW


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


def test_sweep_selects_only_what_is_ours_and_past_or_half_made_or_named() -> None:
    fine = droplet(id=1)
    late = droplet(id=2, until=NOW - timedelta(seconds=1))
    half = droplet(id=3)
    stranger = droplet(id=4, owner="other", until=NOW - timedelta(days=1))
    unknown = droplet(id=5)
    named = droplet(id=6, name="bench-6")
    known = {DropletId(1): True, DropletId(2): True, DropletId(3): False}
    items = guard.sweep_items(
        [fine, late, half, stranger, unknown, named], known, owner="me", now=NOW, named=["bench-6", "other"]
    )
    assert {item.droplet_id for item in items if item.is_selected} == {2, 3, 6}
    assert len(items) == 6


def test_a_stranger_is_not_selected_even_by_name() -> None:
    (item,) = guard.sweep_items([droplet(owner="other")], {}, owner="me", now=NOW, named=["bench-1"])
    assert not item.is_selected
