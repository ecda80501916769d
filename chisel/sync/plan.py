"""Decide what has to change on a droplet. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from chisel.node.tree import DIRECTORY, FILE, LINK, Item


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes a working copy equal to a local tree.

    `contents` are digests that have to be sent, each with one local path that holds it; `copies` are digests that the
    droplet has already, each with a path of its working copy. `repaired` are paths that somebody changed there.
    """

    puts: tuple[Item, ...]
    links: tuple[Item, ...]
    directories: tuple[Item, ...]
    modes: tuple[Item, ...]
    deletes: tuple[str, ...]
    contents: Mapping[str, Item]
    copies: Mapping[str, str]
    repaired: tuple[str, ...]

    @property
    def content_bytes(self) -> int:
        """Return how many bytes of content have to be sent, before compression."""
        return sum(item.size for item in self.contents.values())


def make_plan(local: Mapping[str, Item], present: Mapping[str, Item], drift: Collection[str] = ()) -> Plan:
    """Compare a local tree with what is present of the last pushed manifest.

    A file whose content is equal keeps the droplet's time, so that nothing is rebuilt for it. Deleted is only what the
    manifest knows: results of the droplet's own never are.
    """
    changed = [item for path, item in sorted(local.items()) if not _is_there(item, present.get(path))]
    modes = [item for item in changed if _has_content(item, present.get(item.path))]
    puts = [item for item in changed if item.kind == FILE and not _has_content(item, present.get(item.path))]
    held = {item.digest: path for path, item in sorted(present.items()) if item.kind == FILE and item.digest}
    wanted = {item.digest: item for item in reversed(puts)}
    return Plan(
        puts=tuple(puts),
        links=tuple(item for item in changed if item.kind == LINK),
        directories=tuple(item for item in changed if item.kind == DIRECTORY),
        modes=tuple(modes),
        deletes=tuple(sorted(path for path in present if path not in local)),
        contents={digest: item for digest, item in wanted.items() if digest not in held},
        copies={digest: held[digest] for digest in wanted if digest in held},
        repaired=tuple(sorted(path for path in drift if path in local)),
    )


def _is_there(item: Item, there: Item | None) -> bool:
    return there is not None and item.is_like(there)


def _has_content(item: Item, there: Item | None) -> bool:
    return item.kind == FILE and there is not None and there.kind == FILE and item.digest == there.digest
