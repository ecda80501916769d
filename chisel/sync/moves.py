"""Find what was only renamed: a directory is one move, whatever it holds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping

from chisel.node.tree import DIRECTORY, FILE, Item, relocated

Move = tuple[str, str]


def find_moves(wanted: Mapping[str, Item], there: Mapping[str, Item], stays: Container[str] = ()) -> list[Move]:
    """Return moves that bring contents of paths that are gone to new paths; each pair is of one kind.

    What `stays` is not wanted and not gone either.

    No move's source or target lies within another's, no target exists yet, and nothing wanted lies at a source. What a
    moved directory has that is not wanted, or is wanted with another content, is for the rest of the plan.
    """
    gone: dict[str, list[str]] = {}
    missing = sorted(there.keys() - wanted.keys())
    for path in missing:
        item = there[path]
        if item.kind == FILE and item.size and item.digest and path not in stays:
            gone.setdefault(item.digest, []).append(path)
    if not gone:
        return []
    pairs: list[Move] = []
    for path in sorted(wanted.keys() - there.keys()):
        item = wanted[path]
        if item.kind == FILE and item.digest in gone:
            candidates = gone[item.digest]
            best = max(candidates, key=lambda old: (_common_end(old, path), old))
            candidates.remove(best)
            if not candidates:
                del gone[item.digest]
            pairs.append((best, path))
    folders = _folders(pairs, missing, wanted, there, stays)
    single = [
        (old, new)
        for old, new in pairs
        if not any(relocated(old, *folder) is not None or relocated(new, *folder[::-1]) for folder in folders)
        and _is_free(new, there)
    ]
    return sorted(folders) + single


def _common_end(one: str, other: str) -> int:
    """Count the components that two paths have in common at their ends."""
    count = 0
    for first, second in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if first != second:
            break
        count += 1
    return count


def _folders(
    pairs: list[Move],
    missing: Iterable[str],
    wanted: Mapping[str, Item],
    there: Mapping[str, Item],
    stays: Container[str],
) -> list[Move]:
    """Return directories that were renamed: most of what they had is where it would be then.

    What is below a directory that is not wanted is among the `missing`.
    """
    votes: Counter[Move] = Counter()
    for old, new in pairs:
        common = _common_end(old, new)
        above, below = "/".join(old.split("/")[:-common]), "/".join(new.split("/")[:-common])
        if common and above and below:
            votes[above, below] += 1
    if not votes:
        return []
    kept_above = {above for path in there if path in stays for above in _above(path)}
    chosen: list[Move] = []
    sizes = Counter(above for path in missing if there[path].kind == FILE for above in _above(path))
    for (old, new), count in sorted(votes.items(), key=lambda one: (-one[1], one[0])):
        if (
            old in wanted
            or old in kept_above
            or not _is_directory(there.get(old))
            or not _is_directory(wanted.get(new))
        ):
            continue
        if not _is_free(new, there) or any(_overlap(old, o) or _overlap(new, n) for o, n in chosen):
            continue
        if 2 * count >= sizes[old]:
            chosen.append((old, new))
    return chosen


def _above(path: str) -> Iterator[str]:
    """Give the directories that a path lies in."""
    while path := path.rpartition("/")[0]:
        yield path


def _is_directory(item: Item | None) -> bool:
    return item is not None and item.kind == DIRECTORY


def _is_free(path: str, there: Mapping[str, Item]) -> bool:
    """Say whether a path can be made without removing anything that was pushed."""
    if path in there:
        return False
    while path := path.rpartition("/")[0]:
        if path in there and there[path].kind != DIRECTORY:
            return False
    return True


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}/") or other.startswith(f"{one}/")
