"""Compare what is sent with what git says, on random trees with random ignore files.

    python -m tests.torture.ignore_rules [CASES [SEED]]

Each case is a work tree made by hand with names and patterns from a small alphabet of everything that is odd, so that
most patterns match something. Three ways to the same answer are compared with `git ls-files -co --exclude-standard`:
git's list, our rules with git's index, our rules with our own reader of the index. And each line that decides, with
what `git check-ignore -v` prints, for paths that exist and for some that do not.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from chisel.sync.explain import explain
from chisel.sync.ignore import Rules, Surroundings
from chisel.sync.listing import Walk

NAMES = [
    *(b"a", b"b", b"ab", b"A", b"aB", b"a.c", b"a.o", b".a", b"a b", b"a ", b" a", b"#a", b"!a", b"[a]", b"a]", b"a-b"),
    *(b"\xc3\xa9", b"\xff", b"a\nb", b"a\\", b"a\tb", b"*", b"foo", b"foobar", b"bar", b"x.tmp", b"^", b"{a,b}"),
]
PIECES = [
    *(b"a", b"b", b"A", b"B", b".", b"c", b"o", b"foo", b"bar", b"/", b"/", b"/", b"*", b"*", b"*", b"**", b"**/"),
    *(b"/**", b"***", b"?", b"[", b"]", b"[ab]", b"[!a]", b"[^b]", b"[a-b]", b"[A-Z]", b"[]a]", b"[]-b]", b"[a-]"),
    *(b"[[:upper:]]", b"[![:lower:]]", b"[[:alnum:]]", b"[[:foo:]]", b"[[:al", b"[[:]", b"[\\]]", b"[a\\-b]", b"[\\"),
    *(
        b"\\",
        b"\\*",
        b"\\?",
        b"\\a",
        b"\\A",
        b"\\ ",
        b" ",
        b"\t",
        b"\r",
        b"#",
        b"!",
        b"\\#",
        b"\\!",
        b"\xc3\xa9",
        b"\xff",
    ),
    *(b"-", b"^", b"{a,b}", b"\x0b", b"[[:space:]]", b"[[:punct:]]", b"[/]", b"[a/b]", b"\\/"),
]
HEAD = "ref: refs/heads/main\n"


@dataclass
class Case:
    """One random tree; `root` is what is synced, `top` the work tree."""

    top: Path
    root: Path
    home: Path
    folds_case: bool
    has_nested: list[str] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(self, *words: str, cwd: Path | None = None, data: bytes = b"") -> bytes:
        environ = {**self.environ, "LC_ALL": "C"}
        command = ["git", "-C", str(cwd or self.top), *words]
        ended = subprocess.run(command, input=data, capture_output=True, env=environ, check=False)
        assert ended.returncode in (0, 1), ended.stderr
        return ended.stdout


def make_case(chance: random.Random, place: Path) -> Case:
    """Make a tree below an empty directory."""
    top = place / "top"
    case = Case(top, top, place / "home", folds_case=chance.random() < 0.2)
    _repository(top, ignores_case=case.folds_case)
    (place / "home" / ".config" / "git").mkdir(parents=True)
    folders = _grow(chance, top)
    for folder in folders:
        if chance.random() < (0.9 if folder == top else 0.25):
            _write_patterns(chance, folder / ".gitignore")
    if chance.random() < 0.3:
        _write_patterns(chance, top / ".git" / "info" / "exclude")
    if chance.random() < 0.3:
        _write_patterns(chance, place / "home" / ".config" / "git" / "ignore")
    elif chance.random() < 0.3:
        _write_patterns(chance, place / "home" / "mine")
        with (top / ".git" / "config").open("a") as config:
            config.write("[core]\n\texcludesFile = ~/mine\n")
    # Not where case is folded on a disk that does not: a file and a repository inside could be one name for git.
    nested = [folder for folder in folders if folder != top and not case.folds_case and chance.random() < 0.08]
    for folder in nested:
        _repository(folder)
        if chance.random() < 0.5:
            _write_patterns(chance, folder / ".git" / "info" / "exclude")
        case.has_nested.append(os.path.relpath(folder, top))
    if chance.random() < 0.4:
        _track(chance, case)
    inner = [folder for folder in folders if folder != top and not nested]
    if inner and chance.random() < 0.15:
        case.root = chance.choice(inner)
    return case


def _repository(top: Path, *, ignores_case: bool = False) -> None:
    for name in ("objects", "refs", "info"):
        (top / ".git" / name).mkdir(parents=True, exist_ok=True)
    (top / ".git" / "HEAD").write_text(HEAD)
    (top / ".git" / "config").write_text("[core]\n\tbare = false\n" + "\tignorecase = true\n" * ignores_case)


def _grow(chance: random.Random, top: Path) -> list[Path]:
    folders = [top]
    for _ in range(chance.randrange(2, 8)):
        folder = Path(os.fsdecode(os.path.join(os.fsencode(chance.choice(folders)), chance.choice(NAMES))))
        if folder not in folders and not os.path.lexists(folder):
            folder.mkdir()
            folders.append(folder)
    for _ in range(chance.randrange(5, 30)):
        path = os.path.join(os.fsencode(chance.choice(folders)), chance.choice(NAMES))
        if not os.path.lexists(path):
            if chance.random() < 0.1:
                os.symlink(b"a", path)
            else:
                Path(os.fsdecode(path)).touch()
    return folders


def _write_patterns(chance: random.Random, path: Path) -> None:
    lines = []
    for _ in range(chance.randrange(1, 7)):
        line = b"".join(chance.choice(PIECES) for _ in range(chance.choice((1, 1, 2, 2, 3, 3, 4, 5, 7))))
        if chance.random() < 0.25:
            line = chance.choice(NAMES) + chance.choice((b"", b"/", b"/*", b"/**"))
        if chance.random() < 0.25:
            line = b"!" + line
        if chance.random() < 0.1:
            line = b"/" + line
        lines.append(line + chance.choice((b"", b"", b"", b"/", b" ", b"\r")))
    text = b"\n".join(lines) + chance.choice((b"", b"\n", b"\r\n"))
    path.write_bytes((b"\xef\xbb\xbf" if chance.random() < 0.05 else b"") + text)


def _track(chance: random.Random, case: Case) -> None:
    found = [path for path in _files(case.top) if not any(path.startswith(one + "/") for one in case.has_nested)]
    chosen = [path for path in found if chance.random() < 0.3]
    rows = [f"100644 {'0' * 39}1 0\t{path}" for path in chosen]
    rows += [f"160000 {'0' * 39}1 0\t{path}" for path in case.has_nested if chance.random() < 0.5]
    version = chance.choice(("2", "3", "4"))
    case.git("update-index", "-z", "--index-version", version, "--index-info", data=os.fsencode("\0".join(rows)))


def _files(top: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(top):
        if ".git" in folders:
            folders.remove(".git")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), top) for name in [*files, *links]]
    return found


# -- what git says


def sent_by_git(case: Case, root: Path, prefix: str = "") -> set[str]:
    """Return the files git lists below a directory, those of repositories inside by these."""
    listed = os.fsdecode(case.git("ls-files", "-co", "--exclude-standard", "-z", cwd=root)).split("\0")
    found = set()
    for path in filter(None, listed):
        whole = root / path.rstrip("/")
        if whole.is_dir() and not whole.is_symlink():
            if (whole / ".git").exists():
                found |= sent_by_git(case, whole, f"{prefix}{path.rstrip('/')}/")
        elif os.path.lexists(whole) and not _is_behind_link(root, path):
            found.add(prefix + path)
    return found


def _is_behind_link(root: Path, path: str) -> bool:
    return any((root / folder).is_symlink() for folder in list(Path(path).parents)[:-1])


def lines_of_git(case: Case, paths: Iterable[str]) -> dict[str, tuple[str, int, str] | None]:
    """Return, by path, the source, line and pattern that `git check-ignore` prints."""
    asked = os.fsencode("\0".join(paths))
    said = case.git("check-ignore", "-v", "-n", "--no-index", "--stdin", "-z", data=asked)
    words = os.fsdecode(said).split("\0")
    rows = zip(*(iter(words[:-1]),) * 4, strict=True)
    return {path: (source, int(line), pattern) if line else None for source, line, pattern, path in rows}


# -- what we say


def sent_by_us(case: Case, around: Surroundings, *, trusts_listing: bool) -> set[str]:
    rules = Rules(case.root, around, trusts_listing=trusts_listing)
    walk = Walk(rules)
    walk.run()
    return {path for path, entry in walk.entries.items() if entry.kind != "d"}


def line_of_ours(rules: Rules, path: str) -> tuple[str, int, str] | None:
    whole = os.path.join(rules.root, path)
    found = rules.git_line(path, is_directory=os.path.isdir(whole) and not os.path.islink(whole))
    if found is None:
        return None
    assert found.source is not None
    assert found.line is not None
    return found.source, found.line, found.pattern or ""


def check(case: Case, chance: random.Random) -> None:
    """Compare all of it; raises AssertionError."""
    git = shutil.which("git")
    with_git = Surroundings(git, case.home, case.home / ".config", case.environ)
    without = Surroundings(None, case.home, case.home / ".config", case.environ)
    is_root_ignored = bool(Rules(case.root, with_git, trusts_listing=True).notices)
    if not is_root_ignored:
        expected = sent_by_git(case, case.root)
        for name, around, trusts in (("list", with_git, True), ("rules", with_git, False), ("own", without, False)):
            found = sent_by_us(case, around, trusts_listing=trusts)
            if case.folds_case:
                # Where case counts on disk but not for git, it lists one of two names that fold together: both are one.
                found, expected = {path.lower() for path in found}, {path.lower() for path in expected}
            assert found == expected, f"{name}: too much {found - expected}, missing {expected - found}"
    if case.root == case.top and not case.has_nested:
        check_lines(case, chance, Rules(case.root, with_git, trusts_listing=False))
    check_on_top(case, chance, with_git, without)


def check_on_top(case: Case, chance: random.Random, with_git: Surroundings, without: Surroundings) -> None:
    """Put `.chiselignore` files on top, which git knows nothing of: the three ways to the list, and single answers."""
    folders = [case.top, *(case.top / folder for path in _files(case.top) for folder in _above(path))]
    for _ in range(chance.randrange(1, 4)):
        _write_patterns(chance, chance.choice(folders) / ".chiselignore")
    expected = sent_by_us(case, with_git, trusts_listing=True)
    for around in (with_git, without):
        found = sent_by_us(case, around, trusts_listing=False)
        assert found == expected, f"on top: too much {found - expected}, missing {expected - found}"
    paths = [path for path in _files(case.root) if not _is_behind_link(case.root, path)]
    single = {one.path for one in explain(case.root, paths, surroundings=with_git) if one.is_sent}
    assert single == expected & set(paths), f"explained: {single ^ (expected & set(paths))}"


def check_lines(case: Case, chance: random.Random, rules: Rules) -> None:
    paths = [path for path in _files(case.top) if not _is_behind_link(case.top, path)]
    paths += sorted({folder for path in paths for folder in _above(path)})
    for _ in range(10):
        path = "/".join(os.fsdecode(chance.choice(NAMES)) for _ in range(chance.randrange(1, 4)))
        whole = case.top / path
        if not whole.is_symlink() and not _is_behind_link(case.top, path) and not os.path.lexists(whole):
            paths.append(path)
    lines = lines_of_git(case, paths)
    for path in paths:
        ours = line_of_ours(rules, path)
        assert ours == lines[path], f"{path!r}: git says {lines[path]}, we {ours}"


def _above(path: str) -> list[str]:
    return [str(folder) for folder in list(Path(path).parents)[:-1]]


def run(cases: int, seed: int, place: Path) -> None:
    """Check so many cases; the error names the seed of the one that failed."""
    for number in range(seed, seed + cases):
        chance = random.Random(number)
        inner = place / str(number)
        inner.mkdir()
        try:
            check(make_case(chance, inner), chance)
        except AssertionError as error:
            error.add_note(f"case {number}, in {inner}")
            raise
        shutil.rmtree(inner)


if __name__ == "__main__":
    how_many = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    first = int(sys.argv[2]) if len(sys.argv) > 2 else random.SystemRandom().randrange(10**9)
    scratch = Path(tempfile.mkdtemp(prefix="chisel-ignore-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    print(f"{how_many} cases from seed {first}")
    run(how_many, first, scratch)
    print("all sent as git lists them")
    scratch.rmdir()
