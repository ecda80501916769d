"""Say of single paths whether a sync would send them, and why. No droplet is asked, none has to be up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import to_thread

from chisel.events import PathExplained

if TYPE_CHECKING:
    from chisel.client.client import Client
    from chisel.sync.explain import Explained


async def explain(client: Client, paths: Sequence[str], *, root: Path | str | None = None) -> list[Explained]:
    """Explain paths, relative to where the user stands, for the tree that `sync` with this root means.

    Raises UsageError when the root is no directory.
    """
    from chisel.sync.explain import explain as explain_paths
    from chisel.sync.ignore import surroundings_of

    tree = await client.root_to_sync(root)
    work = partial(explain_paths, tree, paths, cwd=client.where.cwd, surroundings=surroundings_of(client.where.environ))
    found = await to_thread.run_sync(work)
    for one in found:
        client.sink.emit(
            PathExplained(
                path=one.path,
                is_sent=one.is_sent,
                because=one.because,
                source=one.source,
                line=one.line,
                pattern=one.pattern,
                detail=one.detail,
            )
        )
    await client.sink.drain()
    return found
