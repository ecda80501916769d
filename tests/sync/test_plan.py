"""The plan, applied to what a droplet has by the droplet's own code, gives the local tree: for any two trees."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from chisel.node.manifest import Rows, row_of
from chisel.node.stage import Orders
from chisel.node.switch import applied
from chisel.node.tree import DIRECTORY, FILE, LINK, Item, tree_hash
from chisel.sync.moves import find_moves
from chisel.sync.plan import Here, Plan, Present, make_plan

NAMES = st.sampled_from(["a", "b", "c", "d"])
LEAVES = st.one_of(
    st.tuples(st.just(FILE), st.sampled_from([0o644, 0o755]), st.sampled_from("01234")),
    st.tuples(st.just(LINK), st.just(0), st.sampled_from(["t", "u"])),
)
TREES: Any = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4), lambda inner: st.dictionaries(NAMES, LEAVES | inner, max_size=4)
).map(lambda tree: flat(tree, ""))


def flat(tree: dict[str, Any], above: str) -> dict[str, Item]:
    """Return a nested tree as items by path, every directory among them."""
    found: dict[str, Item] = {}
    for name, node in tree.items():
        path = f"{above}{name}"
        if isinstance(node, dict):
            found[path] = Item(path, DIRECTORY, 0o755)
            found.update(flat(node, f"{path}/"))
        elif node[0] == FILE:
            found[path] = Item(path, FILE, node[1], node[2] * 64, 3, 7)
        else:
            found[path] = Item(path, LINK, 0, node[2])
    return found


def orders_of(plan: Plan) -> Orders:
    """Return what a droplet decodes from the stream of a plan."""
    files = [*plan.puts, *plan.twins, *plan.staged, *(item for item, _ in plan.copies)]
    return Orders(
        moves=list(plan.moves),
        deletes=list(plan.deletes),
        releases=list(plan.releases),
        extras=list(plan.extras),
        directories={item.path: item for item in plan.directories},
        links={item.path: item for item in plan.links},
        modes={item.path: item.mode for item in plan.modes},
        puts={item.path: item for item in files},
    )


def rows(tree: dict[str, Item]) -> Rows:
    return {path: row_of(item, (1, 2, 3, 4, 5)) for path, item in tree.items()}


def hash_of(found: Rows) -> str:
    return tree_hash(row.item(path) for path, row in found.items())


@given(TREES, TREES)
def test_the_plan_gives_the_local_tree(local: dict[str, Item], there: dict[str, Item]) -> None:
    plan = make_plan(Here(local), Present(there))
    assert hash_of(applied(rows(there), orders_of(plan))) == tree_hash(local.values())
    assert dict(plan.final) == local
    assert set(applied(rows(there), orders_of(plan))) == set(local)


@given(TREES, TREES)
def test_what_is_not_touched_keeps_its_look(local: dict[str, Item], there: dict[str, Item]) -> None:
    after = applied(rows(there), orders_of(make_plan(Here(local), Present(there))))
    for path, item in local.items():
        if path in there and item.is_like(there[path]):
            assert after[path].look is not None


@given(TREES)
def test_equal_trees_need_nothing(local: dict[str, Item]) -> None:
    assert make_plan(Here(local), Present(local)).is_empty


@given(TREES, TREES)
def test_a_content_that_is_there_is_never_sent(local: dict[str, Item], there: dict[str, Item]) -> None:
    held = {item.digest for item in there.values() if item.kind == FILE}
    plan = make_plan(Here(local), Present(there, staged={"4" * 64}))
    sent = [item.digest for item in plan.puts]
    assert not (held | {"4" * 64}) & set(sent)
    assert len(sent) == len(set(sent)), "the same content twice"


@given(TREES, TREES)
def test_sources_are_what_the_droplet_has_before_anything_moves(local: dict[str, Item], there: dict[str, Item]) -> None:
    plan = make_plan(Here(local), Present(there, patchable={digit * 64 for digit in "01234"}))
    for item, source in plan.copies:
        assert there[source].digest == item.digest
    for source, old in plan.patches.values():
        assert there[source].digest == old.digest


@given(TREES, TREES)
def test_moves_never_overlap_and_never_overwrite(local: dict[str, Item], there: dict[str, Item]) -> None:
    moves = find_moves(local, there)
    for old, new in moves:
        assert old in there
        assert old not in local
        assert new in local
        assert new not in there
    for ends in zip(*moves, strict=True):
        assert len(set(ends)) == len(ends)
        assert not [one for one in ends for other in ends if one.startswith(f"{other}/")]


@given(TREES, TREES, st.sets(NAMES, max_size=2))
@example({"a": Item("a", DIRECTORY, 0o755)}, flat({"a": {"b": (FILE, 0o644, "1")}, "b": (FILE, 0o644, "1")}, ""), {"a"})
def test_below_what_cannot_be_read_nothing_is_deleted(
    local: dict[str, Item], there: dict[str, Item], unread: set[str]
) -> None:
    local = {path: item for path, item in local.items() if not any(path.startswith(f"{one}/") for one in unread)}
    for one in unread:
        local[one] = Item(one, DIRECTORY, 0o755)
    plan = make_plan(Here(local, unread=unread), Present(there))
    after = applied(rows(there), orders_of(plan))
    assert {path for path in there if any(path.startswith(f"{one}/") for one in unread)} <= set(after)
    assert hash_of(after) == tree_hash(plan.final.values())


@given(TREES, TREES, st.data())
def test_drift_that_is_to_stay_is_neither_touched_nor_used(
    local: dict[str, Item], there: dict[str, Item], data: st.DataObject
) -> None:
    files = sorted(path for path, item in there.items() if item.kind == FILE)
    keeps = set(data.draw(st.lists(st.sampled_from(files), max_size=2))) if files else set()
    local = {path: item for path, item in local.items() if not any(path.startswith(f"{one}/") for one in keeps)}
    for path in keeps:
        above = path
        while above := above.rpartition("/")[0]:
            if above in local and local[above].kind != DIRECTORY:
                return
    plan = make_plan(Here(local), Present(there, keeps=keeps))
    after = applied(rows(there), orders_of(plan))
    for path in keeps:
        assert after[path] == rows(there)[path]
        assert path not in {source for _, source in plan.copies}
    assert hash_of(after) == tree_hash(plan.final.values())


@given(TREES, TREES)
def test_what_was_pulled_leaves_the_manifest_and_stays(local: dict[str, Item], there: dict[str, Item]) -> None:
    released = {path for path, item in there.items() if item.kind == FILE and path not in local}
    released = {path for path in released if all(one in local for one in _above(path))}
    plan = make_plan(Here(local, released=released), Present(there))
    after = applied(rows(there), orders_of(plan))
    assert not released & set(after)
    assert not released & set(plan.deletes)
    assert not [path for path in released for gone in plan.deletes if path.startswith(f"{gone}/")]
    assert hash_of(after) == tree_hash(local.values())


def _above(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def test_a_renamed_directory_is_one_move_whatever_it_holds() -> None:
    there = flat({"old": {name: (FILE, 0o644, digit) for name, digit in zip("abcd", "0123", strict=True)}}, "")
    local = flat({"new": {name: (FILE, 0o644, digit) for name, digit in zip("abcd", "0124", strict=True)}}, "")
    plan = make_plan(Here(local), Present(there, patchable={"3" * 64}))
    assert plan.moves == (("old", "new"),)
    assert [item.path for item in plan.puts] == ["new/d"]
    assert plan.patches["new/d"][0] == "old/d", "a source is named as it is before the move"
    assert not plan.deletes
    assert plan.reasons == {"new": "moved from old", "new/d": "changed"}


@given(TREES, st.randoms())
def test_the_hash_knows_content_and_no_order(local: dict[str, Item], chance: object) -> None:
    items = list(local.values())
    shuffled = sorted(items, key=lambda _: chance.random())  # type: ignore[attr-defined]
    assert tree_hash(items) == tree_hash(shuffled)
    assert tree_hash([item._replace(mtime_ns=99) for item in items]) == tree_hash(items)
    for item in items:
        assert tree_hash([one for one in items if one != item]) != tree_hash(items)
