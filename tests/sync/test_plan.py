"""The plan, applied to what a droplet has, gives the local tree: for any two trees."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chisel.node.tree import DIRECTORY, FILE, LINK, Item, tree_hash
from chisel.sync.plan import Plan, make_plan

NAMES = st.sampled_from(["a", "b", "c", "a/x", "a/y", "b/x/z"])
ITEMS = st.one_of(
    st.builds(
        lambda mode, digest: Item("", FILE, mode, digest * 64, 3, 7),
        st.sampled_from([0o644, 0o755]),
        st.sampled_from("012"),
    ),
    st.builds(lambda target: Item("", LINK, 0, target), st.sampled_from(["t", "u"])),
    st.just(Item("", DIRECTORY)),
)
TREES = st.dictionaries(NAMES, ITEMS).map(lambda tree: {path: item._replace(path=path) for path, item in tree.items()})


def applied(plan: Plan, present: dict[str, Item]) -> dict[str, Item]:
    """Do what the receiver does, on values."""
    held = {item.digest for item in present.values() if item.kind == FILE}
    assert all(present[path].digest == digest for digest, path in plan.copies.items())
    found = {path: item for path, item in present.items() if path not in plan.deletes}
    for item in plan.puts:
        assert item.digest in plan.contents or (item.digest in plan.copies and item.digest in held)
    for item in (*plan.puts, *plan.links, *plan.directories, *plan.modes):
        found[item.path] = item
    return found


@given(TREES, TREES)
def test_the_plan_gives_the_local_tree(local: dict[str, Item], present: dict[str, Item]) -> None:
    assert applied(make_plan(local, present), present) == {
        path: item if not item.is_like(present.get(path, Item("", "?"))) else present[path]
        for path, item in local.items()
    }


@given(TREES)
def test_equal_trees_need_nothing(local: dict[str, Item]) -> None:
    plan = make_plan(local, local)
    assert (plan.puts, plan.links, plan.directories, plan.modes, plan.deletes, plan.content_bytes) == (
        (),
        (),
        (),
        (),
        (),
        0,
    )


@given(TREES, TREES)
def test_a_content_that_is_there_is_never_sent(local: dict[str, Item], present: dict[str, Item]) -> None:
    held = {item.digest for item in present.values() if item.kind == FILE}
    assert not held & set(make_plan(local, present).contents)


@given(TREES, st.randoms())
def test_the_hash_knows_content_and_no_order(local: dict[str, Item], chance: object) -> None:
    items = list(local.values())
    shuffled = sorted(items, key=lambda _: chance.random())  # type: ignore[attr-defined]
    assert tree_hash(items) == tree_hash(shuffled)
    assert tree_hash([item._replace(mtime_ns=99) for item in items]) == tree_hash(items)
    for item in items:
        assert tree_hash([one for one in items if one != item]) != tree_hash(items)
