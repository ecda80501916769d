"""Word what a pull or a push moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chisel.model import PullResult, PushResult
from chisel.render import words

_MOST_LINES = 200


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
