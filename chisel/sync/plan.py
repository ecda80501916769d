"""Decide what has to change on a droplet, and say why. Pure."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from chisel.node.tree import DIRECTORY, FILE, LINK, Item, at_and_below, relocated
from chisel.sync.moves import find_moves


@dataclass(frozen=True, slots=True)
class Here:
    """The local side: what is to be there.

    Below the paths of `unread` this machine could not look: what the droplet has there stays. `released` are files that
    a pull wrote: they belong to the droplet.
    """

    items: Mapping[str, Item]
    unread: Collection[str] = ()
    released: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Present:
    """What a droplet has of what was pushed.

    `drift` was changed there by somebody else (gone, where it is not in `items`), `keeps` is drift that is to stay,
    `staged` are digests of contents that an interrupted sync brought, `patchable` those whose blocks are known here,
    `extras` paths that were never pushed and are to go.
    """

    items: Mapping[str, Item]
    drift: Collection[str] = ()
    keeps: Collection[str] = ()
    staged: Container[str] = ()
    patchable: Container[str] = ()
    extras: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes a working copy equal to a local tree; sources are paths before the moves.

    `puts` are sent (`patches` names the source of those that go as changed blocks), `copies` taken from another path
    there, `staged` from what came before, `twins` have the content of a put that comes earlier. `before` is what the
    droplet has once everything is moved, `final` the tree as it becomes, `moved_files` counts all that is moved but
    directories. `repaired` is what somebody changed there and is put right, `reasons` say for each path what is done.
    """

    moves: tuple[tuple[str, str], ...] = ()
    deletes: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    directories: tuple[Item, ...] = ()
    links: tuple[Item, ...] = ()
    modes: tuple[Item, ...] = ()
    copies: tuple[tuple[Item, str], ...] = ()
    staged: tuple[Item, ...] = ()
    puts: tuple[Item, ...] = ()
    twins: tuple[Item, ...] = ()
    patches: Mapping[str, tuple[str, Item]] = field(default_factory=dict)
    before: Mapping[str, Item] = field(default_factory=dict)
    final: Mapping[str, Item] = field(default_factory=dict)
    moved_files: int = 0
    repaired: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Say whether there is nothing to do."""
        orders = (self.moves, self.deletes, self.releases, self.extras, self.directories, self.links, self.modes)
        return not any(orders) and not (self.copies or self.staged or self.puts or self.twins)

    @property
    def content_bytes(self) -> int:
        """Return how many bytes of content have to be sent at most, before compression; patches count nothing."""
        return sum(item.size for item in self.puts if item.path not in self.patches)

    @property
    def read_bytes(self) -> int:
        """Return how many bytes of content are read to be sent, which is what progress counts."""
        return sum(item.size for item in self.puts)


def make_plan(here: Here, present: Present) -> Plan:
    """Compare a local tree with what a droplet has of it.

    A file whose content is equal keeps the droplet's time, so that nothing is rebuilt for it. Deleted is only what was
    pushed: results of the droplet's own never are, unless they are named in `extras`.
    """
    wanted, there = here.items, present.items
    if present.keeps:
        wanted = {path: item for path, item in wanted.items() if path not in present.keeps}
    if here.released:
        there = {path: item for path, item in there.items() if path not in here.released}
    protected = _protected(wanted, there, here.unread, present.keeps)
    moves = find_moves(wanted, there, protected)
    origins = dict[str, str]()
    moved = _moved(there, moves, origins)
    final = {**protected, **wanted}
    gone = moved.keys() - final.keys()
    changed = sorted(
        item
        for path, item in wanted.items()
        # The very same object is the rule by far, and takes a fifth of the time.
        if ((old := moved.get(path)) is not item or not item[3]) and not _is_there(item, old)
    )
    modes = [item for item in changed if _has_content(item, moved.get(item.path))]
    files = [item for item in changed if item.kind == FILE and not _has_content(item, moved.get(item.path))]
    held = _held({item.digest for item in files}, there, present.keeps) if files else {}
    sorted_files = _sorted_by_way(files, held, present.staged)
    patches = {
        item.path: (origins.get(item.path, item.path), old)
        for item in sorted_files["puts"]
        if (old := moved.get(item.path)) is not None and old.kind == FILE and old.digest in present.patchable
    }
    plan = Plan(
        moves=tuple(moves),
        deletes=_topmost(gone),
        releases=tuple(sorted(path for path in present.items if path in here.released)),
        extras=tuple(path for path in present.extras if path not in final),
        directories=tuple(item for item in changed if item.kind == DIRECTORY),
        links=tuple(item for item in changed if item.kind == LINK),
        modes=tuple(modes),
        copies=tuple((item, held[item.digest]) for item in sorted_files["copies"]),
        staged=tuple(sorted_files["staged"]),
        puts=tuple(sorted_files["puts"]),
        twins=tuple(sorted_files["twins"]),
        patches=patches,
        before=moved,
        final=final,
        moved_files=sum(moved[path].kind != DIRECTORY for path in origins),
        repaired=tuple(sorted(path for path in present.drift if path in wanted and path not in present.keeps)),
    )
    return replace(plan, reasons=_reasons(plan, moved))


def _protected(
    wanted: Mapping[str, Item], there: Mapping[str, Item], unread: Collection[str], keeps: Collection[str]
) -> dict[str, Item]:
    """Return what stays as it is without being wanted, with the directories that it lies in."""
    if not unread and not keeps:
        return {}
    found = {path: item for path, item in there.items() if path in keeps or _is_unread(path, wanted, unread)}
    for path in list(found):
        while path := path.rpartition("/")[0]:
            if path in there and path not in wanted:
                found[path] = there[path]
    return found


def _held(needed: Collection[str], there: Mapping[str, Item], keeps: Collection[str]) -> dict[str, str]:
    """Return where contents that are needed are on the droplet, by digest."""
    return {
        item[3]: path
        for path, item in there.items()
        if item[3] in needed and item[3] and item[1] == FILE and path not in keeps
    }


def _is_unread(path: str, wanted: Mapping[str, Item], unread: Collection[str]) -> bool:
    return bool(unread) and path not in wanted and any(path == one or path.startswith(f"{one}/") for one in unread)


def _is_there(item: Item, there: Item | None) -> bool:
    if there is None or item[3] != there[3] or item[2] != there[2] or item[1] != there[1]:
        return False
    return bool(item[3]) or item[1] != FILE


def _has_content(item: Item, there: Item | None) -> bool:
    return item.kind == FILE and there is not None and there.kind == FILE and item.digest == there.digest != ""


def _moved(there: Mapping[str, Item], moves: Sequence[tuple[str, str]], origins: dict[str, str]) -> dict[str, Item]:
    """Return a manifest after moves, and note where each moved path was."""
    found = dict(there)
    paths = sorted(there) if any(there[old].kind == DIRECTORY for old, _ in moves) else []
    for old, new in moves:
        for path in at_and_below(paths, old) if there[old].kind == DIRECTORY else (old,):
            other = relocated(path, old, new)
            if other is not None and path in found:
                found[other] = found.pop(path)._replace(path=other)
                origins[other] = path
    return found


def _sorted_by_way(files: Sequence[Item], held: Mapping[str, str], staged: Container[str]) -> dict[str, list[Item]]:
    """Sort files by how their content gets there: from what came before, by a copy there, or sent, once each."""
    found: dict[str, list[Item]] = {"staged": [], "copies": [], "puts": [], "twins": []}
    sent: set[str] = set()
    for item in files:
        if item.digest and item.digest in staged:
            found["staged"].append(item)
        elif item.digest in held:
            found["copies"].append(item)
        elif item.digest and item.digest in sent:
            found["twins"].append(item)
        else:
            found["puts"].append(item)
            sent.add(item.digest)
    return found


def _topmost(paths: Collection[str]) -> tuple[str, ...]:
    """Return those paths that lie below no other of them."""
    found: list[str] = []
    for path in sorted(paths, key=lambda path: path.split("/")):
        if not found or not path.startswith(f"{found[-1]}/"):
            found.append(path)
    return tuple(sorted(found))


def _reasons(plan: Plan, before: Mapping[str, Item]) -> dict[str, str]:
    """Say for each path that is touched what is done to it, or why."""
    found = {new: f"moved from {old}" for old, new in plan.moves}
    found |= dict.fromkeys(plan.deletes, "deleted: it is gone here")
    found |= dict.fromkeys(plan.releases, "left to the droplet: it was pulled from there")
    found |= dict.fromkeys(plan.extras, "deleted: it was never pushed")
    found |= {item.path: f"mode {item.mode:03o}" for item in plan.modes}
    found |= {item.path: f"copied from {source}, which has its content there" for item, source in plan.copies}
    for item in (*plan.directories, *plan.links, *plan.puts, *plan.twins, *plan.staged):
        found.setdefault(item.path, _why(item, before.get(item.path)))
    for path in plan.repaired:
        found[path] = f"repaired: it was {'changed' if path in before else 'deleted'} on the droplet"
    return found


def _why(item: Item, before: Item | None) -> str:
    if before is None:
        return "new"
    return "changed" if item.kind == before.kind else "another kind"
