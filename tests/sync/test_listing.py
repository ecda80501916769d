"""A listing holds what is sent and why not the rest, sees every kind of file, and names what makes it too large."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from chisel.sync.ignore import Surroundings, surroundings_of
from chisel.sync.listing import Entry, Listing, ignoring_line, list_tree, listing_of, too_much
from tests.sync.test_ignore import git, matching
from tests.sync.test_push import write


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return surroundings_of({"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"})


@pytest.fixture
def top(tmp_path: Path) -> Path:
    place = tmp_path / "top"
    place.mkdir()
    return place


def kinds(listing: Listing) -> dict[str, str]:
    return {path: entry.kind for path, entry in listing.entries.items()}


def left_out(listing: Listing) -> dict[str, str]:
    return {one.path: one.detail or one.reason for one in listing.left_out}


@pytest.mark.real_part("git")
@pytest.mark.parametrize("is_checkout", [True, False])
def test_a_listing_holds_all_kinds_and_says_what_is_missing(top: Path, around: Surroundings, is_checkout: bool) -> None:
    write(top / ".gitignore", "*.o\nout/\n")
    write(top / "src" / "a.c")
    write(top / "src" / "a.o")
    write(top / "out" / "x")
    (top / "empty").mkdir()
    (top / "link").symlink_to("nowhere")
    (top / "to-dir").symlink_to("src")
    os.mkfifo(top / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(top / "socket"))
    (top / os.fsdecode(b"caf\xe9\n")).touch()
    if is_checkout:
        git(top, "init", "-q")
    found = listing_of(top, around)
    assert kinds(found) == {
        **{".gitignore": "f", "src": "d", "src/a.c": "f", "empty": "d", "link": "l", "to-dir": "l"},
        os.fsdecode(b"caf\xe9\n"): "f",
    }
    expected = {"src/a.o": "ignored", "out": "ignored", "fifo": "a FIFO", "socket": "a socket"}
    assert left_out(found) == {**expected, **({".git": "ignored"} if is_checkout else {})}
    assert set(found.skipped) == {"fifo: a FIFO", "socket: a socket"}
    rules = {one.path: one.verdict for one in found.left_out if one.verdict is not None}
    assert (rules["out"].source, rules["out"].line, rules["out"].pattern) == (".gitignore", 2, "out/")


async def test_a_root_that_is_a_link_is_followed_and_one_that_is_missing_is_an_error(tmp_path: Path, top: Path) -> None:
    write(top / "a")
    (tmp_path / "link").symlink_to(top)
    assert set((await list_tree(tmp_path / "link")).entries) == {"a"}
    with pytest.raises(FileNotFoundError):
        await list_tree(tmp_path / "nothing")


@pytest.mark.real_part("git")
def test_directories_that_only_lead_to_something_are_sent_with_it_alone(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "results/\n")
    write(top / ".chiselignore", "!/results/a/keep.csv\n")
    for path in ("results/a/keep.csv", "results/a/x", "results/b/keep.csv", "results/keep.csv"):
        write(top / path)
    found = listing_of(top, around)
    assert {path for path in found.entries if path.startswith("results")} == {
        *("results", "results/a", "results/a/keep.csv"),
    }
    assert {"results/a/x", "results/b", "results/keep.csv"} <= set(left_out(found))


@pytest.mark.real_part("git")
def test_a_tracked_file_below_an_ignored_directory_is_sent_and_its_neighbour_is_not(
    top: Path, around: Surroundings
) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "build/\n")
    for path in ("build/deep/tracked", "build/deep/other", "build/more/other"):
        write(top / path)
    git(top, "add", "-f", "build/deep/tracked")
    found = listing_of(top, around)
    assert set(found.entries) == {".gitignore", "build", "build/deep", "build/deep/tracked"}
    assert left_out(found) == {".git": "ignored", "build/deep/other": "ignored", "build/more": "ignored"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_directory_is_told_apart_from_an_empty_one(top: Path, around: Surroundings) -> None:
    write(top / "closed" / "a")
    (top / "closed").chmod(0)
    found = listing_of(top, around)
    (top / "closed").chmod(0o700)
    assert found.unreadable == ("closed",)
    assert "closed" in found.entries


@pytest.mark.real_part("git")
def test_a_deep_tree_is_no_matter(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "*.o\n")
    depth = 1200
    handle = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    for name in ("a.c", "a.o"):
        os.close(os.open(name, os.O_CREAT, dir_fd=handle))
    os.close(handle)
    below = "d/" * depth
    for used in (around, Surroundings(None, around.home, around.config_home, around.environ)):
        found = listing_of(top, used)
        assert f"{below}a.c" in found.entries
        assert f"{below}a.o" not in found.entries
    subprocess.run(["rm", "-rf", str(top)], check=True)


# -- too much


def sizes(top: Path, around: Surroundings, files: dict[str, int]) -> Listing:
    for path, size in files.items():
        with write(top / path, "").open("r+b") as file:
            file.truncate(size)
    return listing_of(top, around)


def test_an_ordinary_tree_is_not_too_much(top: Path, around: Surroundings) -> None:
    assert too_much(sizes(top, around, {"a": 50_000_000, "b/c": 49_000_000})) is None


def test_what_makes_it_large_is_named_as_deep_as_it_is(top: Path, around: Surroundings) -> None:
    files = {"data/raw/one/x": 300_000_000, "data/raw/two/y": 290_000_000, "data/small": 1_000_000}
    found = too_much(sizes(top, around, {**files, "src/a": 10_000, "w/weights[1].bin": 200_000_000}))
    assert found is not None
    assert found.level == "warning"
    assert found.message == (
        "nothing ignores 5 files (791 MB) here: most of it is in "
        "`data/raw/` (2 files, 590 MB), `w/weights[1].bin` (200 MB)"
    )
    assert found.hint == r"if it is not needed there, write into .chiselignore: /data/raw/ /w/weights\[1].bin"


def test_many_files_are_named_by_their_number(top: Path, around: Surroundings) -> None:
    status = write(top / "a", "x" * 1000).stat()
    paths = [f"node/m{number % 50}/{number}" for number in range(10_500)] + ["src/a"]
    found = too_much(Listing(top, {path: Entry(path, "f", status) for path in paths}, (), ()))
    assert found is not None
    assert found.message == (
        "nothing ignores 10,501 files (11 MB) here: most of it is in `node/` (10,500 files, 10 MB)"
    )


def test_a_tree_that_is_wide_names_none(top: Path, around: Surroundings) -> None:
    status = write(top / "a", "x").stat()
    paths = [f"d{number % 100}/{number}" for number in range(20_000)]
    found = too_much(Listing(top, {path: Entry(path, "f", status) for path in paths}, (), ()))
    assert found is not None
    assert found.message == "nothing ignores 20,000 files (0 MB) here, spread over many directories"


@pytest.mark.parametrize(("path", "is_directory"), [("a b ", False), ("x/[a]*?", False), ("#a", True), ("!a\\", False)])
def test_the_line_that_is_offered_matches_that_path(path: str, is_directory: bool) -> None:
    line = ignoring_line(path, is_directory=is_directory)
    assert matching(line.encode()).match(path.encode(), is_directory=is_directory) is not None
    assert matching(line.encode()).match(b"y/" + path.encode(), is_directory=is_directory) is None
