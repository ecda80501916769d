"""Judge where a symbolic link from a droplet leads: only one that stays inside the target is made."""

from __future__ import annotations

import os

from chisel.node.offer import Link


def inner_target(link: Link, root: str) -> bool:
    """Say whether a link stays inside `root` (a real path); one that leads nowhere yet is judged by its text.

    Going up is allowed at the start of its text only, where the directories above are known to be real: `a/../..` says
    nothing as long as `a` may be a link itself.
    """
    if link.target.startswith("/"):
        return False
    names = [name for name in link.target.split("/") if name not in {"", "."}]
    ups = next((index for index, name in enumerate(names) if name != ".."), len(names))
    if ".." in names[ups:] or ups > link.path.count("/"):
        return False
    place = os.path.join(root, os.path.dirname(link.path), link.target)
    try:
        real = os.path.realpath(place)
    except (OSError, ValueError):
        return False
    return real == root or real.startswith(root.rstrip("/") + "/")
