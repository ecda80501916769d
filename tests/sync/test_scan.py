"""The scan sees what git would, reads only what changed, and never trusts a fresh timestamp."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from chisel.errors import UsageError
from chisel.node import tree
from chisel.node.tree import FILE, LINK, Item, TreeHash, tree_hash
from chisel.sync import blocks
from chisel.sync.ignore import Rules, Surroundings
from chisel.sync.index import Index
from chisel.sync.scan import scan
from tests.sync.test_push import write

GIT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}


def git(place: Path, *arguments: str) -> str:
    command = ["git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=GIT).stdout


def files_of(root: Path, index: Path) -> set[str]:
    return {path for path, item in scan(root, index).items.items() if item.kind != "d"}


RULES = {
    ".gitignore": "*.o\n/build/\nlogs/*\n!logs/keep\ndoc/**/draft\n# comment\n\\#odd\ntrailing \n[ab]x\n",
    "sub/.gitignore": "!special.o\n*.tmp\n/only-here\n",
}
PATHS = [
    *("a.c", "a.o", "build/x", "sub/build/x", "logs/x", "logs/keep", "doc/a/b/draft", "doc/draft", "#odd", "ax", "cx"),
    *("sub/special.o", "sub/other.o", "sub/x.tmp", "x.tmp", "sub/only-here", "only-here", "sub/deep/only-here"),
    *("sub/deep/special.o", "trailing", "naïve.o"),
]


@pytest.fixture
def ruled(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path, text in RULES.items():
        write(root / path, text)
    for path in PATHS:
        write(root / path, path)
    return root


@pytest.mark.real_part("git")
def test_both_ways_to_ignore_agree_with_git(ruled: Path, tmp_path: Path) -> None:
    by_patterns = files_of(ruled, tmp_path / "i1")
    git(ruled, "init", "-q")
    by_git = files_of(ruled, tmp_path / "i2")
    listed = set(git(ruled, "ls-files", "-co", "--exclude-standard", "-z").split("\0")) - {""}
    assert by_git == listed
    assert by_patterns == listed
    assert "sub/special.o" in listed
    assert "a.o" not in listed


@pytest.mark.real_part("git")
def test_tracked_files_are_sent_whatever_the_patterns_say(ruled: Path, tmp_path: Path) -> None:
    git(ruled, "init", "-q")
    git(ruled, "add", "-f", "a.o", "build/x")
    assert {"a.o", "build/x"} <= files_of(ruled, tmp_path / "index")


@pytest.mark.real_part("git")
def test_a_repository_inside_has_its_own_rules(tmp_path: Path) -> None:
    root = tmp_path / "outer"
    git(write(root / "a.c").parent, "init", "-q")
    write(root / "inner" / ".gitignore", "*.o\n")
    write(root / "inner" / "b.c")
    write(root / "inner" / "b.o")
    git(root / "inner", "init", "-q")
    assert files_of(root, tmp_path / "index") == {"a.c", "inner/.gitignore", "inner/b.c"}


@pytest.mark.real_part("git")
def test_rules_from_above_hold_below(tmp_path: Path) -> None:
    top = tmp_path / "top"
    write(top / ".gitignore", "*.o\n/kernels/secret\n")
    for name in ("a.c", "a.o", "secret"):
        write(top / "kernels" / name)
    git(top, "init", "-q")
    (top / ".git" / "info" / "exclude").write_text("*.log\n")
    write(top / "kernels" / "x.log")
    assert files_of(top / "kernels", tmp_path / "index") == {"a.c"}
    rules = Rules(top / "kernels", Surroundings(None, tmp_path, tmp_path), trusts_listing=False)
    found = [name for name in ("a.c", "a.o", "secret", "x.log") if not rules.decide(name, is_directory=False).is_sent]
    assert found == ["a.o", "secret", "x.log"]


@pytest.mark.real_part("git")
def test_a_git_hook_does_not_mislead(ruled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(ruled, "init", "-q")
    expected = files_of(ruled, tmp_path / "index")
    git(write(tmp_path / "other" / "x").parent, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))
    assert files_of(ruled, tmp_path / "index") == expected


@pytest.mark.real_part("git")
def test_what_git_takes_for_no_repository_is_none(tmp_path: Path) -> None:
    write(tmp_path / "tree" / "a.o")
    write(tmp_path / "tree" / ".git", "gitdir: /nowhere\n")
    assert files_of(tmp_path / "tree", tmp_path / "index") == {"a.o"}


@pytest.mark.real_part("git")
def test_git_that_refuses_is_said_and_its_rules_hold_all_the_same(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write(tree / ".gitignore", "*.o\n")
    write(tree / "a.o")
    write(tree / "a.c")
    write(tree / "tracked.o")
    git(tree, "init", "-q")
    git(tree, "add", "-f", "tracked.o")
    with open(tree / ".git" / "config", "a", encoding="ascii") as config:
        config.write("[core\n")
    found = scan(tree, tmp_path / "index")
    assert set(found.items) == {".gitignore", "a.c", "tracked.o"}
    assert "git is not asked" in found.notes[0]


def test_the_git_directory_is_never_sent(tmp_path: Path) -> None:
    write(tmp_path / "tree" / ".gitkeep")
    write(tmp_path / "tree" / "sub" / "a")
    assert files_of(tmp_path / "tree", tmp_path / "index") == {".gitkeep", "sub/a"}


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "tree" / "a", "content")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    _let_age(path)
    index = tmp_path / "index"
    scan(tmp_path / "tree", index)
    table = Index.load(index)
    table.change({"a": (table.files["a"][0], "f" * 64)})
    assert scan(tmp_path / "tree", index).items["a"].digest == "f" * 64, "the remembered hash was not used"
    assert scan(tmp_path / "tree", index, is_thorough=True).items["a"].digest != "f" * 64, "a thorough scan trusts none"
    write(path, "CONTENT")
    assert scan(tmp_path / "tree", index).items["a"].digest != "f" * 64


@pytest.mark.parametrize("keeps", [True, False])
def test_what_goes_with_its_directory_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    root, index = tmp_path / "tree", Index.load(tmp_path / "index")
    for name in ("old/a", "old/sub/b", "old/sub/large"):
        last = write(root / name, name * (1_000_000 if name.endswith("large") else 1))
    _let_age(last)
    before = scan(root, index)
    assert before.tree_hash
    (root / "old").rename(root / "new")
    write(root / "new/c", "new")
    read: list[int] = []
    hashed, whole = tree.hash_handle, blocks.read_whole
    monkeypatch.setattr(tree, "hash_handle", lambda handle: (read.append(1), hashed(handle))[1])
    monkeypatch.setattr(blocks, "read_whole", lambda *of: (read.append(2), whole(*of))[1])
    after = scan(root, index if keeps else Index.load(tmp_path / "index"))
    assert read == [1], "only what is new is read"
    monkeypatch.undo()
    assert after.tree_hash == scan(root, tmp_path / "other").tree_hash
    (root / "new/a").write_text("OLD/A")
    assert scan(root, index).items["new/a"].digest != before.items["old/a"].digest


def _let_age(path: Path) -> None:
    """Wait until the file's change is older than what a scan distrusts, by the file system's own clock."""
    other = path.with_name(".clock")
    while True:
        other.write_text("tick")
        age = other.stat().st_ctime_ns - path.stat().st_ctime_ns
        other.unlink()
        if age > 60_000_000:
            return


def test_a_fresh_file_is_not_remembered(tmp_path: Path) -> None:
    index = tmp_path / "index"
    write(tmp_path / "tree" / "a", "content")
    scan(tmp_path / "tree", index)
    assert "a" not in Index.load(index).files


@pytest.mark.parametrize("keep", [0, 5, 30, -1])
def test_a_damaged_index_costs_time_only(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "tree" / "a", "content")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    _let_age(path)
    scan(tmp_path / "tree", tmp_path / "index")
    for file in tmp_path.glob("index*"):
        file.write_bytes(file.read_bytes()[:keep] + b"x" * 20)
    assert set(scan(tmp_path / "tree", tmp_path / "index").items) == {"a"}


def test_a_tree_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        scan(tmp_path / "nothing", tmp_path / "index")


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    write(tmp_path / "tree" / "closed" / "a")
    (tmp_path / "tree" / "closed").chmod(0)
    found = scan(tmp_path / "tree", tmp_path / "index")
    (tmp_path / "tree" / "closed").chmod(0o700)
    assert found.skipped == ("closed/: no permission to read it",)
    assert found.unread == ("closed",)
    shutil.rmtree(tmp_path / "tree")


def test_too_much_is_said_once_for_the_same_causes(tmp_path: Path) -> None:
    large = write(tmp_path / "tree" / "data" / "weights", "")
    os.truncate(large, 200_000_000)
    write(tmp_path / "tree" / "a.c")
    index = tmp_path / "index"
    first = scan(tmp_path / "tree", index).warning
    assert first is not None
    assert "`data/weights` (200 MB)" in first.message
    os.truncate(large, 201_000_000)
    assert scan(tmp_path / "tree", index).warning is None
    write(tmp_path / "tree" / ".chiselignore", "data\n")
    assert scan(tmp_path / "tree", index).warning is None
    (tmp_path / "tree" / ".chiselignore").unlink()
    assert scan(tmp_path / "tree", index).warning is not None, "it was gone in between"


def test_a_tree_hash_that_goes_on_is_the_same(tmp_path: Path) -> None:
    """What is not written out anew gives the hash that all of it would."""
    chance, hashing = random.Random(3), TreeHash()
    items = {
        f"d{number % 7}/f{number}": Item(f"d{number % 7}/f{number}", FILE, 0o644, "ab" * 32) for number in range(99)
    }
    for step in range(200):
        for path in chance.sample(sorted(items), 3):
            items[path] = items[path]._replace(digest=f"{step:064x}", mode=chance.choice([0o644, 0o755]))
        if chance.random() < 0.3:
            del items[chance.choice(sorted(items))]
        if chance.random() < 0.4:
            path = f"d{chance.randrange(9)}/\udce9{step}"
            items[path] = Item(path, LINK, 0, "target")
        assert hashing.of_items(items) == tree_hash(items.values())
