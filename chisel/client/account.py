"""Verify tokens and describe the account: what `chisel auth` shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chisel.cloud.digitalocean import open_digitalocean
from chisel.config import Config
from chisel.errors import ConfigError, CredentialsRefused, GuardrailError
from chisel.events import Facts, Notice, Sink
from chisel.model import Abilities, Account, Droplet, Secret, Size


async def authenticate(
    config: Config,
    token: str | None,
    second: str | None,
    *,
    api_url: str | None,
    takes_broad: bool,
    sink: Sink,
) -> Facts:
    """Verify the token (None: the one at hand) and the self-destruct token; return the account's facts.

    Raises ConfigError, CredentialsRefused, GuardrailError, CloudError.
    """
    secret = Secret(token) if token else config.token
    if secret is None:
        raise ConfigError("no token was given", hint="chisel auth, on a terminal; or set CHISEL_DO_TOKEN")
    url = api_url or config.api_url
    async with open_digitalocean(secret, api_url=url, sink=sink) as cloud:
        abilities = await cloud.abilities()
        account = await cloud.account() if "account:read" not in abilities.missing_scopes else None
        sizes = await cloud.sizes() if "sizes:read" not in abilities.missing_scopes else []
        droplets = await cloud.list_droplets() if "droplet:read" not in abilities.missing_scopes else None
    if abilities.missing_scopes:
        sink.emit(
            Notice(
                level="warning",
                message=f"the token lacks {', '.join(abilities.missing_scopes)}",
                hint="make one with these scopes as well: chisel auth shows where",
            )
        )
    armed = Secret(second) if second else config.self_destruct_token
    words = await self_destruct_words(armed, url, is_new=bool(second), takes_broad=takes_broad, sink=sink)
    return Facts(
        title=f"{account.email if account else 'an account'} at {url}",
        facts={
            **_account_facts(account, sizes, droplets),
            "GPU quota": "unknown until the first `chisel up` (the API does not tell)",
            **_offers(config.sizes, sizes),
            "scopes": f"missing: {' '.join(abilities.missing_scopes)}" if abilities.missing_scopes else "all there",
            "token": "given now" if token else "CHISEL_DO_TOKEN" if config.token_source == "environment" else "stored",
            "self-destruct": words,
        },
    )


async def self_destruct_words(token: Secret | None, url: str, *, is_new: bool, takes_broad: bool, sink: Sink) -> str:
    """Probe the token that droplets get, with requests that cannot succeed, and say what it may do.

    A new one that cannot delete, or that can create, raises GuardrailError (the latter unless `takes_broad`).
    """
    if token is None:
        return "off while this laptop is off: chisel auth --self-destruct-token"
    try:
        async with open_digitalocean(token, api_url=url, sink=sink) as cloud:
            may = await cloud.abilities()
    except CredentialsRefused as refused:
        if is_new:
            raise CredentialsRefused("the self-destruct token is not valid", hint="chisel auth") from refused
        return "off: its token is not valid any more; chisel auth"
    if is_new:
        _refuse(may, takes_broad=takes_broad)
    return _described(may)


def _refuse(may: Abilities, *, takes_broad: bool) -> None:
    if may.can_delete is False:
        raise GuardrailError(
            "the self-destruct token may not delete droplets", hint="make one with the scope droplet:delete alone"
        )
    if may.can_create and not takes_broad:
        raise GuardrailError(
            "the self-destruct token may create droplets: whatever runs as root on a droplet could",
            hint="make one with the scope droplet:delete alone (or --allow-broad-token)",
        )


def _described(may: Abilities) -> str:
    able = "on; its token may delete droplets" if may.can_delete else "on; whether its token may delete is unknown"
    more = [*(["create droplets"] if may.can_create else []), *may.others]
    text = f"{able}, any of the team" + (f", and {', '.join(more)}" if more else ", and nothing more that was tried")
    return text + (f"; unknown: {', '.join(may.unknown)}" if may.unknown else "")


def _account_facts(
    account: Account | None, sizes: Sequence[Size], droplets: Sequence[Droplet] | None
) -> dict[str, Any]:
    limit = f" of {account.droplet_limit}" if account else ""
    used = "unknown"
    if droplets is not None:
        gpu_sizes = {size.slug for size in sizes if size.gpu_count}
        gpus = sum(one.size in gpu_sizes or one.size.startswith("gpu-") for one in droplets)
        used = f"{len(droplets)}{limit} in use ({gpus} with GPUs, {len(droplets) - gpus} others)"
    status = "unknown"
    if account is not None:
        status = f"{account.status}{': ' + account.status_message if account.status_message else ''}"
    return {"team": (account.team if account else "") or "-", "account": status, "droplets": used}


def _offers(wanted: Sequence[str], sizes: Sequence[Size]) -> dict[str, str]:
    offered = {
        size.slug: f"${size.usd_per_hour} per hour in {', '.join(size.regions) or 'no region now'}" for size in sizes
    }
    return {slug: offered.get(slug, "not offered") for slug in wanted}
