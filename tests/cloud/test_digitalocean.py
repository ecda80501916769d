"""The adapter against an API whose every message is checked with DigitalOcean's own specification."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from chisel import __version__
from chisel.cloud.base import Cloud
from chisel.cloud.digitalocean import open_digitalocean
from chisel.errors import CloudError, NotFoundError
from chisel.model import CreateRequest, DropletId, Secret
from tests.cloud.api import Api, droplet, refuses

pytestmark = pytest.mark.real_part("shared")

TOKEN = Secret("dop_v1_contract")
REQUEST = CreateRequest(
    name="bench-1",
    region="atl1",
    size="gpu-mi300x1-192gb",
    image="gpu-amd-base",
    ssh_keys=("3b:16:bf:e4:8b:00:8b:b8:59:8c:a9:d3:f0:19:45:fa",),
    tags=("chisel", "chisel-attempt-00ff"),
    user_data="#cloud-config\n{}\n",
)
PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f chisel"


@asynccontextmanager
async def cloud_at(api: Api, contract: Any) -> AsyncIterator[Cloud]:
    async with open_digitalocean(TOKEN, api_url=api.url, transport=contract, deadline_s=10) as cloud:
        yield cloud
    assert contract.calls == len(api.seen), "a request went past the contract"


async def test_account_and_sizes_are_decoded(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        account = await cloud.account()
        sizes = await cloud.sizes()
    assert (account.email, account.team, account.droplet_limit, account.status_message) == (
        "sammy@digitalocean.com",
        "My Team",
        25,
        "",
    )
    mi300x, basic = sizes
    assert (mi300x.usd_per_hour, mi300x.regions, mi300x.gpu_model) == (Decimal("1.99"), ("atl1",), "amd_mi300x")
    assert (mi300x.gpu_count, mi300x.vram_gib) == (1, 192)
    assert (basic.usd_per_hour, basic.regions, basic.is_available) == (Decimal("0.00744"), (), True)
    assert (basic.gpu_model, basic.gpu_count) == (None, 0)


async def test_a_droplet_is_created_read_and_destroyed(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        made = await cloud.create_droplet(REQUEST)
        assert (made.name, made.status, made.address, made.tags) == ("bench-1", "new", None, REQUEST.tags)
        assert made.created_at == datetime(2026, 10, 21, 18, 37, 44, tzinfo=UTC)
        assert (made.region, made.image, made.usd_per_hour) == ("atl1", "gpu-amd-base", Decimal("1.99"))
        api.droplets[made.id] = droplet(made.id, "bench-1")
        found = await cloud.get_droplet(made.id)
        assert (found.address, found.private_address) == ("203.0.113.7", "10.1.0.2")
        await cloud.power_off(made.id)
        await cloud.destroy_droplet(made.id)
        with pytest.raises(NotFoundError):
            await cloud.get_droplet(made.id)
        with pytest.raises(NotFoundError):
            await cloud.destroy_droplet(made.id)
        with pytest.raises(NotFoundError):
            await cloud.power_off(made.id)
    assert api.seen[0].body == {
        "name": "bench-1",
        "region": "atl1",
        "size": "gpu-mi300x1-192gb",
        "image": "gpu-amd-base",
        "ssh_keys": list(REQUEST.ssh_keys),
        "tags": list(REQUEST.tags),
        "user_data": REQUEST.user_data,
        "with_droplet_agent": False,
    }


async def test_an_image_given_as_a_number_is_sent_as_one(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        await cloud.create_droplet(replace(REQUEST, image="7555620"))
    assert api.seen[0].body["image"] == 7555620


async def test_a_404_is_an_error_with_what_support_asks_for(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        with pytest.raises(NotFoundError) as caught:
            await cloud.get_droplet(DropletId(5))
    assert (caught.value.status, caught.value.error_id, caught.value.request_id) == (404, "not_found", "req-404")
    assert "droplet `5`" in caught.value.message
    assert api.lines() == ["GET /v2/droplets/5"]


@pytest.mark.parametrize("page_size", [None, 1, 2])
async def test_the_listing_has_gpu_and_other_droplets_from_all_pages(
    api: Api, contract: Any, page_size: int | None
) -> None:
    api.page_size = page_size
    for id in (4, 2, 3):
        api.droplets[id] = droplet(id, f"gpu-{id}")
    api.droplets[1] = droplet(1, "plain", size="s-1vcpu-1gb")
    async with cloud_at(api, contract) as cloud:
        assert [one.id for one in await cloud.list_droplets()] == [1, 2, 3, 4]
    assert all(one.query["per_page"] == ["200"] for one in api.seen)


@pytest.mark.parametrize("has_gpus", [True, False])
async def test_a_listing_by_tag_has_gpu_droplets_whatever_the_api_means(
    api: Api, contract: Any, has_gpus: bool
) -> None:
    api.tag_listing_has_gpus = has_gpus
    api.droplets = {
        1: droplet(1, "ours", tags=["chisel"]),
        2: droplet(2, "theirs", tags=["chisel-not"]),
        3: droplet(3, "plain", size="s-1vcpu-1gb", tags=["chisel"]),
    }
    async with cloud_at(api, contract) as cloud:
        assert [one.name for one in await cloud.list_droplets(tag="chisel")] == ["ours", "plain"]


async def test_a_key_is_registered_once_and_found_by_its_fingerprint(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        made = await cloud.ensure_ssh_key("chisel", PUBLIC_KEY)
        assert await cloud.ensure_ssh_key("chisel", PUBLIC_KEY) == made
    assert [line.split()[0] for line in api.lines()] == ["GET", "POST", "GET"]
    assert not any(line == "GET /v2/account/keys" for line in api.lines()), "listing keys is limited to 10 a minute"


async def test_a_key_that_somebody_else_registered_meanwhile_is_looked_up_again(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        made = await cloud.ensure_ssh_key("chisel", PUBLIC_KEY)
        hidden = refuses(404, "not_found", "not yet")
        api.fail(f"GET /v2/account/keys/{made.fingerprint}", hidden, hidden)
        assert await cloud.ensure_ssh_key("chisel", PUBLIC_KEY) == made
    assert [line.split()[0] for line in api.lines()] == ["GET", "POST", "GET", "POST", "GET", "GET"]


async def test_a_key_that_is_refused_for_itself_says_so(api: Api, contract: Any) -> None:
    api.fail("POST /v2/account/keys", refuses(403, "forbidden", "You are not authorized"))
    async with cloud_at(api, contract) as cloud:
        with pytest.raises(CloudError, match="registering the SSH key: You are not authorized"):
            await cloud.ensure_ssh_key("chisel", PUBLIC_KEY)


async def test_a_tag_is_deleted_and_one_that_is_gone_is_fine(api: Api, contract: Any) -> None:
    api.tags.add("chisel-attempt-00ff")
    async with cloud_at(api, contract) as cloud:
        await cloud.delete_tag("chisel-attempt-00ff")
        await cloud.delete_tag("chisel-attempt-00ff")
    assert not api.tags
    assert len(api.seen) == 2


async def test_requests_name_chisel_and_carry_the_token_and_no_hardware_address(api: Api, contract: Any) -> None:
    async with cloud_at(api, contract) as cloud:
        await cloud.account()
    headers = api.seen[0].headers
    assert headers["User-Agent"].startswith(f"chisel/{__version__}")
    assert headers["Authorization"] == f"Bearer {TOKEN.reveal()}"
    assert not any(name.lower() == "x-ms-client-request-id" for name in headers)
