"""Every path gets an answer, and the line that decides is the one that git names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chisel.sync.explain import Explained, explain
from chisel.sync.ignore import Surroundings, surroundings_of
from chisel.sync.listing import listing_of
from tests.support import User
from tests.sync.test_ignore import git
from tests.sync.test_push import write


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    (tmp_path / ".config" / "git").mkdir(parents=True)
    (tmp_path / ".config" / "git" / "ignore").write_text("*.swp\n")
    return surroundings_of({"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"})


@pytest.fixture
def top(tmp_path: Path) -> Path:
    place = tmp_path / "top"
    git(write(place / "a.c").parent, "init", "-q")
    write(place / ".gitignore", "*.o\nresults/\n!keep.o\n")
    write(place / "sub" / ".gitignore", "# mine\n/only\n")
    write(place / ".chiselignore", "*.md\n!/results/keep.csv\n")
    (place / ".git" / "info" / "exclude").write_text("*.log\n")
    for path in ("t.o", "sub/a", "results/keep.csv", "results/x", "README.md"):
        write(place / path)
    git(place, "add", "-f", "t.o")
    os.mkfifo(place / "fifo")
    (place / "link").symlink_to("sub")
    return place


def line(one: Explained) -> str:
    return f"{one.source}:{one.line}: {one.pattern}" if one.source else one.detail


@pytest.mark.real_part("git")
@pytest.mark.parametrize(
    ("path", "is_sent", "because", "expected"),
    [
        ("a.c", True, "default", "no rule ignores it"),
        ("new/file.c", True, "default", "no rule ignores it"),
        ("a.o", False, "git", ".gitignore:1: *.o"),
        ("keep.o", True, "git", ".gitignore:3: !keep.o"),
        ("t.o", True, "tracked", "git tracks it, although .gitignore:1: *.o ignores it"),
        ("sub/only", False, "git", "sub/.gitignore:2: /only"),
        ("sub/deep/only", True, "default", "no rule ignores it"),
        ("results/x", False, "git", ".gitignore:2: results/"),
        ("results/y/z", False, "git", ".gitignore:2: results/"),
        ("results", False, "git", ".gitignore:2: results/"),
        ("results/keep.csv", True, "chiselignore", ".chiselignore:2: !/results/keep.csv"),
        ("README.md", False, "chiselignore", ".chiselignore:1: *.md"),
        ("x.log", False, "git", ".git/info/exclude:1: *.log"),
        (".git/config", False, "built-in", "`.git` is never sent"),
        ("sub/.chisel-pull/part-1", False, "built-in", "a pull has it under way"),
        ("fifo", False, "special", "it is a FIFO"),
        ("link", True, "default", "no rule ignores it"),
        ("link/a", False, "link", "it is behind the symbolic link `link`"),
        (".", True, "default", "it is the root"),
        ("sub", True, "default", "no rule ignores it"),
        ("results-new/", True, "default", "no rule ignores it"),
    ],
)
def test_each_path_is_explained(
    top: Path, around: Surroundings, path: str, is_sent: bool, because: str, expected: str
) -> None:
    (one,) = explain(top, [path], surroundings=around)
    assert (one.is_sent, one.because, line(one)) == (is_sent, because, expected)


@pytest.mark.real_part("git")
def test_a_users_own_excludes_are_named_by_their_file(tmp_path: Path, top: Path, around: Surroundings) -> None:
    (one,) = explain(top, ["a.swp"], surroundings=around)
    assert line(one) == f"{tmp_path}/.config/git/ignore:1: *.swp"


@pytest.mark.real_part("git")
def test_what_is_explained_is_what_is_listed(top: Path, around: Surroundings) -> None:
    listed = listing_of(top, around)
    paths = [*listed.entries, *(one.path for one in listed.left_out)]
    for one in explain(top, paths, surroundings=around):
        assert one.is_sent is (one.path in listed.entries) or one.path == "results", one


@pytest.mark.real_part("git")
def test_paths_start_where_the_user_stands(tmp_path: Path, top: Path, around: Surroundings) -> None:
    inside, above, absolute, outside = explain(
        top, ["only", "../a.o", str(top / "a.c"), "../../x"], cwd=top / "sub", surroundings=around
    )
    assert (inside.path, above.path, absolute.path) == ("sub/only", "a.o", "a.c")
    assert (outside.is_sent, outside.because) == (False, "outside")


@pytest.mark.timeout(60)
@pytest.mark.real_part("git")
def test_the_command_explains_without_any_droplet(tmp_path: Path, top: Path) -> None:
    user = User(tmp_path / "nobody", top)
    said = user.does("sync", "--explain", "a.o", "--explain", "new\n.md", "--explain", "a.c").out.decode()
    assert said == (
        "not sent  a.o: .gitignore:1: *.o\n"
        "not sent  new\\n.md: .chiselignore:1: *.md\n"
        "sent      a.c: no rule ignores it\n"
    )
    ended = user.does("sync", "--json", "--explain", "a.o")
    (event,) = ended.of("path_explained")
    assert {name: event[name] for name in ("path", "is_sent", "because", "source", "line", "pattern")} == {
        **{"path": "a.o", "is_sent": False, "because": "git", "source": ".gitignore", "line": 1, "pattern": "*.o"}
    }
