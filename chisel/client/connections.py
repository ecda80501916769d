"""Make the keeper of SSH connections while the first ones are on their way, and remember what they taught."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from anyio import to_thread

from chisel.errors import StateError
from chisel.model import Host
from chisel.paths import Paths
from chisel.state import CloudState, State, StateStore

if TYPE_CHECKING:
    from chisel.ssh.connector import Connector
    from chisel.ssh.early import Departures


async def make_connector(
    stack: AsyncExitStack,
    paths: Paths,
    store: StateStore,
    api_url: str,
    hosts: Sequence[Host],
    departures: Departures | None,
    reserve: Mapping[str, int] | None,
) -> Connector:
    """Return a keeper that lives as long as the stack; connecting to `hosts` begins while asyncssh is imported."""
    from chisel.ssh.early import Departures
    from chisel.ssh.quick import load_asyncssh

    departures = departures or Departures()
    stack.callback(departures.close)
    departures.add(hosts)
    await departures.send_while(load_asyncssh)
    from chisel.ssh.connector import open_connector
    from chisel.ssh.keys import load_or_create_client_key

    key = await to_thread.run_sync(load_or_create_client_key, paths.client_key)
    opening = open_connector(key, departures=departures, reserve=reserve, kept_in=paths.cache_dir)
    connector = await stack.enter_async_context(opening)
    stack.push_async_callback(_remember_plain, store, api_url, connector)
    return connector


async def _remember_plain(store: StateStore, api_url: str, connector: Connector) -> None:
    """Record which droplets did not agree to a pipelined handshake, so that it is not tried on them again."""
    plain = {host.droplet_id for host in connector.plain}
    if not plain:
        return

    def change(state: State) -> State:
        cloud = state.clouds.get(api_url) or CloudState()
        pools = {
            pool: {
                name: replace(record, pipelines=False) if record.id in plain else record
                for name, record in records.items()
            }
            for pool, records in cloud.pools.items()
        }
        return replace(state, clouds={**state.clouds, api_url: replace(cloud, pools=pools)})

    with suppress(StateError):  # it is found out again then
        await store.update(change)
