"""Every save is heard of, soon, under its right name; nothing ignored is; what is unclear is a change of everything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from chisel.errors import UsageError
from chisel.sync.ignore import Surroundings, surroundings_of
from chisel.sync.polled import PolledWatch
from chisel.sync.sieve import Changes
from chisel.sync.watching import ChangeStream, WatchMaker, watching
from tests.support import until
from tests.sync.test_ignore import git
from tests.sync.test_push import write
from tests.torture import watch_mirror

if sys.platform == "linux":
    from chisel.sync import inotify
    from chisel.sync.inotify import InotifyWatch

    WAYS: list[WatchMaker] = [InotifyWatch, PolledWatch]
else:
    WAYS = [PolledWatch]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def way(request: pytest.FixtureRequest) -> WatchMaker:
    return request.param


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return surroundings_of({"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"})


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "top"
    write(place / ".gitignore", "*.o\n/build/\n*.swp\n")
    write(place / "a.c", "old")
    write(place / "sub" / "b.c", "old")
    write(place / "build" / "x", "old")
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-qm", "x")
    yield place
    shutil.rmtree(place, ignore_errors=True)


class Ear:
    """Collect what is heard of."""

    def __init__(self, stream: ChangeStream) -> None:
        self.stream = stream
        self.heard: list[Changes] = []

    @property
    def paths(self) -> set[str]:
        return {path for change in self.heard for path in change.paths}

    @property
    def is_everything(self) -> bool:
        return any(change.is_everything for change in self.heard)

    async def until(self, *paths: str) -> set[str]:
        """Listen until these paths were heard of, or everything was; return all that was."""
        with anyio.fail_after(10):
            while not (set(paths) <= self.paths or self.is_everything):
                self.heard.append(await self.stream.receive())
        return self.paths

    async def until_everything(self) -> Changes:
        with anyio.fail_after(10):
            while not self.is_everything:
                self.heard.append(await self.stream.receive())
        return next(change for change in self.heard if change.is_everything)

    async def nothing_but(self, top: Path, *paths: str) -> None:
        """Check that only these were heard of until a file that is made now is."""
        write(top / "mark.txt", str(time.monotonic()))
        found = await self.until("mark.txt")
        assert found - {"mark.txt"} == set(paths)
        assert not self.is_everything, self.heard

    def forget(self) -> None:
        self.heard.clear()


@asynccontextmanager
async def ear(top: Path, around: Surroundings, way: WatchMaker | None = None) -> AsyncIterator[Ear]:
    async with watching(top, around, make_watch=way) as stream:
        yield Ear(stream)


# -- how editors save


def in_place(path: Path) -> None:
    path.write_text("new")


def like_vim(path: Path) -> None:
    """`:w` with backup by renaming, and the swap file beside it."""
    swap, backup, probe = path.with_name(f".{path.name}.swp"), path.with_name(path.name + "~"), path.with_name("4913")
    swap.write_text("swap")
    probe.touch()
    probe.unlink()
    path.rename(backup)
    with path.open("w") as file:
        file.write("new")
        file.flush()
        os.fsync(file.fileno())
    backup.unlink()
    swap.unlink()


def by_rename(path: Path) -> None:
    """As Kate, gedit, `sed -i` and most formatters do."""
    other = path.with_name(f".{path.name}.tmp-1")
    other.write_text("new")
    other.replace(path)


def like_jetbrains(path: Path) -> None:
    new, old = path.with_name(path.name + "___jb_tmp___"), path.with_name(path.name + "___jb_old___")
    new.write_text("new")
    path.rename(old)
    new.rename(path)
    old.unlink()


def like_emacs(path: Path) -> None:
    lock = path.with_name(f".#{path.name}")
    lock.symlink_to("user@host.1:2")
    path.rename(path.with_name(path.name + "~"))
    path.write_text("new")
    lock.unlink()


def by_sed(path: Path) -> None:
    subprocess.run(["sed", "-i.bak", "s/old/new/", str(path)], check=True)


def by_hard_link(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("new")
    path.unlink()
    os.link(other, path)
    other.unlink()


SAVES = [in_place, like_vim, by_rename, like_jetbrains, like_emacs, by_sed, by_hard_link]


@pytest.mark.parametrize("save", SAVES, ids=lambda save: save.__name__)
async def test_every_way_to_save_is_heard_of(
    top: Path, around: Surroundings, way: WatchMaker, save: Callable[[Path], None]
) -> None:
    async with ear(top, around, way) as hears:
        for _ in range(2):  # once more: the name is another file now
            (top / "sub" / "b.c").write_text("old")
            await hears.until("sub/b.c")
            hears.forget()
            save(top / "sub" / "b.c")
            found = await hears.until("sub/b.c")
            assert not hears.is_everything
            assert (top / "sub" / "b.c").read_text() == "new"
            assert not [path for path in found if path.endswith(".swp")]
            hears.forget()


EDITORS = {
    "vim": ["vim", "-Nes", "-u", "NONE", "-c", "1s/old/new/", "-c", "wq"],
    "vim with a backup": [
        "vim",
        "-Nes",
        "-u",
        "NONE",
        "-c",
        "set backup backupcopy=no",
        "-c",
        "1s/old/new/",
        "-c",
        "wq",
    ],
    "vim with a swap file": [
        "vim",
        "-Nes",
        "-u",
        "NONE",
        "-c",
        "set swapfile nofsync",
        "-c",
        "1s/old/new/",
        "-c",
        "wq",
    ],
    "ed": ["ed", "-s"],
    "git": ["git", "checkout", "-q"],
}


@pytest.mark.parametrize("editor", EDITORS)
async def test_real_editors_are_heard_of(top: Path, around: Surroundings, way: WatchMaker, editor: str) -> None:
    if shutil.which(EDITORS[editor][0]) is None:
        pytest.skip(f"{editor} is not here")
    if editor == "git":
        write(top / "a.c", "changed")
    async with ear(top, around, way) as hears:
        for _ in range(2):
            edits = partial(
                subprocess.run, [*EDITORS[editor], "a.c"], input=b"1s/old/new/\nw\nq\n", cwd=top, check=False
            )
            await anyio.to_thread.run_sync(edits)
            assert "a.c" in await hears.until("a.c")
            assert not hears.is_everything
            assert (top / "a.c").read_text().strip() == ("old" if editor == "git" else "new")
            hears.forget()
            write(top / "a.c", "old\n" if editor != "git" else "more")
            await hears.until("a.c")
            hears.forget()


async def test_a_git_directory_that_lies_in_the_tree_is_heard_of_as_both(
    tmp_path: Path, around: Surroundings, way: WatchMaker
) -> None:
    place = tmp_path / "outer"
    write(place / "work" / "a.c")
    git(place / "work", "init", "-q", f"--separate-git-dir={place / 'kept'}")
    async with ear(place, around, way) as hears:
        write(place / "kept" / "note")
        await hears.until("kept/note")
        write(place / "kept" / "info" / "exclude", "*.o\n")
        await hears.until_everything()
        hears.forget()
        write(place / "work" / "a.o")
        await hears.nothing_but(place)


@on_linux
async def test_a_file_that_came_and_went_is_told(top: Path, around: Surroundings) -> None:
    """Whoever was told of its directory a moment before may have seen it."""
    async with ear(top, around) as hears:
        write(top / "short")
        (top / "short").unlink()
        await hears.nothing_but(top, "short")


async def test_a_file_that_makes_place_for_an_ignored_directory_is_heard_of(
    top: Path, around: Surroundings, way: WatchMaker
) -> None:
    write(top / ".gitignore", "made/\n")
    write(top / "made")
    async with ear(top, around, way) as hears:
        (top / "made").unlink()
        (top / "made").mkdir()
        await hears.until("made")


@on_linux
async def test_a_file_is_held_back_while_it_is_written_and_others_are_not(top: Path, around: Surroundings) -> None:
    async with ear(top, around) as hears:
        with (top / "a.c").open("w") as file:
            file.write("half")
            file.flush()
            await hears.nothing_but(top)
            file.write("whole")
        await hears.until("a.c")


@on_linux
async def test_a_file_that_stays_open_is_delivered_in_the_end(top: Path, around: Surroundings) -> None:
    async with ear(top, around) as hears:
        with (top / "a.c").open("w") as file:
            began = time.monotonic()
            file.write("half")
            file.flush()
            await hears.until("a.c")
            assert time.monotonic() - began >= inotify._HELD_S


# -- what is heard of


async def test_nothing_ignored_is_heard_of(top: Path, around: Surroundings, way: WatchMaker) -> None:
    async with ear(top, around, way) as hears:
        write(top / "a.o")
        write(top / "sub" / "b.o")
        write(top / "build" / "deep" / "y")
        (top / ".git" / "FETCH_HEAD").touch()
        await hears.nothing_but(top)


async def test_a_tracked_file_is_heard_of_where_its_neighbours_are_not(
    top: Path, around: Surroundings, way: WatchMaker
) -> None:
    git(top, "add", "-f", "build/x")
    async with ear(top, around, way) as hears:
        write(top / "build" / "y")
        write(top / "build" / "x", "new")
        await hears.until("build/x")
        await hears.nothing_but(top, "build/x")


async def test_what_chiselignore_takes_in_is_heard_of(top: Path, around: Surroundings, way: WatchMaker) -> None:
    write(top / ".chiselignore", "!/build/keep.csv\n*.md\n")
    async with ear(top, around, way) as hears:
        write(top / "build" / "y")
        write(top / "README.md")
        write(top / "build" / "keep.csv", "new")
        await hears.until("build/keep.csv")
        await hears.nothing_but(top, "build/keep.csv")


async def test_new_directories_are_heard_of_and_listened_to(top: Path, around: Surroundings, way: WatchMaker) -> None:
    async with ear(top, around, way) as hears:
        for depth in range(3):
            write(top / "new" / ("x/" * depth) / f"f{depth}")
        await hears.until("new")
        hears.forget()
        write(top / "new" / "x" / "x" / "f2", "more")
        assert "new/x/x/f2" in await hears.until("new/x/x/f2")


@pytest.mark.parametrize("rounds", range(2))
async def test_no_file_of_a_growing_tree_is_missed(
    top: Path, around: Surroundings, way: WatchMaker, rounds: int
) -> None:
    """Whatever the moment at which a directory is listened to: a path or one above it is heard of after it was made."""
    made: list[str] = []
    async with ear(top, around, way) as hears:

        def grow() -> None:
            for number in range(40):
                path = f"g{rounds}/" + "/".join(f"d{number % part}" for part in (3, 5, 7)) + f"/f{number}"
                write(top / path, "x")
                made.append(path)

        await anyio.to_thread.run_sync(grow)
        await hears.until(f"g{rounds}")
        with anyio.move_on_after(0.3):
            while True:
                hears.heard.append(await hears.stream.receive())
        for path in made:
            above = {path, *map(str, Path(path).parents)}
            assert above & hears.paths, path


async def test_a_renamed_directory_is_heard_of_under_both_names(
    top: Path, around: Surroundings, way: WatchMaker
) -> None:
    write(top / "sub" / "deep" / "c")
    async with ear(top, around, way) as hears:
        (top / "sub").rename(top / "other")
        assert {"sub", "other"} <= await hears.until("sub", "other")
        hears.forget()
        write(top / "other" / "deep" / "c", "new")
        await hears.until("other/deep/c")
        assert not [path for path in hears.paths if path.startswith("sub")]


@on_linux
async def test_directories_that_change_places_are_listened_to_under_their_names(
    top: Path, around: Surroundings
) -> None:
    for name in ("one", "two"):
        write(top / name / "deep" / name)
    async with ear(top, around) as hears:
        for _ in range(3):
            (top / "one").rename(top / "three")
            (top / "two").rename(top / "one")
            (top / "three").rename(top / "two")
        await hears.until("one", "two")
        hears.forget()
        for name in ("one", "two"):
            write(top / name / "deep" / "new", name)
            await hears.until(f"{name}/deep/new")
        await hears.nothing_but(top, "one/deep/new", "two/deep/new")


async def test_a_directory_that_is_moved_in_and_one_that_is_moved_out(
    tmp_path: Path, top: Path, around: Surroundings, way: WatchMaker
) -> None:
    write(tmp_path / "outside" / "deep" / "x")
    async with ear(top, around, way) as hears:
        (tmp_path / "outside").rename(top / "inside")
        await hears.until("inside")
        write(top / "inside" / "deep" / "x", "new")
        await hears.until("inside/deep/x")
        hears.forget()
        (top / "inside").rename(tmp_path / "outside")
        await hears.until("inside")
        hears.forget()
        write(tmp_path / "outside" / "deep" / "x", "newer")
        await hears.nothing_but(top)


@on_linux
async def test_any_name_is_heard_of(top: Path, around: Surroundings) -> None:
    folder = os.fsdecode(b"caf\xe9\n")
    (top / folder).mkdir()
    async with ear(top, around) as hears:
        name = os.fsdecode(b"\xff\n'\"")
        write(top / folder / name)
        assert f"{folder}/{name}" in await hears.until(f"{folder}/{name}")


async def test_a_name_that_the_library_cannot_tell_is_a_change_of_everything(top: Path, around: Surroundings) -> None:
    async with ear(top, around, PolledWatch) as hears:
        write(top / os.fsdecode(b"\xff"))
        await hears.until_everything()
        hears.forget()
        write(top / "a.c", "new")
        await hears.until("a.c")


async def test_modes_links_and_deletions_are_heard_of(top: Path, around: Surroundings, way: WatchMaker) -> None:
    async with ear(top, around, way) as hears:
        (top / "a.c").chmod(0o755)
        await hears.until("a.c")
        (top / "link").symlink_to("a.c")
        await hears.until("link")
        (top / "sub" / "b.c").unlink()
        await hears.until("sub/b.c")
        (top / "sub").rmdir()
        await hears.until("sub")
        await hears.nothing_but(top, "a.c", "link", "sub/b.c", "sub")


# -- the rules


@pytest.mark.parametrize("file", [".gitignore", ".chiselignore", "sub/.gitignore", ".git/info/exclude", ".git/config"])
async def test_other_rules_are_a_change_of_everything(
    top: Path, around: Surroundings, way: WatchMaker, file: str
) -> None:
    async with ear(top, around, way) as hears:
        with (top / file).open("a") as opened:
            opened.write("\n# more\n")
        assert (await hears.until_everything()).reason == "the rules have changed"


async def test_what_is_ignored_no_more_is_listened_to(top: Path, around: Surroundings, way: WatchMaker) -> None:
    async with ear(top, around, way) as hears:
        write(top / ".gitignore", "*.o\n")
        await hears.until_everything()
        hears.forget()
        write(top / "build" / "x", "new")
        await hears.until("build/x")


async def test_what_becomes_tracked_although_it_is_ignored(top: Path, around: Surroundings, way: WatchMaker) -> None:
    write(top / "new.c")
    async with ear(top, around, way) as hears:
        git(top, "add", "new.c")
        await hears.nothing_but(top)
        git(top, "add", "-f", "build/x")
        assert (await hears.until_everything()).reason == "what git tracks has changed"
        hears.forget()
        write(top / "build" / "x", "new")
        await hears.until("build/x")


async def test_a_repository_that_is_made_inside_has_its_rules(top: Path, around: Surroundings, way: WatchMaker) -> None:
    write(top / "inner" / "x")
    async with ear(top, around, way) as hears:
        git(top / "inner", "init", "-q")
        await hears.until_everything()
        with anyio.move_on_after(0.3):
            while True:
                await hears.stream.receive()
        hears.forget()
        write(top / "inner" / ".git" / "info" / "exclude", "*.tmp\n")
        await hears.until_everything()
        hears.forget()
        write(top / "inner" / "y.tmp")
        await hears.nothing_but(top)


async def test_a_branch_switch_is_heard_of_whole(top: Path, around: Surroundings, way: WatchMaker) -> None:
    for number in range(400):
        write(top / f"d{number % 30}" / f"f{number}", "one")
    git(top, "add", ".")
    git(top, "commit", "-qm", "one")
    first = git(top, "rev-parse", "--abbrev-ref", "HEAD").strip()
    git(top, "switch", "-qc", "two")
    for number in range(400):
        if number % 2:
            write(top / f"d{number % 30}" / f"f{number}", "two")
        else:
            (top / f"d{number % 30}" / f"f{number}").unlink()
    git(top, "add", ".")
    git(top, "commit", "-qm", "two")
    expected = [f"d{number % 30}/f{number}" for number in range(400)]
    async with ear(top, around, way) as hears:
        await anyio.to_thread.run_sync(git, top, "switch", "-q", first)
        with anyio.fail_after(15):
            while not hears.is_everything:
                missing = [path for path in expected if not ({path, str(Path(path).parent)} & hears.paths)]
                if not missing:
                    break
                hears.heard.append(await hears.stream.receive())


@pytest.mark.timeout(60)
def test_a_mirror_kept_by_what_is_told_ends_up_equal(tmp_path: Path, way: WatchMaker) -> None:
    """A slice of tests/torture/watch_mirror.py, whose hard links only inotify's way stands."""
    is_default = way is WAYS[0] and len(WAYS) > 1
    told = watch_mirror.run(3, 1, tmp_path, steps=80, way=None if is_default else way)
    assert sum(not change.is_everything for change in told) > 10, "nothing was mirrored path by path"


@on_linux
async def test_a_file_with_several_names_is_a_change_of_everything(top: Path, around: Surroundings) -> None:
    os.link(top / "a.c", top / "sub" / "same.c")
    async with ear(top, around) as hears:
        (top / "a.c").write_text("both")
        assert (await hears.until_everything()).reason == "a file with several names was written"


# -- what is unclear


@on_linux
def test_an_overflow_is_a_change_of_everything(top: Path, around: Surroundings) -> None:
    watch = InotifyWatch(str(top), around)
    watch.start()
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    one, two = (os.open(top / name, os.O_WRONLY) for name in ("a.c", "sub/b.c"))
    for _ in range(limit // 2 + 10):
        os.write(one, b"x")
        os.write(two, b"x")
    write(top / "lost" / "x")
    watch.read()
    found = watch.settle(0.0)
    assert found is not None
    assert found.is_everything
    assert found.reason == "more happened than the system can tell"
    write(top / "lost" / "x", "new")
    watch.read()
    assert watch.settle(0.0) == Changes(0.0, frozenset({"lost/x"}))
    for handle in (one, two):
        os.close(handle)
    watch.close()


async def test_a_root_that_is_made_anew_is_listened_to(top: Path, around: Surroundings, way: WatchMaker) -> None:
    async with ear(top, around, way) as hears:
        shutil.rmtree(top)
        write(top / "a.c", "new")
        while True:
            assert (await hears.until_everything()).is_everything
            hears.forget()
            write(top / "b.c", "new")
            if "b.c" in await hears.until("b.c"):
                break


async def test_a_root_that_is_not_there_is_a_usage_error(tmp_path: Path, around: Surroundings) -> None:
    with pytest.raises(UsageError, match="cannot be watched"):
        async with watching(tmp_path / "nothing", around):
            pytest.fail("there is nothing to watch")


@on_linux
@pytest.mark.real_part("unshare", optional=True)
def test_too_few_watches_are_an_error_with_a_hint(top: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from chisel.errors import ChiselError\n"
        "from chisel.sync.inotify import InotifyWatch; from chisel.sync.ignore import default_surroundings\n"
        "Path('/proc/sys/user/max_inotify_watches').write_text('2')\n"
        "watch = InotifyWatch(sys.argv[1], default_surroundings())\n"
        "try: watch.start()\n"
        "except ChiselError as error: print(error.message, error.hint)"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program, str(top)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in ended.stderr or "Permission" in ended.stderr or "Read-only" in ended.stderr:
        pytest.skip("no namespaces here")
    assert "no more directories to be watched" in ended.stdout, ended.stderr
    assert "max_user_watches" in ended.stdout


# -- its life


async def test_what_nobody_takes_becomes_one_set(top: Path, around: Surroundings, way: WatchMaker) -> None:
    async with ear(top, around, way) as hears:
        for number in range(20):
            write(top / f"f{number}")
            await anyio.sleep(0.03)
        await hears.until(*(f"f{number}" for number in range(20)))
        assert len(hears.heard) <= 3


@pytest.mark.parametrize("moment", ["idle", "busy", "unread"])
async def test_a_cancelled_watch_leaves_nothing(top: Path, around: Surroundings, way: WatchMaker, moment: str) -> None:
    before = {thread.name for thread in threading.enumerate()}
    descriptors = _notifiers()
    with anyio.CancelScope() as scope:
        async with ear(top, around, way) as hears:
            if moment != "idle":
                write(top / "a.c", "new")
            if moment == "busy":
                await hears.until("a.c")
            began = time.monotonic()
            scope.cancel()
    assert time.monotonic() - began < 1
    new = {thread.name for thread in threading.enumerate()} - before
    assert not [name for name in new if "AnyIO worker" not in name]
    # The library's own thread closes its descriptor a moment later.
    await anyio.to_thread.run_sync(partial(until, lambda: _notifiers() <= descriptors, what="the descriptor to close"))


def _notifiers() -> int:
    if not Path("/proc/self/fd").is_dir():
        return 0
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(entry))
        except OSError:
            continue
    return sum("inotify" in link for link in links)
