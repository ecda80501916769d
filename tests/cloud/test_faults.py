"""The adapter against an API that misbehaves in every way that was seen or measured."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import anyio
import pytest

from chisel.cloud.base import Cloud
from chisel.cloud.digitalocean import open_digitalocean
from chisel.errors import (
    ChiselError,
    CloudError,
    ConfigError,
    CredentialsRefused,
    NotFoundError,
    OutcomeUnknown,
    RateLimited,
)
from chisel.events import Retry
from chisel.model import CreateRequest, DropletId, Secret
from tests.cloud import api as played
from tests.cloud.api import Api, Fault, Handler, refuses, shows_html
from tests.cloud.conftest import Recorder

CANARY = "dop_v1_canary_0123456789abcdef"
TOKEN = Secret(CANARY)
CREATE = "POST /v2/droplets"
ACCOUNT = "GET /v2/account"
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


def unavailable(**headers: str) -> Fault:
    return refuses(503, "service_unavailable", "Server Error", **headers)


# -- create: once, and no doubt is hidden


@pytest.mark.parametrize(
    "fault",
    [
        refuses(500, "server_error", "Unexpected server-side error"),
        unavailable(),
        unavailable(Retry_After="1"),
        refuses(504, "timeout", "Gateway timeout"),
        refuses(408, "timeout", "Request timeout"),
        shows_html(502),
        shows_html(403, "<html>blocked by a firewall</html>"),
        shows_html(202),
        shows_html(429, "slow down"),
        played.truncates,
        played.resets,
        played.hangs,
        played.drips,
        lambda handler: handler.send(202, {"links": {}}),
        lambda handler: handler.send(202, {"droplet": {"id": "five"}}),
        lambda handler: handler.send(202, []),
    ],
)
async def test_a_create_without_a_clear_answer_is_sent_once_and_its_outcome_unknown(api: Api, fault: Fault) -> None:
    api.fail(CREATE, played.creates_then(fault))
    async with open_digitalocean(TOKEN, api_url=api.url, deadline_s=1.5) as cloud:
        started = time.monotonic()
        with pytest.raises(OutcomeUnknown) as caught:
            await cloud.create_droplet(REQUEST)
        assert time.monotonic() - started < 2.5
    assert "droplet `bench-1`" in caught.value.message
    assert api.lines() == [CREATE]
    assert len(api.droplets) == 1


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (refuses(401, "unauthorized", "Unable to authenticate you."), CredentialsRefused, "Unable to authenticate"),
        (refuses(403, "forbidden", "You are not authorized", Retry_After="1"), CredentialsRefused, "not authorized"),
        (refuses(422, "unprocessable_entity", "Size is not available in this region."), CloudError, "not available"),
        (refuses(422, "x", "creating this/these droplet(s) will exceed your droplet limit"), CloudError, "exceed"),
        (refuses(429, "too_many_requests", "API Rate limit exceeded.", Retry_After="1"), RateLimited, "exceeded"),
        (played.moves, CloudError, "https://api.elsewhere.example"),
    ],
)
async def test_a_create_that_is_clearly_refused_says_why_and_is_sent_once(
    api: Api, fault: Fault, kind: type[CloudError], says: str
) -> None:
    api.fail(CREATE, fault)
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(kind, match=says) as caught:
            await cloud.create_droplet(REQUEST)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert caught.value.hint
    assert api.lines() == [CREATE]
    assert not api.droplets


async def test_a_create_that_never_left_is_no_doubt() -> None:
    with socket.socket() as deaf:  # bound, so that no connection can be made from this very port; not listening
        deaf.bind(("127.0.0.1", 0))
        async with open_digitalocean(TOKEN, api_url=f"http://127.0.0.1:{deaf.getsockname()[1]}") as cloud:
            with pytest.raises(CloudError, match="refuses connections") as caught:
                await cloud.create_droplet(REQUEST)
    assert type(caught.value) is CloudError


async def test_a_create_that_waited_for_a_slot_until_the_deadline_is_no_doubt(api: Api) -> None:
    api.fail(ACCOUNT, *[played.hangs] * 8)
    async with open_digitalocean(TOKEN, api_url=api.url, deadline_s=1) as cloud:
        kinds: list[type[BaseException]] = []

        async def account() -> None:
            with pytest.raises(CloudError):
                await cloud.account()

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(account)
            with anyio.fail_after(5):
                while len(api.seen) < 8:  # noqa: ASYNC110 - the server counts in threads of its own
                    await anyio.sleep(0.01)
            with pytest.raises(CloudError) as caught, anyio.fail_after(3):
                # its own deadline would pass after theirs: slots are free again by then, unless it gives up earlier
                await _with_deadline(cloud, 0.2).create_droplet(REQUEST)
            kinds.append(type(caught.value))
    assert kinds == [CloudError]
    assert CREATE not in api.lines()


def _with_deadline(cloud: Any, deadline_s: float) -> Cloud:
    """The same adapter, with the same slots, but less patience."""
    other = object.__new__(type(cloud))
    other.__dict__ = {**cloud.__dict__, "_deadline_s": deadline_s}
    return other  # type: ignore[no-any-return]


async def test_a_power_off_without_a_clear_answer_is_sent_once(api: Api) -> None:
    api.droplets[5] = played.droplet(5, "bench-1")
    api.fail("POST /v2/droplets/5/actions", unavailable(Retry_After="0"))
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(OutcomeUnknown):
            await cloud.power_off(DropletId(5))
    assert len(api.seen) == 1


async def test_a_key_whose_registration_got_no_answer_is_looked_up(api: Api) -> None:
    def registers_then_resets(handler: played.Handler) -> None:
        body = api.seen[-1].body
        fingerprint = "0f:a2:0a:d7:38:3e:65:45:08:6b:63:84:1c:ff:dc:ba"
        api.keys[fingerprint] = {"id": 1, "fingerprint": fingerprint} | body
        played.resets(handler)

    api.fail("POST /v2/account/keys", registers_then_resets)
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        assert (await cloud.ensure_ssh_key("chisel", PUBLIC_KEY)).id == 1
    assert api.lines().count("POST /v2/account/keys") == 1


# -- what may be repeated is repeated, and said


@pytest.mark.parametrize("fault", [unavailable(), shows_html(502), played.resets, refuses(429, "x", "slow down")])
async def test_reading_is_retried_and_each_retry_is_an_event(api: Api, sink: Recorder, fault: Fault) -> None:
    api.fail(ACCOUNT, fault, fault)
    async with open_digitalocean(TOKEN, api_url=api.url, sink=sink) as cloud:
        assert (await cloud.account()).status == "active"
    retries = [event for event in sink.events if isinstance(event, Retry)]
    assert [event.attempt for event in retries] == [1, 2]
    assert all(event.what == "reading the account" and event.reason and event.wait_s > 0 for event in retries)
    assert len(api.seen) == 3


async def test_retries_end_and_the_last_reason_is_the_error(api: Api, sink: Recorder) -> None:
    api.fail(ACCOUNT, *[unavailable(Retry_After="0")] * 50)
    async with open_digitalocean(TOKEN, api_url=api.url, sink=sink) as cloud:
        with pytest.raises(CloudError, match="Server Error") as caught:
            await cloud.account()
    assert caught.value.status == 503
    assert len(api.seen) == 6


@pytest.mark.parametrize("fault", [shows_html(200), refuses(401, "unauthorized", "no"), refuses(400, "bad", "no")])
async def test_what_will_not_pass_is_not_retried(api: Api, sink: Recorder, fault: Fault) -> None:
    api.fail(ACCOUNT, fault)
    async with open_digitalocean(TOKEN, api_url=api.url, sink=sink) as cloud:
        with pytest.raises(CloudError):
            await cloud.account()
    assert len(api.seen) == 1
    assert not sink.events


@pytest.mark.parametrize("status", [404, 503, 200])
async def test_every_answer_tells_the_time(api: Api, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """A refusal as well: whether a droplet is gone that the API does not know is judged by its age."""
    ahead = format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True)
    monkeypatch.setattr(Handler, "date_time_string", lambda self: ahead)
    if status != 200:
        api.fail(ACCOUNT, *[refuses(status, "refused", "Refused.")] * 9)
    async with open_digitalocean(TOKEN, api_url=api.url, deadline_s=2.0) as cloud:
        assert cloud.ahead == timedelta(0)
        with suppress(CloudError):
            await cloud.account()
        assert abs(cloud.ahead - timedelta(days=2)) < timedelta(minutes=1)
        monkeypatch.setattr(Handler, "date_time_string", lambda self: "yesterday")
        with suppress(CloudError):
            await cloud.account()
        assert cloud.ahead == timedelta(0)


async def test_retry_after_is_obeyed(api: Api, sink: Recorder) -> None:
    api.fail(ACCOUNT, refuses(429, "too_many_requests", "API Rate limit exceeded.", Retry_After="1"))
    async with open_digitalocean(TOKEN, api_url=api.url, sink=sink) as cloud:
        started = time.monotonic()
        await cloud.account()
    assert 1.0 <= time.monotonic() - started < 4
    assert [event.wait_s for event in sink.events if isinstance(event, Retry)] == [1.0]


async def test_retry_after_as_a_date_is_understood(api: Api) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1))
    api.fail(ACCOUNT, refuses(429, "too_many_requests", "API Rate limit exceeded.", Retry_After=later))
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(RateLimited) as caught:
            await cloud.account()
    assert caught.value.retry_after_s == pytest.approx(3600, abs=30)


async def test_retry_after_beyond_the_deadline_is_an_error_at_once(api: Api) -> None:
    api.fail(ACCOUNT, refuses(429, "too_many_requests", "API Rate limit exceeded.", Retry_After="3600"))
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        started = time.monotonic()
        with pytest.raises(RateLimited) as caught:
            await cloud.account()
    assert time.monotonic() - started < 2
    assert caught.value.retry_after_s == 3600
    assert len(api.seen) == 1


async def test_a_deletion_whose_answer_was_lost_is_done(api: Api) -> None:
    api.droplets[5] = played.droplet(5, "bench-1")
    api.fail("DELETE /v2/droplets/5", played.destroys_then(played.resets))
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        await cloud.destroy_droplet(DropletId(5))
    assert len(api.seen) == 2


async def test_a_deletion_of_what_is_gone_is_not_found(api: Api) -> None:
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(NotFoundError):
            await cloud.destroy_droplet(DropletId(5))


async def test_a_redirect_is_not_followed(api: Api) -> None:
    api.fail(ACCOUNT, played.moves)
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(CloudError, match=r"has moved to `https://api\.elsewhere\.example`") as caught:
            await cloud.account()
    assert caught.value.hint is not None
    assert "chisel auth --api-url https://api.elsewhere.example" in caught.value.hint
    assert len(api.seen) == 1


async def test_an_answer_for_another_droplet_is_refused(api: Api) -> None:
    api.droplets[5] = played.droplet(6, "bench-6")
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(CloudError, match="answered with droplet `6`"):
            await cloud.get_droplet(DropletId(5))


async def test_pages_that_go_in_circles_are_an_error(api: Api) -> None:
    def circle(handler: played.Handler) -> None:
        pages = {"pages": {"next": f"{api.url}/v2/sizes?page=1"}}
        handler.send(200, {"sizes": played.SIZES, "links": pages, "meta": {"total": 9}})

    api.fail("GET /v2/sizes", circle)
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        with pytest.raises(CloudError, match=r"links\.pages\.next"):
            await cloud.sizes()


# -- time


@pytest.mark.parametrize("fault", [played.hangs, played.drips])
async def test_a_silent_or_dripping_server_costs_the_deadline_and_no_more(api: Api, fault: Fault) -> None:
    api.fail(ACCOUNT, fault)
    async with open_digitalocean(TOKEN, api_url=api.url, deadline_s=0.6) as cloud:
        started = time.monotonic()
        with pytest.raises(CloudError, match=r"no answer from `127\.0\.0\.1:\d+` within 0\.6 s"):
            await cloud.account()
        assert 0.5 < time.monotonic() - started < 1.6
        assert (await cloud.account()).status == "active"  # the adapter is still of use


async def test_a_cancelled_caller_is_freed_at_once(api: Api) -> None:
    api.fail(ACCOUNT, played.hangs)
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        started = time.monotonic()
        with anyio.move_on_after(0.3) as scope:
            await cloud.account()
        assert scope.cancelled_caught
        assert time.monotonic() - started < 1.3


@pytest.mark.parametrize("fault", ["hangs", "drips"])
def test_a_hanging_call_does_not_keep_the_process_from_exiting(api: Api, fault: str) -> None:
    api.fail(ACCOUNT, getattr(played, fault))
    script = f"""
import anyio, time
from chisel.cloud.digitalocean import open_digitalocean
from chisel.errors import CloudError
from chisel.model import Secret
async def main():
    async with open_digitalocean(Secret("t"), api_url={api.url!r}, deadline_s=5) as cloud:
        with anyio.move_on_after(0.5):
            await cloud.account()
        print("freed", time.time(), flush=True)
anyio.run(main)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=15, check=True)
    word, freed_at = ended.stdout.split()
    assert word == "freed"
    assert time.time() - float(freed_at) < 1.5
    assert ended.stderr == ""


async def test_no_more_than_eight_calls_run_at_once(api: Api) -> None:
    def slow(handler: played.Handler) -> None:
        api.over.wait(0.05)
        handler.answer_properly(ACCOUNT, None)

    api.fail(ACCOUNT, *[slow] * 40)
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud, anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(cloud.account)
    assert 2 <= api.most_running <= 8
    assert len(api.seen) == 40


# -- the token


async def test_netrc_does_not_replace_the_token(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login mallory password hunter2\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with open_digitalocean(TOKEN, api_url=api.url) as cloud:
        await cloud.account()
    assert api.seen[0].headers["Authorization"] == f"Bearer {CANARY}"


@pytest.mark.parametrize("url", ["http://api.digitalocean.com", "http://10.0.0.1:80", "ftp://127.0.0.1", "nonsense"])
async def test_the_token_never_crosses_a_network_in_the_clear(url: str) -> None:
    with pytest.raises(ConfigError):
        async with open_digitalocean(TOKEN, api_url=url):
            pytest.fail("opened")


Call = Callable[[Cloud], Awaitable[Any]]


@pytest.mark.parametrize(
    "fault",
    [
        unavailable(),
        shows_html(502),
        played.echoes_headers(400),
        played.echoes_headers(401),
        played.echoes_headers(422),
        played.echoes_headers(500),
        played.echoes_headers(502, "text/html"),
        played.echoes_headers(200, "text/html"),
        played.hangs,
        played.resets,
        played.truncates,
        played.moves,
    ],
)
@pytest.mark.parametrize("line", [ACCOUNT, CREATE])
async def test_the_token_is_in_no_log_and_no_exception(
    api: Api, sink: Recorder, caplog: pytest.LogCaptureFixture, fault: Fault, line: str
) -> None:
    caplog.set_level(logging.DEBUG)
    api.fail(line, *[fault] * 6)
    async with open_digitalocean(TOKEN, api_url=api.url, sink=sink, deadline_s=0.5) as cloud:
        with pytest.raises(ChiselError) as caught:
            await (cloud.account() if line == ACCOUNT else cloud.create_droplet(REQUEST))
        everything = [
            "".join(traceback.format_exception(caught.value)),
            str(caught.value.hint),
            repr(caught.value.__dict__),
            repr(cloud),
            repr(sink.events),
            caplog.text,
        ]
    assert CANARY not in "\n".join(everything)
    assert "Authorization" not in str(caught.value) or "***" in str(caught.value)
    assert CANARY not in "".join(f"{name}={value}" for name, value in os.environ.items())
