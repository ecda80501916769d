"""Declare what the engines need of a cloud, whoever fulfils it."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from chisel.errors import NotFoundError
from chisel.model import Abilities, Account, CreateRequest, Droplet, DropletId, Size, Snapshot, SshKey


class Cloud(Protocol):
    """One account of a cloud.

    Calls may overlap within one event loop; a failed call leaves the object usable. Each call ends within the deadline
    the adapter was opened with, and a cancelled caller is freed at once: what was already sent may still happen.
    Every call may raise CloudError: CredentialsRefused (401, 403), NotFoundError (404), RateLimited (429, after the
    retries), plain CloudError for the rest. Calls that change nothing, and deletions, are retried by the adapter.
    """

    @property
    def ahead(self) -> timedelta:
        """Return how far the cloud's clock was ahead of this machine's at its last answer; zero where they agree."""

    async def account(self) -> Account:
        """Return what the account is and how many droplets it may have."""

    async def abilities(self) -> Abilities:
        """Find out what the token may do, with requests that cannot succeed: nothing is changed.

        Raises CredentialsRefused for a token that is not valid.
        """

    async def sizes(self) -> list[Size]:
        """Return every size with its price and the regions where it can be created now."""

    async def list_droplets(self, *, tag: str | None = None) -> list[Droplet]:
        """Return all droplets (with this tag), GPU and others, from all pages, by id.

        The list may lag a creation by seconds.
        """

    async def get_droplet(self, id: DropletId) -> Droplet:
        """Return one droplet; raises NotFoundError when it is gone, or not yet visible."""

    async def create_droplet(self, request: CreateRequest) -> Droplet:
        """Send one create request, exactly once, and return the new droplet.

        Raises OutcomeUnknown when no clear answer came: the droplet may exist, and only its attempt tag can tell.
        A cancelled call may have created it as well. Any other CloudError means that nothing was created.
        """

    async def destroy_droplet(self, id: DropletId) -> None:
        """Destroy one droplet; it may stay visible for seconds. Raises NotFoundError when it is already gone."""

    async def power_off(self, id: DropletId) -> None:
        """Cut a droplet's power, sent once (OutcomeUnknown without a clear answer): it goes on billing in full."""

    async def power_on(self, id: DropletId) -> None:
        """Start a droplet that is off, sent once (OutcomeUnknown without a clear answer)."""

    async def snapshots(self) -> list[Snapshot]:
        """Return the account's own images that were made from droplets, the newest last."""

    async def take_snapshot(self, id: DropletId, name: str) -> int:
        """Ask once for a snapshot of a droplet and return the action's id; OutcomeUnknown without a clear answer."""

    async def action_status(self, id: int) -> str:
        """Return how far an action is: `in-progress`, `completed` or `errored`."""

    async def tag_droplet(self, tag: str, id: DropletId) -> None:
        """Put a tag, made where there is none, on a droplet; raises NotFoundError for a droplet that is gone."""

    async def untag_droplet(self, tag: str, id: DropletId) -> None:
        """Take a tag off a droplet; one that it does not carry is fine."""

    async def ensure_ssh_key(self, name: str, public_openssh: str) -> SshKey:
        """Return the account's entry for a public key, registering it under `name` when it is not there."""

    async def delete_tag(self, tag: str) -> None:
        """Delete a tag, not what carries it; a tag that is already gone is fine."""


async def exists(cloud: Cloud, id: DropletId) -> bool:
    """Ask for one droplet by itself: that a list lacks it proves nothing. Raises CloudError."""
    try:
        await cloud.get_droplet(id)
    except NotFoundError:
        return False
    return True
