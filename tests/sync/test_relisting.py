"""A kept listing says what a new one would, whatever happened meanwhile, and reads only directories that changed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chisel.node.offer import RACY_NS
from chisel.sync.ignore import Rules, Surroundings, Verdict, surroundings_of
from chisel.sync.index import Index
from chisel.sync.listing import Listing, listing_of
from chisel.sync.pulled import Note, Notes
from chisel.sync.relisting import Lister, is_trusted
from chisel.sync.scan import scan
from tests.sync.test_ignore import git
from tests.sync.test_push import write

pytestmark = [pytest.mark.real_part("git"), pytest.mark.timeout(180)]


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return surroundings_of({"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"})


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    if not is_trusted(str(tmp_path)):
        pytest.skip("this file system's directory times are not relied on")
    top = tmp_path / "top" / "tree"
    for number in range(30):
        write(top / f"d{number % 5}" / f"f{number}.c", str(number))
    write(top / "d0" / "x.o")
    write(top / ".gitignore", "*.o\n/out/\n")
    write(top / "out" / "result")
    (top / "d1" / "link").symlink_to("f1.c")
    yield top
    shutil.rmtree(top.parent)


def settle(tmp_path: Path) -> None:
    """Wait until what has happened by now is older than what is not relied on, by the file system's own clock."""
    clock = tmp_path / "clock"
    clock.write_text("tick")
    began_ns = clock.stat().st_mtime_ns
    while clock.stat().st_mtime_ns - began_ns <= RACY_NS + 20_000_000:
        clock.write_text("tick")


def plain(listing: Listing) -> dict[str, tuple[object, ...]]:
    """Return what is to be equal: kinds and looks, and what is left out and why."""
    sent = {
        path: (entry.kind, entry.status.st_ino, entry.status.st_mode, entry.status.st_mtime_ns, entry.status.st_size)
        for path, entry in listing.entries.items()
    }
    return {**sent, **{f"-{one.path}": (one.reason, one.detail) for one in listing.left_out}}


class Twice:
    """A lister, and what a new listing says."""

    def __init__(self, tree: Path, around: Surroundings) -> None:
        self.tree = tree
        self.around = around
        self.lister = Lister()

    def __call__(self) -> bool:
        """List and compare; return whether all of it was listed anew."""
        found, differs = self.lister.list(self.tree, self.around)
        assert plain(found) == plain(listing_of(self.tree, self.around))
        return differs is None


def settled(tree: Path, tmp_path: Path, around: Surroundings, *, is_checkout: bool) -> Twice:
    """Return a lister of a tree that has come to rest."""
    if is_checkout:
        git(tree, "init", "-q")
        git(tree, "add", ".")
    settle(tmp_path)
    return Twice(tree, around)


@pytest.mark.parametrize("is_checkout", [False, True])
def test_an_unchanged_tree_is_not_read_again(
    tree: Path, tmp_path: Path, around: Surroundings, is_checkout: bool
) -> None:
    twice = settled(tree, tmp_path, around, is_checkout=is_checkout)
    assert twice()
    reads: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", reads.append)
        assert twice.lister.list(tree, around)[1] == frozenset()
    assert reads == []


Change = Callable[[Path], object]
TAKEN_IN: dict[str, Change] = {
    "a file is edited": lambda tree: (tree / "d1" / "f1.c").write_text("other"),
    "a file is replaced": lambda tree: os.replace(write(tree / "d1" / ".f1.c.swp", "new"), tree / "d1" / "f1.c"),
    "a file comes": lambda tree: write(tree / "d2" / "new.c"),
    "an ignored file comes": lambda tree: write(tree / "d2" / "new.o"),
    "a file goes": lambda tree: (tree / "d2" / "f2.c").unlink(),
    "an ignored file goes": lambda tree: (tree / "d0" / "x.o").unlink(),
    "a file is renamed": lambda tree: (tree / "d2" / "f2.c").rename(tree / "d3" / "f2.c"),
    "a link is turned": lambda tree: ((tree / "d1" / "link").unlink(), (tree / "d1" / "link").symlink_to("f6.c")),
    "a mode changes": lambda tree: (tree / "d1" / "f1.c").chmod(0o755),
    "a directory's mode changes": lambda tree: (tree / "d1").chmod(0o700),
    "a directory comes": lambda tree: write(tree / "new" / "deep" / "a"),
    "a directory comes that is empty": lambda tree: (tree / "d1" / "empty").mkdir(),
    "a directory comes with what is ignored": lambda tree: (write(tree / "d2" / "n" / "o.o"), write(tree / "d2/n/o.c")),
    "a directory comes that holds only what is ignored": lambda tree: write(tree / "d2" / "m" / "o.o"),
    "an ignored directory goes": lambda tree: shutil.rmtree(tree / "out"),
    "a directory gets an ignored name": lambda tree: (tree / "d4").rename(tree / "out" / "d4"),
    "a directory takes an ignored one's place": lambda tree: (
        shutil.rmtree(tree / "out"), (tree / "d4").rename(tree / "out")
    ),
    "a directory goes": lambda tree: shutil.rmtree(tree / "d3"),
    "a directory is renamed": lambda tree: (tree / "d3").rename(tree / "d9"),
    "a directory goes into another": lambda tree: (tree / "d3").rename(tree / "d2" / "d3"),
    "a directory takes a file's place": lambda tree: ((tree / "d1" / "f1.c").unlink(), write(tree / "d1/f1.c/in")),
    "a file takes a directory's place": lambda tree: (shutil.rmtree(tree / "d3"), write(tree / "d3")),
    "a link takes a directory's place": lambda tree: (
        (tree / "d3").rename(tree / "d9"), (tree / "d3").symlink_to("d9")
    ),
    "two directories change places": lambda tree: (
        (tree / "d3").rename(tree / "d9"), (tree / "d4").rename(tree / "d3"), (tree / "d9").rename(tree / "d4")
    ),
}  # fmt: skip
MORE: dict[str, Change] = {
    "a FIFO comes": lambda tree: os.mkfifo(tree / "d1" / "fifo"),
    "the rules are edited": lambda tree: (tree / ".gitignore").write_text("*.c\n"),
    "the rules go": lambda tree: (tree / ".gitignore").unlink(),
    "nested rules come": lambda tree: write(tree / "d1" / ".gitignore", "f*\n"),
    "chisel's own rules come": lambda tree: write(tree / ".chiselignore", "d1\n"),
    "rules take in what git ignores": lambda tree: write(tree / ".chiselignore", "!out/result\n"),
    "rules come with a directory": lambda tree: write(tree / "new" / "deep" / ".gitignore", "*.c"),
    "a FIFO comes with a directory": lambda tree: ((tree / "new").mkdir(), os.mkfifo(tree / "new" / "fifo")),
    "a repository comes": lambda tree: git(tree / "d1", "init", "-q"),
    "the root is a repository": lambda tree: git(tree, "init", "-q"),
    "a repository comes above": lambda tree: (
        write(tree.parent / ".gitignore", "d4\n"), git(tree.parent, "init", "-q")
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_checkout", [False, True])
@pytest.mark.parametrize("name", TAKEN_IN)
def test_what_comes_and_goes_is_taken_in(
    tree: Path, tmp_path: Path, around: Surroundings, name: str, is_checkout: bool
) -> None:
    twice = settled(tree, tmp_path, around, is_checkout=is_checkout)
    twice()
    TAKEN_IN[name](tree)
    assert not twice()
    assert not twice()


@pytest.mark.parametrize("name", MORE)
def test_more_than_that_is_listed_anew(tree: Path, tmp_path: Path, around: Surroundings, name: str) -> None:
    settle(tmp_path)
    twice = Twice(tree, around)
    twice()
    MORE[name](tree)
    assert twice()
    twice()


TOLD_BY_GIT: dict[str, Change] = {
    "an ignored file is tracked": lambda tree: git(tree, "add", "-f", "d0/x.o"),
    "an exclude file": lambda tree: (tree / ".git" / "info" / "exclude").write_text("d1\n"),
    "a configured one": lambda tree: (
        write(tree.parent / "mine", "d2\n"), git(tree, "config", "core.excludesFile", str(tree.parent / "mine"))
    ),
    "the user's own": lambda tree: write(tree.parent.parent / ".config" / "git" / "ignore", "d3\n"),
    "the user's configuration": lambda tree: (
        write(tree.parent / "mine", "d2\n"),
        write(tree.parent.parent / ".gitconfig", f"[core]\nexcludesFile = {tree.parent / 'mine'}\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD_BY_GIT)
def test_what_git_says_otherwise_is_heard(tree: Path, tmp_path: Path, around: Surroundings, name: str) -> None:
    git(tree, "init", "-q")
    git(tree, "add", ".gitignore")
    settle(tmp_path)
    twice = Twice(tree, around)
    twice()
    before = plain(listing_of(tree, around))
    TOLD_BY_GIT[name](tree)
    assert twice()
    assert plain(listing_of(tree, around)) != before, "the case has to change something"


def test_a_change_in_the_tick_of_the_listing_is_seen(tree: Path, around: Surroundings) -> None:
    twice = Twice(tree, around)
    for number in range(120):
        folder = tree / f"d{number % 5}"
        write(folder / f"n{number}", "")
        twice()
        write(folder / f"m{number}", "")
        twice()
        (folder / f"n{number}").unlink()


def test_random_changes_leave_no_difference(tree: Path, tmp_path: Path, around: Surroundings) -> None:
    chance = random.Random(7)
    git(tree, "init", "-q")
    twice, kept = Twice(tree, around), 0
    changes = [*TAKEN_IN.values(), *MORE.values(), *TOLD_BY_GIT.values()]
    for _ in range(80):
        for change in chance.choices(changes, k=chance.choice([0, 1, 1, 3])):
            try:
                change(tree)
            except (OSError, subprocess.CalledProcessError):
                continue  # an earlier change took what this one needs
        if chance.random() < 0.3:
            settle(tmp_path)
        kept += not twice()
    assert kept > 8, "hardly anything was kept: this shows nothing"


def scanned(tree: Path, index: Index, around: Surroundings) -> tuple[object, ...]:
    found = scan(tree, index, surroundings=around)
    items = {path: item[:4] for path, item in found.items.items()}
    return items, found.tree_hash, sorted(found.skipped), found.released, found.notes, sorted(found.unread)


def pulled(tree: Path, index: Path) -> None:
    """Have a file be one that a pull has written."""
    status = write(tree / "pulled", "from there").stat()
    notes = Notes(index.parent, tree)
    look = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    notes.add("pulled", Note(*look, "", "one/1", None))
    notes.save()


def test_random_changes_are_scanned_as_if_for_the_first_time(tree: Path, tmp_path: Path, around: Surroundings) -> None:
    chance = random.Random(11)
    kept = tmp_path / "index" / "kept"
    warm = Index.load(kept)
    changes = [*TAKEN_IN.values(), *MORE.values()]
    changes += [
        lambda tree: os.link(tree / "d4" / "f4.c", tree / "d4" / f"link{chance.random()}"),
        lambda tree: (tree / "d4" / "f4.c").write_text(str(chance.randint(1000, 9999))),
        lambda tree: (tree / "d4" / "f9.c").write_text(str(chance.randint(1000, 9999))),
        lambda tree: write(tree / "d4" / f"{'long' * 70}.c"),
        lambda tree: pulled(tree, kept),
        lambda tree: (tree / "pulled").write_text("edited"),
    ]
    went_on = 0
    for number in range(80):
        for change in chance.choices(changes, k=chance.choice([0, 1, 1, 1, 3])):
            try:
                change(tree)
            except (OSError, subprocess.CalledProcessError):
                continue
        if chance.random() < 0.3:
            settle(tmp_path)
        knew = warm.last is not None
        fresh = tmp_path / "index" / f"new{number}"
        assert scanned(tree, warm, around) == scanned(tree, Index.load(fresh), around)
        went_on += knew and warm.lister.list(tree, around)[1] is not None
    assert went_on > 8, "it hardly ever went on from the scan before: this shows nothing"


def test_another_users_git_is_another_listing(tree: Path, tmp_path: Path, around: Surroundings) -> None:
    git(tree, "init", "-q")
    settle(tmp_path)
    lister = Lister()
    lister.list(tree, around)
    write(tmp_path / "other" / ".config" / "git" / "ignore", "d1\n")
    other = surroundings_of({"PATH": os.environ["PATH"], "HOME": str(tmp_path / "other")})
    found, differs = lister.list(tree, other)
    assert differs is None
    assert "d1/f1.c" not in found.entries


def test_a_configuration_that_includes_others_is_not_relied_on(
    tree: Path, tmp_path: Path, around: Surroundings
) -> None:
    git(tree, "init", "-q")
    write(tmp_path / ".gitconfig", "[include]\npath = more\n")
    settle(tmp_path)
    lister = Lister()
    lister.list(tree, around)
    assert lister.list(tree, around)[1] is None


def test_what_comes_while_one_decides_is_not_missed(tree: Path, tmp_path: Path, around: Surroundings) -> None:
    settle(tmp_path)
    lister = Lister()
    lister.list(tree, around)
    write(tree / "d1" / "first.c")
    first = os.stat(tree / "d1")
    decide = Rules.decide

    def slowly(rules: Rules, path: str, *, is_directory: bool) -> Verdict:
        settle(tmp_path)  # git is asked, a disk sleeps
        return decide(rules, path, is_directory=is_directory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rules, "decide", slowly)
        lister.list(tree, around)
    write(tree / "d1" / "second.c")
    # As if it had come within the same tick of the clock, which is what nobody can arrange.
    assert lister._kept is not None
    assert lister._kept._folders["d1"] == (), f"{first.st_mtime_ns} counts as come to rest"
    assert "d1/second.c" in lister.list(tree, around)[0].entries


@pytest.mark.parametrize("place", ["", "d1"])
def test_what_is_half_a_repository_is_not_relied_on(
    tree: Path, tmp_path: Path, around: Surroundings, place: str
) -> None:
    write(tree / place / ".git" / "HEAD", "nonsense")
    settle(tmp_path)
    lister = Lister()
    lister.list(tree, around)
    assert lister.list(tree, around)[1] is None


MOUNTS = """21 1 254:0 / / rw - ext4 /dev/a rw
22 21 0:30 / /home/a\\040b rw shared:1 - nfs server:/x rw
23 21 0:31 / /home/fast rw - btrfs /dev/b rw
24 23 0:32 / /home/fast/tree/inner rw - tmpfs none rw
"""


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("/work", True),
        ("/home/a b/tree", False),
        ("/home/fast", False),
        ("/home/fast/other", True),
        ("/home/fast/tree", False),
        ("/home/faster", True),
    ],
)
def test_only_local_file_systems_are_relied_on(tmp_path: Path, root: str, expected: bool) -> None:
    mounts = write(tmp_path / "mounts", MOUNTS)
    assert is_trusted(root, str(mounts)) is expected
