"""Word what a sync, a pull or a push moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chisel.model import PullResult, PushResult, SyncResult
from chisel.render import words

_MOST_LINES = 200
_MOST_NAMED = 20


def synced(one: SyncResult) -> str:
    """Say in one line what a sync did."""
    counts = ((one.sent_files, "sent"), (one.moved_files, "moved"), (one.deleted_files, "deleted"))
    parts = [f"{words.count(number, 'file')} {what}" for number, what in counts if number]
    came = ((one.sent_bytes, ""), (one.relayed_bytes, " from other droplets"))
    sizes = ", ".join(f"{words.size(size)}{whence}" for size, whence in came if size)
    size = f" ({sizes})" if sizes else ""
    done = ", ".join(parts) or ("changed" if sizes else "nothing to send")
    return f"{done}{size}, {one.total_files:,} in all, {words.duration(one.seconds)}"


def remarked(one: SyncResult) -> Iterator[str]:
    """Give the lines on what a sync found changed on the droplet, and what it did not send; not more than one reads."""
    yield from _changed_there("repaired", () if one.is_dry else one.repaired)
    yield from _changed_there("kept", one.kept)
    yield from (f"not sent: {path}" for path in one.skipped[:_MOST_LINES])
    if len(one.skipped) > _MOST_LINES:
        yield f"not sent: {len(one.skipped) - _MOST_LINES:,} more (--json names all)"


def _changed_there(what: str, paths: Sequence[str]) -> Iterator[str]:
    """Give a line for each path, one for a directory with what is in it."""
    below: dict[str, int] = {}
    top = ""
    for path in sorted(paths, key=lambda path: path.split("/")):
        if top and path.startswith(f"{top}/"):
            below[top] += 1
        else:
            top = path
            below[top] = 0
    for path, count in list(below.items())[:_MOST_NAMED]:
        within = f" and {words.count(count, 'path')} in it, which were" if count else ", which was"
        yield f"{what} `{path}`{within} changed there"
    if len(below) > _MOST_NAMED:
        yield f"{what} {len(below) - _MOST_NAMED:,} more (--json names all)"


def pulled(one: PullResult, into: str) -> Iterator[str]:
    """Give the lines for one droplet; none for one that brought nothing and failed."""
    if one.error and not one.files and not one.unchanged and not one.would:
        return
    unchanged = f", {one.unchanged:,} unchanged" if one.unchanged else ""
    if one.is_dry:
        for path, size in one.would[:_MOST_LINES]:
            yield f"{one.host}: would write {path} ({words.size(size)})"
        if len(one.would) > _MOST_LINES:
            yield f"{one.host}: and {len(one.would) - _MOST_LINES:,} more"
        total = words.size(sum(size for _, size in one.would))
        yield f"{one.host}: would write {words.count(len(one.would), 'file')} ({total}) into {into}{unchanged}"
        return
    yield (
        f"{one.host}: {words.count(one.files, 'file')} ({words.size(one.bytes)}) into {into}{unchanged},"
        f" {words.duration(one.seconds)}"
    )


def pushed(one: PushResult) -> Iterator[str]:
    """Give the lines for one droplet; none for one that took nothing and failed."""
    if one.error and not one.files and not one.unchanged:
        return
    unchanged = f", {one.unchanged:,} already there" if one.unchanged else ""
    sent = f", {words.size(one.sent_bytes)} sent" if one.files else ""
    sent += f", {words.size(one.relayed_bytes)} from other droplets" if one.relayed_bytes else ""
    yield (
        f"{one.host}: {words.count(one.files, 'file')} ({words.size(one.bytes)}) into {one.target}{unchanged}{sent},"
        f" {words.duration(one.seconds)}"
    )


def in_all(moved: Sequence[PullResult | PushResult]) -> str:
    """Return what all droplets come to."""
    failed = sum(one.error is not None for one in moved)
    said = f", {failed} failed" if failed else ""
    files, size = sum(one.files for one in moved), sum(one.bytes for one in moved)
    return f"{words.count(len(moved), 'droplet')}: {words.count(files, 'file')} ({words.size(size)}) in all{said}"
