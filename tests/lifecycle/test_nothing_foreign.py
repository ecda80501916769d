"""Hold every DELETE over random accounts against the ledger of who made what: nothing foreign is ever destroyed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chisel import guard
from chisel.errors import NotFoundError
from chisel.events import NullSink
from chisel.lifecycle import Lifecycle
from chisel.model import Droplet, DropletId
from chisel.ssh.keys import generate_keypair
from chisel.state import CloudState, DropletRecord, State, StateStore

URL = "https://api.example"
ME, OTHER = "a" * 16, "b" * 16
KEY = generate_keypair("x").public_openssh
NOW = datetime.now(UTC)


@dataclass
class Account:
    """An account in memory, as the adapter's protocol shows it; whatever is destroyed is judged by `may_go`."""

    droplets: dict[int, Droplet]
    may_go: Callable[[Droplet], bool]
    edits: dict[int, Callable[[Droplet], Droplet | None]] = field(default_factory=dict)
    destroyed: list[int] = field(default_factory=list)
    foreign: list[Droplet] = field(default_factory=list)
    deleted_tags: list[str] = field(default_factory=list)
    ahead: timedelta = timedelta(0)

    async def list_droplets(self, *, tag: str | None = None) -> list[Droplet]:
        return [one for one in self.droplets.values() if tag is None or tag in one.tags]

    async def get_droplet(self, id: DropletId) -> Droplet:
        edit = self.edits.pop(id, None)
        if edit is not None and id in self.droplets:  # somebody edits it between the listing and this
            edited = edit(self.droplets.pop(id))
            if edited is not None:
                self.droplets[id] = edited
        if id not in self.droplets:
            raise NotFoundError(f"no droplet {id}")
        return self.droplets[id]

    async def destroy_droplet(self, id: DropletId) -> None:
        droplet = self.droplets.pop(id)
        self.destroyed.append(id)
        if not self.may_go(droplet):
            self.foreign.append(droplet)

    async def delete_tag(self, tag: str) -> None:
        self.deleted_tags.append(tag)

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"nothing here may call `{name}`")


class NoConnector:
    def forget(self, host: object) -> None:
        return


@dataclass(frozen=True)
class Ledger:
    """What was truly made by whom: ids to the droplet as its maker made it."""

    mine: dict[int, Droplet]
    account: Account
    records: list[DropletRecord]
    named: tuple[str, ...]


def a_droplet(id: int, name: str, owner: str, attempt: str, random: Random, *, pool: str = "bench") -> Droplet:
    until = NOW + timedelta(hours=random.choice([-5, 5])) if random.random() < 0.5 else None
    tags = guard.make_tags(owner=owner, pool=pool, project="p", attempt=attempt, host_key=KEY, until=until)
    created_at = NOW - timedelta(minutes=random.choice([2, 20, 300, 5000]))
    return Droplet(DropletId(id), name, "active", created_at, "atl1", "s", "i", Decimal("1.99"), tags)


def lookalike(id: int, of: Droplet, random: Random) -> Droplet:
    """Make somebody else's droplet that resembles one of mine in all but one thing."""
    label = guard.read_label(of.tags)
    own = {"name": of.name, "owner": label.owner, "attempt": label.attempt}
    kind = random.choice(["owner", "attempt", "owner", "tag", "bare", "two owners", "none", "copied"])
    if kind in {"owner", "attempt"}:
        own[kind] = OTHER
    made = a_droplet(id, random=random, **own)
    if kind == "tag":
        made = replace(made, tags=tuple(tag for tag in made.tags if tag != guard.TAG))
    elif kind == "bare":
        made = replace(made, tags=(guard.TAG,))
    elif kind == "two owners":
        made = replace(made, tags=(*made.tags, guard.owner_tag(OTHER)))
    elif kind == "none":
        made = replace(made, tags=())
    return made


def edit_of(kind: str) -> Callable[[Droplet], Droplet | None]:
    """Return what another user does to a droplet between the listing and chisel's last look."""

    def edit(droplet: Droplet) -> Droplet | None:
        kept = tuple(tag for tag in droplet.tags if not tag.startswith(f"{guard.TAG}-owner"))
        other = guard.attempt_tag("c" * 16, KEY)
        changed: dict[str, Droplet | None] = {
            "handed over": replace(droplet, tags=(*kept, guard.owner_tag(OTHER))),
            "shared": replace(droplet, tags=(*droplet.tags, guard.owner_tag(OTHER))),
            "untagged": replace(droplet, tags=()),
            "renamed": replace(droplet, name="production"),
            "claimed": replace(droplet, tags=(*droplet.tags, other)),
            "gone": None,
        }
        return changed[kind]

    return edit


def says(droplet: Droplet) -> list[str]:
    """Return a droplet's tags but for its limits."""
    return sorted(tag for tag in droplet.tags if tag not in guard.limit_tags(droplet.tags))


def an_account(random: Random) -> Ledger:
    ids = iter(random.sample(range(1, 10**6), 40))
    mine = {}
    for number in range(1, random.randint(1, 5) + 1):
        droplet = a_droplet(next(ids), f"bench-{number}", ME, random.randbytes(8).hex(), random)
        mine[droplet.id] = droplet
    droplets = dict(mine)
    for of in random.choices(list(mine.values()), k=random.randint(0, 8)):
        other = lookalike(next(ids), of, random)
        droplets[other.id] = other
    records = []
    for droplet in mine.values():
        label = guard.read_label(droplet.tags)
        # A state may be stale or wrong: an id that is somebody else's by now, a name that moved.
        id = droplet.id if random.random() < 0.8 else DropletId(random.choice(list(droplets)))
        if random.random() < 0.8 and id not in {one.id for one in records}:
            records.append(a_record(droplet, id, label.attempt, is_ready=random.random() < 0.7))

    named = tuple(random.sample(["bench-1", "bench-2", "production"], random.randint(0, 3)))

    def may_go(droplet: Droplet) -> bool:
        """Judge by the ledger, not by chisel's reading of tags.

        What says that it is mine also goes by its name, and a copy that says all that mine did when the state has it.
        """
        made = mine.get(droplet.id)
        if made is not None:
            return droplet.name == made.name and droplet.tags == made.tags
        if any((one.name, says(one)) == (droplet.name, says(droplet)) for one in mine.values()):
            return droplet.name in named or droplet.id in {record.id for record in records}
        says_mine = [tag for tag in droplet.tags if tag.startswith("chisel-owner-")] == [guard.owner_tag(ME)]
        return says_mine and droplet.name in named

    account = Account(droplets, may_go)
    kinds = ["handed over", "shared", "untagged", "renamed", "claimed", "gone"]
    account.edits = {id: edit_of(random.choice(kinds)) for id in droplets if random.random() < 0.3}
    return Ledger(mine, account, records, named)


def a_record(droplet: Droplet, id: DropletId, attempt: str, *, is_ready: bool) -> DropletRecord:
    return DropletRecord(
        id=id, name=droplet.name, pool="bench", address=None, port=22, host_key=KEY, region="atl1", size="s",
        image="i", usd_per_hour=droplet.usd_per_hour, created_at=droplet.created_at, attempt=attempt,
        is_ready=is_ready,
    )  # fmt: skip


async def use(ledger: Ledger, random: Random, scratch: Path) -> tuple[int, int]:
    """Let chisel sweep and destroy on this account; return how many bills say why nothing was destroyed, and all."""
    store = StateStore(scratch / "state.json")
    pools = {"bench": {one.name: one for one in ledger.records}} if ledger.records else {}
    await store.update(lambda _: State(owner=ME, clouds={URL: CloudState(pools=pools)}))
    chisel = Lifecycle(
        ledger.account, store, NoConnector(), NullSink(), api_url=URL, public_key=KEY, settle_after_s=0  # type: ignore[arg-type]
    )  # fmt: skip
    choice = guard.Choice(named=ledger.named, older_than=timedelta(hours=1) if random.random() < 0.5 else None)
    known = {one.id: guard.Known(one.name, one.attempt, one.is_ready) for one in ledger.records}
    items = guard.sweep_items(
        await ledger.account.list_droplets(tag=guard.TAG), known, owner=ME, now=NOW, choice=choice
    )
    verbs = [
        lambda: chisel.destroy_swept([item for item in items if item.is_selected]),
        lambda: chisel.down(ledger.records),
    ]
    random.shuffle(verbs)
    bills = [bill for verb in verbs for bill in await verb()]
    return sum(bill.error is not None for bill in bills), len(bills)


@pytest.mark.timeout(120)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.randoms(use_true_random=False))
def test_no_droplet_that_chisel_did_not_make_is_ever_destroyed(random: Random) -> None:
    ledger = an_account(random)
    with tempfile.TemporaryDirectory() as scratch:
        anyio.run(use, ledger, random, Path(scratch))
    assert ledger.account.foreign == []
    left = {tag for one in ledger.account.droplets.values() for tag in one.tags}
    mine = {tag for one in ledger.mine.values() for tag in one.tags}
    assert set(ledger.account.deleted_tags) <= mine | {guard.attempt_tag(OTHER, KEY)}
    assert not left & set(ledger.account.deleted_tags)


def test_the_ledger_judges_what_is_destroyed_and_accounts_are_worth_judging() -> None:
    """The property above can fail: refusals and destructions both happen, and a foreign DELETE is noticed."""
    refused = destroyed = 0
    for seed in range(300):
        random = Random(seed)
        ledger = an_account(random)
        with tempfile.TemporaryDirectory() as scratch:
            errors, _ = anyio.run(use, ledger, random, Path(scratch))
        assert ledger.account.foreign == []
        refused, destroyed = refused + errors, destroyed + len(ledger.account.destroyed)
    assert refused > 10
    assert destroyed > 10
    ledger = an_account(Random(1))
    stranger = lookalike(7_000_000, next(iter(ledger.mine.values())), Random(1))
    ledger.account.droplets[stranger.id] = stranger
    anyio.run(ledger.account.destroy_droplet, stranger.id)
    assert ledger.account.foreign == [stranger]
