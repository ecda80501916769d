"""Read what a token may do from how the API refuses requests that cannot succeed. Pure.

A missing scope is a 403. A request that the token may make, but that names nothing or says nothing, is a 404, 400 or
422 (API reference, 2026-08; that scopes are checked before bodies and ids are read is not said there, and untested).
"""

from __future__ import annotations

from collections.abc import Mapping

from chisel.model import Abilities

IMPOSSIBLE_ID = 2**53 - 1
"""No droplet's id: they are counted up, and were below 10^9 in 2026."""
IMPOSSIBLE_TAG = "chisel-there-is-no-such-tag"
IMPOSSIBLE_FINGERPRINT = ":".join(["00"] * 16)
SCOPES = {
    "create droplets": "droplet:create",
    "read droplets": "droplet:read",
    "delete droplets": "droplet:delete",
    "power droplets": "droplet:update",
    "register SSH keys": "ssh_key:create",
    "read SSH keys": "ssh_key:read",
    "make tags": "tag:create",
    "delete tags": "tag:delete",
    "read the account": "account:read",
    "read sizes": "sizes:read",
}
"""The scope that each ability needs, in DigitalOcean's words."""
_MAY = frozenset({200, 201, 202, 204, 400, 404, 409, 422})


def told_by(status: int | None) -> bool | None:
    """Return whether the token may do what was answered so; None when that does not tell."""
    if status == 403:
        return False
    return True if status in _MAY else None


def judged(found: Mapping[str, bool | None]) -> Abilities:
    """Put the answers together."""
    known = {"delete droplets", "create droplets", "read droplets"}
    return Abilities(
        can_delete=found.get("delete droplets"),
        can_create=found.get("create droplets"),
        others=tuple(what for what, may in found.items() if may and what not in known),
        unknown=tuple(what for what, may in found.items() if may is None),
        missing_scopes=tuple(sorted(SCOPES[what] for what, may in found.items() if may is False)),
    )
