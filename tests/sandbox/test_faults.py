"""The embedded cloud at its worst: every fault has a name, strikes when told, and leaves what it says."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chisel.sandbox.cloud import Cloud, Knobs
from chisel.sandbox.faults import HOWS, WHATS, Fault, Schedule, read_fault
from chisel.sandbox.http import Server, serving
from chisel.sandbox.limits import Rates
from chisel.sandbox.pytest import Sandbox
from tests.sandbox.test_cloud import Caller, Stopped

PROMPT = Knobs(active_after_s=0, address_after_s=0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(Cloud(Stopped(tmp_path).machines(), knobs=PROMPT)) as running:
        yield running


@pytest.fixture
def call(server: Server) -> Caller:
    return Caller(server.url, server.token)


def strike(call: Caller, *faults: str) -> None:
    assert call("POST", "/sandbox/faults", {"add": list(faults)})[0] == 200


def turn(call: Caller, **knobs: object) -> None:
    status, answer = call("POST", "/sandbox/knobs", knobs)
    assert status == 200, answer


# -- names


@given(
    st.builds(
        Fault,
        what=st.sampled_from(sorted(WHATS)),
        how=st.sampled_from([*HOWS, "400", "404", "429", "500", "504"]),
        is_late=st.booleans(),
        first=st.integers(1, 50),
        times=st.none() | st.integers(1, 50),
        retry_after_s=st.none() | st.integers(1, 3600),
        chance=st.integers(1, 100),
    )
)
def test_every_fault_has_a_name(fault: Fault) -> None:
    name = f"{fault.what}{'-then' if fault.is_late else ''}-{fault.how}@{fault.first}x{fault.times or '*'}"
    name += f"+{fault.retry_after_s}" if fault.retry_after_s else ""
    assert read_fault(f"{name}%{fault.chance}") == fault


@pytest.mark.parametrize("text", ["", "create", "create-200", "make-504", "create-then-nothing", "create-504 "])
def test_what_is_no_fault_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no fault"):
        read_fault(text)


def test_a_fault_strikes_when_and_as_often_as_told() -> None:
    schedule = Schedule([read_fault("list-503@2x2")])
    struck = [schedule.strike("GET", "/v2/droplets") is not None for _ in range(5)]
    assert struck == [False, True, True, False, False]
    assert schedule.strike("GET", "/v2/droplets/1") is None


def test_chance_is_repeatable() -> None:
    def struck(seed: int) -> list[bool]:
        schedule = Schedule([read_fault("any-503x*%30")], seed)
        return [schedule.strike("GET", "/v2/account") is not None for _ in range(200)]

    assert struck(1) == struck(1) != struck(2)
    assert 30 < sum(struck(1)) < 90


# -- answers


@pytest.mark.parametrize(("fault", "exists"), [("create-then-504", True), ("create-504", False)])
def test_a_create_fails_with_or_without_its_droplet(call: Caller, fault: str, exists: bool) -> None:
    strike(call, fault)
    status, body = call(
        "POST", "/v2/droplets", {"name": "one", "size": "s-1vcpu-1gb", "region": "nyc1", "image": "gpu-amd-base"}
    )
    assert status == 504
    assert set(body) == {"id", "message", "request_id"}
    assert [one["name"] for one in call.get("/v2/droplets")["droplets"]] == (["one"] if exists else [])


@pytest.mark.parametrize("fault", ["reset", "then-reset", "truncate", "then-truncate"])
def test_a_connection_breaks(call: Caller, fault: str) -> None:
    strike(call, f"account-{fault}")
    with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException, ValueError)):
        call.get("/v2/account")
    call.get("/v2/account")


def test_pages_and_garbage_instead_of_json(call: Caller) -> None:
    strike(call, "account-html", "sizes-garbage")
    connection = http.client.HTTPConnection(urlsplit(call.url).netloc, timeout=5)
    for path, status, start in [("/v2/account", 502, b"<html>"), ("/v2/sizes", 200, b"\x00{]")]:
        connection.request("GET", path, headers={"Authorization": f"Bearer {call.token}"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()[: len(start)]) == (status, start)
    connection.close()


@pytest.mark.parametrize(("fault", "least"), [("account-hang", 0), ("account-drip", 3)])
def test_a_silent_and_a_dripping_server_never_end(call: Caller, fault: str, least: int) -> None:
    strike(call, fault)
    where = urlsplit(call.url)
    received = b""
    with socket.create_connection((where.hostname, where.port), timeout=0.7) as connection:
        connection.sendall(
            f"GET /v2/account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {call.token}\r\n\r\n".encode()
        )
        while len(received.partition(b"\r\n\r\n")[2]) < least:
            piece = connection.recv(4096)
            assert piece, "the server has ended the answer"
            received += piece
        if not least:
            with pytest.raises(TimeoutError):
                connection.recv(4096)


def test_retry_after_goes_along(server: Server, call: Caller) -> None:
    strike(call, "sizes-429+7")
    connection = http.client.HTTPConnection(urlsplit(call.url).netloc, timeout=5)
    connection.request("GET", "/v2/sizes", headers={"Authorization": f"Bearer {call.token}"})
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("Retry-After")) == (429, "7")
    connection.close()
    assert server.served.count(("GET", "/v2/sizes")) == 1


# -- limits and scopes


def test_the_minute_and_the_hour_are_limited_and_slide() -> None:
    rates = Rates()
    taken = [rates.take(float(at), per_hour=50, per_minute=10)[1] for at in range(11)]
    assert taken[:10] == [None] * 10
    assert taken[10] == 50.0, "the first of the minute's ten was at 0 s, now it is 10 s"
    assert rates.take(60.5, per_hour=50, per_minute=10)[1] is None
    full = Rates()
    for at in range(50):
        assert full.take(at * 10.0, per_hour=50, per_minute=100) == (49 - at, None)
    assert full.take(600.0, per_hour=50, per_minute=100) == (0, 3000.0)
    assert full.take(3600.5, per_hour=50, per_minute=100)[1] is None


def test_too_many_requests_are_answered_429_and_keys_have_a_limit_of_their_own(call: Caller) -> None:
    assert [call("GET", "/v2/account/keys")[0] for _ in range(11)] == [200] * 10 + [429]
    turn(call, per_minute=20)
    statuses = [call("GET", "/v2/account")[0] for _ in range(12)]
    assert statuses[-1] == 429
    assert call("POST", "/sandbox/clock", {"advance_s": 61})[0] == 200
    assert call("GET", "/v2/account")[0] == 200


def test_a_token_can_do_no_more_than_its_scopes(call: Caller) -> None:
    turn(call, per_minute=1000)
    id = call.create()["droplet"]["id"]
    token = call("POST", "/sandbox/tokens", {"scopes": ["droplet:delete"]})[1]["token"]
    for method, path, body, status in [
        ("GET", "/v2/account", None, 403),
        ("GET", f"/v2/droplets/{id}", None, 403),
        ("POST", "/v2/droplets", {}, 403),
        ("POST", f"/v2/droplets/{id}/actions", {"type": "power_off"}, 403),
        ("DELETE", "/v2/droplets/1", None, 404),
        ("GET", "/sandbox/bill", None, 403),
        ("DELETE", f"/v2/droplets/{id}", None, 204),
    ]:
        assert call(method, path, body, token=token)[0] == status, (method, path)
    creator = call("POST", "/sandbox/tokens", {"scopes": ["droplet:create"]})[1]["token"]
    assert call("POST", "/v2/droplets", {}, token=creator)[0] == 422
    tagged = {"name": "a", "size": "s-1vcpu-1gb", "region": "nyc1", "image": "gpu-amd-base", "tags": ["fresh"]}
    assert call("POST", "/v2/droplets", tagged, token=creator)[0] == 403, "a new tag needs tag:create"
    call("POST", "/sandbox/tokens", {"revoke": creator})
    assert call("POST", "/v2/droplets", {}, token=creator)[0] == 401


# -- droplets that come late, go early, or never come


def test_reads_lag_behind_creates_and_deletes(call: Caller) -> None:
    turn(call, get_lag_s=5, delete_lag_s=5)
    id = call.create()["droplet"]["id"]
    assert call("GET", f"/v2/droplets/{id}")[0] == 404
    call("POST", "/sandbox/clock", {"advance_s": 6})
    assert call("GET", f"/v2/droplets/{id}")[0] == 200
    assert call("DELETE", f"/v2/droplets/{id}")[0] == 204
    assert call("DELETE", f"/v2/droplets/{id}")[0] == 404
    assert call("GET", f"/v2/droplets/{id}")[0] == 200
    billed = call.get("/sandbox/bill")["usd_exactly"]
    call("POST", "/sandbox/clock", {"advance_s": 6})
    assert call("GET", f"/v2/droplets/{id}")[0] == 404
    assert call.get("/sandbox/bill")["usd_exactly"] == billed


def test_an_accepted_create_may_come_to_nothing(call: Caller) -> None:
    turn(call, vanishing=[1], active_after_s=10)
    made = call.create()
    id, action = made["droplet"]["id"], made["links"]["actions"][0]["id"]
    assert call.get(f"/v2/actions/{action}")["action"]["status"] == "in-progress"
    call("POST", "/sandbox/clock", {"advance_s": 11})
    assert call("GET", f"/v2/droplets/{id}")[0] == 404
    assert call.get(f"/v2/actions/{action}")["action"]["status"] == "errored"
    assert call.get("/sandbox/bill")["usd"] == "0.00"
    call("POST", "/sandbox/clock", {"advance_s": 1})
    again = call.create()["droplet"]["id"]
    call("POST", "/sandbox/clock", {"advance_s": 11})
    assert call("GET", f"/v2/droplets/{again}")[0] == 200


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"capacity": 1}, "Size is not available in this region."),
        ({"sold_out": ["gpu-mi300x1-192gb@atl1"]}, "Size is not available in this region."),
        ({"gpu_quota": 1}, "creating this/these droplet(s) will exceed your droplet limit"),
        ({"account_status": "locked"}, "You are not authorized to perform this operation"),
    ],
)
def test_what_was_offered_is_refused(call: Caller, knobs: dict[str, object], message: str) -> None:
    if "sold_out" not in knobs and "account_status" not in knobs:
        call.create()
    turn(call, **knobs)
    body = {"name": "two", "size": "gpu-mi300x1-192gb", "region": "atl1", "image": "gpu-amd-base"}
    status, refusal = call("POST", "/v2/droplets", body)
    assert status in {403, 422}
    assert refusal["message"] == message
    offered = next(one for one in call.get("/v2/sizes")["sizes"] if one["slug"] == "gpu-mi300x1-192gb")
    assert "atl1" in offered["regions"]


def test_the_provider_takes_a_droplet_back(call: Caller) -> None:
    turn(call, reclaim_after_s=100)
    id = call.create()["droplet"]["id"]
    call("POST", "/sandbox/clock", {"advance_s": 101})
    assert call("GET", f"/v2/droplets/{id}")[0] == 404
    assert call.get("/sandbox/bill")["droplets_alive"] == 0


def test_short_pages(call: Caller) -> None:
    turn(call, page_size=2)
    listed = call.get("/v2/sizes?per_page=200")
    assert len(listed["sizes"]) == 2
    assert "page=2" in listed["links"]["pages"]["next"]


@pytest.mark.parametrize(
    "knobs", [{"list_lag": 3}, {"list_lag_s": "3"}, {"list_lag_s": -1}, {"vanishing": "1"}, {"capacity": True}]
)
def test_a_knob_that_is_none_is_refused(call: Caller, knobs: dict[str, object]) -> None:
    assert call("POST", "/sandbox/knobs", knobs)[0] == 422


def test_the_metadata_service_asks_for_no_token(call: Caller) -> None:
    id = call.create(user_data="#cloud-config\n{}")["droplet"]["id"]
    status, told = call("GET", f"/sandbox/metadata/{id}/metadata/v1.json", token="x")
    assert status == 200
    assert told["droplet_id"] == id
    assert told["user_data"] == "#cloud-config\n{}"
    assert call("GET", "/sandbox/metadata/1/metadata/v1.json")[0] == 404


# -- the plugin


@pytest.mark.chisel_sandbox(faults=["create-then-504"], address_after_s=0.0)
def test_a_users_own_test_gets_a_cloud_with_a_schedule(chisel_sandbox: Sandbox, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "chisel", "up", "--json"], cwd=tmp_path, capture_output=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout
    assert chisel_sandbox.alive == ["chisel-dev-1"]
    assert chisel_sandbox.requests.count(("POST", "/v2/droplets")) == 1
    before = chisel_sandbox.usd
    chisel_sandbox.advance(3600)
    assert 1.9 < float(chisel_sandbox.usd - before) < 2.0
    chisel_sandbox.fault("any-500x*")
    ended = subprocess.run(
        [sys.executable, "-m", "chisel", "status", "--json"], cwd=tmp_path, capture_output=True, check=False, timeout=90
    )
    assert ended.returncode == 4
    chisel_sandbox.behave()
    chisel_sandbox.revoke(chisel_sandbox.make_token("droplet:read"))
    assert json.loads(ended.stdout.splitlines()[-1])["status"] == 4
