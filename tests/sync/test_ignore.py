"""What is ignored is what git ignores, to the byte; `.chiselignore` wins; no repository can make git run a program."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from chisel.sync.ignore import Rules, Surroundings, git_facts, surroundings_of
from chisel.sync.ignore.git import GitRefused, list_files, run_git
from chisel.sync.ignore.pattern import PatternFile, parse_patterns
from chisel.sync.ignore.repository import UnknownIndex, read_tracked, repository_at
from tests.sync.test_push import write
from tests.torture import ignore_rules

ROOT = Path(__file__).parents[2]
CASES = 60
SEED = 1


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    return place


@pytest.fixture
def around(home: Path) -> Surroundings:
    environ = {"PATH": os.environ["PATH"], "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "GIT_DIR": "/nowhere"}
    return surroundings_of(environ)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    place = tmp_path / "top"
    place.mkdir()
    return place


def git(place: Path, *words: str) -> str:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(place), "-c", "user.name=t", "-c", "user.email=t@t", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout


def without_git(around: Surroundings) -> Surroundings:
    return Surroundings(None, around.home, around.config_home, around.environ)


def is_sent(rules: Rules, path: str) -> bool:
    return rules.decide(path.rstrip("/"), is_directory=path.endswith("/")).is_sent


def matching(line: bytes, *, folds_case: bool = False) -> PatternFile:
    return PatternFile("x", b"", parse_patterns(line, folds_case=folds_case))


@pytest.mark.real_part("git")
@pytest.mark.timeout(60)
def test_random_trees_are_sent_as_git_lists_them(tmp_path: Path) -> None:
    ignore_rules.run(CASES, SEED, tmp_path)


@pytest.mark.parametrize(
    ("line", "path", "matches"),
    [
        (b"a**/b", b"ab", True),  # what stands before the first wildcard is compared apart
        (b"a**/b", b"ax/y/b", True),
        (b"x/a**/b", b"x/ab", True),
        (b"x/?**/b", b"x/ab/b", True),
        (b"x/?**/b", b"x/ab/c/b", False),  # here the ** does not follow a slash: it is a *
        (b"**\\/b", b"a/b", True),
        (b"**\\/b", b"b", False),
        (b"/a/**", b"a/b/c", True),
        (b"/a/**", b"a", False),
        (b"?", "é".encode(), False),  # one byte, not one letter
        (b"??", "é".encode(), True),
        (b"[[:foo:]]*", b"f", False),
        (b"[a", b"[a", False),
        (b"[a", b"a", False),
        (b"[]-b]", b"^", True),
        (b"[[:space:]]", b"\x0b", False),  # git's tables know no vertical tab
        (b"a\\", b"a\\", False),
        (b"a\\ ", b"a ", True),
        (b"a   ", b"a", True),
        (b"a\t", b"a", False),
        (b"a \\", b"a ", False),
        (b"a\r", b"a", True),
        (b"a\r\r", b"a\r", True),
        (b"\\#a", b"#a", True),
        (b"\\!a", b"!a", True),
        (b"a\0b", b"a", True),
        (b"*", b"new\nline", True),
        (b"\xff", b"\xff", True),
        (b"{a,b}", b"a", False),
    ],
)
def test_a_pattern_matches_what_it_matches_in_git(line: bytes, path: bytes, matches: bool) -> None:
    assert (matching(line).match(path, is_directory=False) is not None) is matches


@pytest.mark.parametrize(
    ("line", "path", "matches"),
    [
        (b"ABC", b"abc", True),
        (b"*.O", b"a.o", True),
        (b"a/B?", b"A/bc", True),
        (b"[A-C]x", b"bX", True),
        (b"[A]x", b"ax", False),  # a range is folded, a letter in a class is not
        (b"\\Ax?", b"axy", False),  # nor is an escaped one
        (b"[[:upper:]]x", b"ax", True),
    ],
)
def test_case_is_folded_where_git_folds_it(line: bytes, path: bytes, matches: bool) -> None:
    assert (matching(line, folds_case=True).match(path, is_directory=False) is not None) is matches


def test_lines_are_counted_and_a_byte_order_mark_is_no_part_of_them() -> None:
    found = list(parse_patterns(b"\xef\xbb\xbf# comment\r\n\r\n!a/ \r\n/\r\nb"))
    assert [(one.line, one.text, one.is_negative, one.needs_directory) for one in found] == [
        (3, "!a/", True, True),
        (5, "b", False, False),
    ]


@pytest.mark.timeout(5)
def test_a_hostile_pattern_does_not_run_away() -> None:
    name = b"a" * 255
    for line in (b"*a" * 60 + b"b", b"x/" + b"*a" * 60 + b"b", b"**/" + b"*a" * 60 + b"/b", b"**/a/" * 60 + b"b"):
        for path in (name, b"x/" + name, b"/".join([b"a"] * 120)):
            assert matching(line).match(path, is_directory=False) is None


# -- .chiselignore


CHISEL = {
    ".gitignore": "results/\n*.o\nbuild/\n",
    ".chiselignore": "!results/keep.csv\n*.md\n!/build/\nbig/\n!big/a\n",
    "sub/.chiselignore": "!notes.md\n!x.o\n",
}
CHISEL_PATHS = {
    "a.c": True,
    "a.o": False,
    "results/keep.csv": True,
    "results/other.csv": False,
    "results/deep/keep.csv": False,
    "README.md": False,
    "sub/notes.md": True,
    "sub/other.md": False,
    "sub/x.o": True,
    "build/x": True,
    "build/x.o": False,
    "build/deep/x": True,
    "big/a": False,
    "sub/build/x": False,
}


def chisel_tree(top: Path) -> None:
    for path, text in CHISEL.items():
        write(top / path, text)
    for path in CHISEL_PATHS:
        write(top / path, path)


@pytest.mark.real_part("git")
@pytest.mark.parametrize("kind", ["list", "rules", "own", "outside"])
def test_chiselignore_wins_over_git_both_ways(top: Path, around: Surroundings, kind: str) -> None:
    chisel_tree(top)
    if kind != "outside":
        git(top, "init", "-q")
        git(top, "add", "-f", "README.md", "big/a")  # tracked, and left out all the same
    used = without_git(around) if kind == "own" else around
    rules = Rules(top, used, trusts_listing=kind == "list")
    assert {path: is_sent(rules, path) for path in CHISEL_PATHS} == CHISEL_PATHS
    assert rules.notices == []


@pytest.mark.real_part("git")
def test_chiselignore_reaches_into_a_repository_inside(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".chiselignore", "*.bin\n")
    write(top / "inner" / ".gitignore", "*.o\n")
    git(top / "inner", "init", "-q")
    for name in ("a.c", "a.o", "a.bin"):
        write(top / "inner" / name)
    rules = Rules(top, around, trusts_listing=True)
    assert [is_sent(rules, f"inner/{name}") for name in ("a.c", "a.o", "a.bin", ".git")] == [True, False, False, False]


@pytest.mark.real_part("git")
def test_chiselignore_of_the_top_holds_for_a_directory_of_it(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".chiselignore", "*.bin\n/kernels/skip/\n")
    for name in ("a.c", "a.bin", "skip/a"):
        write(top / "kernels" / name)
    rules = Rules(top / "kernels", around, trusts_listing=True)
    assert [is_sent(rules, path) for path in ("a.c", "a.bin", "skip/")] == [True, False, False]
    assert rules.decide("a.bin", is_directory=False).source == str(top / ".chiselignore")


# -- kinds of repositories


@pytest.mark.real_part("git")
def test_a_linked_work_tree_and_a_submodule_have_their_rules(tmp_path: Path, top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "*.o\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "x")
    git(top, "worktree", "add", "-q", str(tmp_path / "linked"))
    (top / ".git" / "info" / "exclude").write_text("*.log\n")
    library = tmp_path / "library"
    write(library / ".gitignore", "*.tmp\n")
    git(library, "init", "-q")
    git(library, "add", ".")
    git(library, "commit", "-qm", "x")
    linked = tmp_path / "linked"
    git(linked, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "sub")
    for used, trusts in ((around, True), (around, False), (without_git(around), False)):
        rules = Rules(linked, used, trusts_listing=trusts)
        for path, expected in {
            **{"a.o": False, "a.log": False, ".git": False, ".gitmodules": True, ".gitignore": True},
            **{"sub/": True, "sub/.git": False, "sub/a.tmp": False, "sub/.gitignore": True},
        }.items():
            assert is_sent(rules, path) is expected, (path, used.git, trusts)
        # The submodule's rules are its own: the outer ones do not reach into it.
        assert rules.place("sub").decide("a.o", is_directory=False).by != "git" or trusts
        assert rules.notices == []


@pytest.mark.real_part("git")
def test_a_git_directory_that_leads_nowhere_makes_no_repository(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "*.o\n")
    write(top / "moved" / ".git", "gitdir: /nowhere\n")
    (top / "empty" / ".git").mkdir(parents=True)
    git(write(top / "broken" / "x").parent, "init", "-q")
    (top / "broken" / ".git" / "HEAD").write_text("nonsense")
    for folder in ("moved", "empty", "broken"):
        write(top / folder / "a.c")
        write(top / folder / "a.o")
    rules = Rules(top, around, trusts_listing=True)
    for folder in ("moved", "empty", "broken"):
        assert [is_sent(rules, f"{folder}/{name}") for name in ("a.c", "a.o", ".git")] == [True, False, False], folder
    assert rules.notices == []


@pytest.mark.real_part("git")
def test_a_repository_that_git_is_too_old_for_is_not_taken_for_the_one_around_it(
    top: Path, around: Surroundings
) -> None:
    git(top, "init", "-q")
    inner = top / "inner"
    git(write(inner / "a.o").parent, "init", "-q")
    git(inner, "add", "a.o")
    write(inner / "b.o")
    write(inner / ".gitignore", "*.o\n")
    git(inner, "config", "core.repositoryFormatVersion", "99")
    rules = Rules(top, around, trusts_listing=True)
    assert [is_sent(rules, f"inner/{name}") for name in ("a.o", "b.o", "c.c")] == [True, False, True]
    assert len(rules.notices) == 1


@pytest.mark.real_part("git")
def test_a_root_that_is_ignored_itself_is_sent_by_its_own_rules(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "/build/\n*.o\n")
    write(top / "build" / "out" / ".gitignore", "*.tmp\n")
    for name in ("a", "a.tmp", "a.o"):
        write(top / "build" / "out" / name)
    rules = Rules(top / "build" / "out", around, trusts_listing=True)
    assert [is_sent(rules, name) for name in ("a", "a.tmp", "a.o")] == [True, False, True]
    assert rules.notices == [
        f"`{top}/build/out` itself is ignored ({top}/.gitignore:1: /build/): " + ("only the rules found in it hold")
    ]


@pytest.mark.real_part("git")
@pytest.mark.parametrize("config", ["[core]\n\tbare = true\n", "[core]\n\tworktree = /nowhere\n", "[core\n"])
def test_an_odd_repository_is_read_without_git_and_that_is_said(top: Path, around: Surroundings, config: str) -> None:
    git(top, "init", "-q")
    for name in ("a.o", "b.o", "a.c"):
        write(top / name)
    git(top, "add", "-f", "a.o")
    write(top / ".gitignore", "*.o\n")
    with (top / ".git" / "config").open("a") as file:
        file.write(config)
    rules = Rules(top, around, trusts_listing=True)
    assert [is_sent(rules, name) for name in ("a.o", "b.o", "a.c")] == [True, False, True]
    assert len(rules.notices) == 1
    assert "its files are read instead" in rules.notices[0]


@pytest.mark.real_part("git", "root")
def test_a_repository_of_somebody_else_is_not_forced_open(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    write(top / ".gitignore", "*.o\n")
    for name in ("a.o", "b.o"):
        write(top / name)
    git(top, "add", "-f", "a.o")
    for place in (top, top / ".git"):
        os.chown(place, 12345, 12345)
    with pytest.raises(GitRefused, match="dubious ownership"):
        list_files(around, str(top))
    rules = Rules(top, around, trusts_listing=True)
    assert [is_sent(rules, name) for name in ("a.o", "b.o")] == [True, False]
    assert "dubious ownership" in rules.notices[0]


@pytest.mark.real_part("git")
@pytest.mark.parametrize("kind", ["split", "damaged"])
def test_an_index_that_only_git_reads_is_said(top: Path, around: Surroundings, kind: str) -> None:
    git(top, "init", "-q")
    write(top / "a.o")
    git(top, "add", "a.o")
    write(top / ".gitignore", "*.o\n")
    if kind == "split":
        git(top, "update-index", "--split-index")
    else:
        (top / ".git" / "index").write_bytes((top / ".git" / "index").read_bytes()[:90])
    found = repository_at(str(top))
    assert found is not None
    with pytest.raises(UnknownIndex):
        read_tracked(found)
    rules = Rules(top, without_git(around), trusts_listing=True)
    assert not is_sent(rules, "a.o")
    assert "what is ignored is not sent" in rules.notices[0]


@pytest.mark.real_part("git")
def test_the_index_of_a_sha256_repository_is_read(top: Path) -> None:
    git(top, "init", "-q", "--object-format=sha256")
    for name in ("a", "b/c", "x" * 200):
        write(top / name)
    git(top, "add", ".")
    found = repository_at(str(top))
    assert found is not None
    assert read_tracked(found) == {"a", "b/c", "x" * 200}


# -- a hostile repository


@pytest.mark.real_part("git")
def test_nothing_a_repository_configures_is_executed(tmp_path: Path, top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    mark = tmp_path / "mark"
    program = write(tmp_path / "program", f"#!/bin/sh\necho \"$0 $*\" >> '{mark}'\ncat\n")
    program.chmod(0o755)
    write(top / "a.c", "one")
    write(top / ".gitignore", "*.o\n")
    write(top / ".gitattributes", "*.c filter=evil\n*.h filter=a.b\n")
    git(top, "add", ".")
    git(top, "commit", "-qm", "x")
    for hook in ("post-index-change", "fsmonitor-watchman", "pre-commit"):
        shutil.copy(program, top / ".git" / "hooks" / hook)
    names = ("core.fsmonitor", "core.sshCommand", "core.pager", "core.editor", "core.gitProxy", "core.askPass")
    for name in (*names, "filter.evil.clean", "filter.evil.process", "filter.a.b.clean", "diff.external"):
        git(top, "config", name, str(program))
    git(top, "config", "filter.evil.required", "true")
    git(top, "config", "core.hooksPath", str(top / ".git" / "hooks"))
    write(top / "a.c", "two")
    facts = git_facts(top, around)
    assert facts is not None
    assert facts.is_dirty
    assert list_files(around, str(top)).tracked == {"a.c", ".gitignore", ".gitattributes"}
    assert not is_sent(Rules(top, around, trusts_listing=True), "a.o")
    assert not mark.exists(), mark.read_text()
    subprocess.run(["git", "-C", str(top), "status"], capture_output=True, check=False)
    assert mark.exists(), "the trap is none"


@pytest.mark.real_part("git")
def test_a_filter_that_cannot_be_switched_off_ends_the_question(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    with (top / ".git" / "config").open("a") as file:
        file.write('[filter "a=b"]\n\tclean = touch /nowhere\n')
    assert git_facts(top, around) is None


@pytest.mark.real_part("git")
def test_a_git_that_hangs_is_given_up(tmp_path: Path, top: Path, around: Surroundings) -> None:
    slow = write(tmp_path / "bin" / "git", "#!/bin/sh\nexec sleep 60\n")
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(GitRefused, match="no answer within"):
        run_git(Surroundings(str(slow), top, top, around.environ), str(top), "ls-files", deadline_s=0.1)


# -- facts


@pytest.mark.real_part("git")
def test_a_branch_whose_name_is_no_text_can_be_recorded(top: Path, around: Surroundings) -> None:
    git(top, "init", "-q")
    (top / ".git" / "HEAD").write_bytes(b"ref: refs/heads/caf\xe9\n")
    facts = git_facts(top, around)
    assert facts is not None
    assert facts.branch == "caf\ufffd"
    orjson.dumps(facts)


@pytest.mark.real_part("git")
def test_revision_branch_and_dirt_are_told(top: Path, around: Surroundings) -> None:
    assert git_facts(top, around) is None
    git(top, "init", "-q", "-b", "feature/x")
    before = git_facts(top, around)
    assert before is not None
    assert (before.revision, before.is_dirty, before.branch) == (None, False, "feature/x")
    write(top / "sub" / "a")
    write(top / "other" / "b")
    git(top, "add", ".")
    git(top, "commit", "-qm", "x")
    clean = git_facts(top, around)
    assert clean is not None
    assert (clean.revision, clean.is_dirty) == (git(top, "rev-parse", "HEAD").strip(), False)
    write(top / "other" / "b", "new")
    assert git_facts(top, around).is_dirty  # type: ignore[union-attr]
    assert not git_facts(top / "sub", around).is_dirty, "what lies beside is not sent"  # type: ignore[union-attr]
    write(top / "sub" / "new\nfile")
    assert git_facts(top / "sub", around).is_dirty  # type: ignore[union-attr]
    git(top, "checkout", "-q", "--detach")
    assert git_facts(top, around).branch is None  # type: ignore[union-attr]


def test_without_an_environment_git_is_asked_with_the_process_own(
    top: Path, monkeypatch: pytest.MonkeyPatch, around: Surroundings
) -> None:
    git(top, "init", "-q")
    write(top / "a")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_WORK_TREE", "/")
    bare = Surroundings(around.git, around.home, around.config_home)
    assert list_files(bare, str(top)).others == {"a"}


@pytest.mark.real_part("git")
def test_the_torture_finds_what_is_wrong(tmp_path: Path) -> None:
    """Break one rule in a process of its own: the random trees have to show it."""
    broken = (
        "import sys; from pathlib import Path\n"
        "from chisel.sync.ignore import pattern; from tests.torture import ignore_rules\n"
        "pattern._without_trailing_spaces = lambda line: line.rstrip(b' ')\n"
        f"ignore_rules.run(600, {SEED}, Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", broken, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert "AssertionError" in ended.stderr
