"""The embedded cloud's API over real HTTP: DigitalOcean's shapes and rules, the bill, and a clean end."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chisel.sandbox.base import DropletSpec
from chisel.sandbox.cloud import Cloud, Knobs, Machines
from chisel.sandbox.http import serving
from chisel.ssh.keys import generate_keypair
from tests.support import processes_with, until

MI300X = {"size": "gpu-mi300x1-192gb", "region": "atl1", "image": "gpu-amd-base"}


@dataclass
class Caller:
    """Somebody who speaks HTTP to the cloud and has every exchange checked, where there is somebody to check it."""

    url: str
    token: str
    check: Callable[[str, str, bytes | None, int, dict[str, str], bytes], None] = lambda *_: None

    def __call__(self, method: str, path: str, body: Any = None, token: str | None = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, got, heads = answer.status, answer.read(), dict(answer.headers)
        except urllib.error.HTTPError as refused:
            with refused:
                status, got, heads = refused.code, refused.read(), dict(refused.headers)
        self.check(method, self.url + path, data, status, heads, got)
        return status, json.loads(got) if got else None

    def get(self, path: str) -> Any:
        status, body = self("GET", path)
        assert status == 200, body
        return body

    def create(self, **fields: Any) -> Any:
        status, body = self("POST", "/v2/droplets", {"name": "one", **MI300X, **fields})
        assert status == 202, body
        return body


class Stopped:
    """Droplets that are never really started: what is tested here is the API."""

    def __init__(self, root: Path) -> None:
        self.running: set[int] = set()
        self._root = root

    def machines(self) -> Machines:
        return Machines(start=self._start, stop=self.running.discard, root_of=lambda id: self._root / str(id))

    def _start(self, spec: DropletSpec, told: Callable[[int | None], None]) -> None:
        self.running.add(spec.id)
        told(2222)


def make_caller(tmp_path: Path, knobs: Knobs) -> Iterator[Caller]:
    with serving(Cloud(Stopped(tmp_path).machines(), knobs=knobs)) as server:
        yield Caller(server.url, server.token)


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Caller]:
    yield from make_caller(tmp_path, Knobs(active_after_s=0, address_after_s=0, per_minute=10**6, per_hour=10**6))


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Caller]:
    yield from make_caller(tmp_path, Knobs(active_after_s=20, address_after_s=10, list_lag_s=5))


@pytest.fixture
def checked(call: Caller, shared: Path) -> Caller:
    """Hold every exchange against DigitalOcean's own OpenAPI description."""
    spec = importlib.util.spec_from_file_location("contract_of_emulator", shared / "contract" / "contract_transport.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        _, contract = module.load(str(shared / "contract" / "do-openapi.json"))

    def check(method: str, url: str, data: bytes | None, status: int, heads: dict[str, str], got: bytes) -> None:
        request = module._Req(method, url, {"Content-Type": "application/json"}, data)
        try:
            contract.validate_response(request, module._Resp(status, heads, got))
        except module.OpenAPIError as error:
            pytest.fail(f"{status} to {method} {url}\n{module._chain(error)}", pytrace=False)

    call.check = check
    return call


# -- the contract


@pytest.mark.real_part("shared")
def test_every_answer_keeps_digitaloceans_own_contract(checked: Caller) -> None:
    public = generate_keypair("me").public_openssh
    status, key = checked("POST", "/v2/account/keys", {"name": "me", "public_key": public})
    assert status == 201
    fingerprint = key["ssh_key"]["fingerprint"]
    made = checked.create(tags=["chisel", "a:b"], ssh_keys=[fingerprint])
    id = made["droplet"]["id"]
    both = checked("POST", "/v2/droplets", {"names": ["two", "three"], **MI300X})[1]
    assert [droplet["name"] for droplet in both["droplets"]] == ["two", "three"]
    checked.get("/v2/account")
    checked.get("/v2/account/keys")
    checked.get(f"/v2/account/keys/{key['ssh_key']['id']}")
    assert checked.get(f"/v2/account/keys/{quote(fingerprint)}")["ssh_key"]["public_key"] == public
    checked.get("/v2/sizes?per_page=200")
    checked.get("/v2/sizes?per_page=2&page=2")
    checked.get("/v2/regions")
    checked.get("/v2/images?per_page=1")
    checked.get("/v2/images/gpu-amd-base")
    checked.get("/v2/droplets?type=gpus&per_page=1&page=2")
    checked.get(f"/v2/droplets/{id}")
    checked.get(f"/v2/droplets/{id}/actions")
    checked.get(f"/v2/droplets/{id}/actions/{made['links']['actions'][0]['id']}")
    checked.get("/v2/actions")
    assert checked("POST", f"/v2/droplets/{id}/actions", {"type": "power_off"})[0] == 201
    checked.get("/v2/tags")
    checked.get("/v2/tags/chisel")
    assert checked("POST", "/v2/tags", {"name": "fresh"})[0] == 201
    assert checked("DELETE", "/v2/tags/fresh")[0] == 204
    checked.get("/v2/customers/my/balance")
    assert checked("DELETE", f"/v2/droplets/{id}")[0] == 204
    assert checked("DELETE", f"/v2/droplets/{id}")[0] == 404
    assert checked("DELETE", "/v2/droplets?tag_name=chisel")[0] == 204
    assert checked("POST", "/v2/droplets", {"name": "no room", **MI300X})[0] == 422
    assert checked("GET", "/v2/account", token="wrong")[0] == 401
    assert checked("DELETE", f"/v2/account/keys/{key['ssh_key']['id']}")[0] == 204


# -- rules that surprise


def test_gpu_droplets_hide_from_the_plain_list(call: Caller) -> None:
    gpu = call.create(tags=["mine"])["droplet"]["id"]
    plain = call.create(name="small", size="s-1vcpu-1gb", region="nyc1")["droplet"]["id"]

    def ids(query: str) -> list[int]:
        return [droplet["id"] for droplet in call.get(f"/v2/droplets{query}")["droplets"]]

    assert ids("") == [plain]
    assert ids("?type=gpus") == [gpu]
    assert ids("?tag_name=mine") == [gpu]
    assert ids("?name=SMALL") == [plain]
    assert call("GET", "/v2/droplets?tag_name=mine&type=gpus")[0] == 422
    assert call("GET", "/v2/droplets?type=all")[0] == 422


def test_a_droplet_is_active_before_it_has_an_address_and_lists_lag(slow: Caller) -> None:
    id = slow.create(tags=["mine"])["droplet"]["id"]

    def now() -> tuple[str, int, int]:
        droplet = slow.get(f"/v2/droplets/{id}")["droplet"]
        listed = slow.get("/v2/droplets?tag_name=mine")["meta"]["total"]
        return droplet["status"], len(droplet["networks"]["v4"]), listed

    assert now() == ("new", 0, 0)
    slow("POST", "/sandbox/clock", {"advance_s": 6})
    assert now() == ("new", 0, 1)
    slow("POST", "/sandbox/clock", {"advance_s": 15})
    assert now() == ("active", 0, 1)
    slow("POST", "/sandbox/clock", {"advance_s": 10})
    assert now() == ("active", 2, 1), "a public and a private one"


def test_names_may_repeat_and_more_than_ten_at_once_are_refused(call: Caller) -> None:
    first, second = (call.create(name="same")["droplet"]["id"] for _ in range(2))
    assert first != second
    status, refusal = call("POST", "/v2/droplets", {"names": [f"n{i}" for i in range(11)], **MI300X})
    assert (status, refusal["id"]) == (422, "unprocessable_entity")
    assert call.get("/v2/droplets?type=gpus")["meta"]["total"] == 2


def test_pages_link_to_each_other(call: Caller) -> None:
    for number in range(5):
        call.create(name=f"n{number}")
    seen: list[str] = []
    path = "/v2/droplets?type=gpus&per_page=2"
    while path:
        page = call.get(path)
        seen += [droplet["name"] for droplet in page["droplets"]]
        assert page["meta"] == {"total": 5}
        link = page["links"].get("pages", {}).get("next", "")
        path = link.removeprefix(call.url) + "&type=gpus" if link else ""
    assert seen == [f"n{number}" for number in range(5)]
    assert call.get("/v2/droplets?type=gpus&page=9")["droplets"] == []
    for wrong in ("per_page=0", "per_page=201", "page=0", "page=x", "page=%C2%B2"):
        assert call("GET", f"/v2/droplets?{wrong}")[0] == 422


@pytest.mark.parametrize(
    "change",
    [
        {"size": "gpu-mi301"},
        {"size": "gpu-mi350x1-288gb"},
        {"region": "fra1"},
        {"region": "mars"},
        {"image": "gpu-none"},
        {"name": "under_score"},
        {"name": ""},
        {"tags": ["a b"]},
        {"tags": "chisel"},
        {"ssh_keys": ["00:11"]},
        {"ssh_keys": 7},
        {"user_data": "x" * 65_537},
        {"user_data": 7},
        {"names": []},
    ],
)
def test_a_wrong_create_is_refused_and_makes_nothing(call: Caller, change: dict[str, Any]) -> None:
    status, refusal = call("POST", "/v2/droplets", {"name": "one", **MI300X, **change})
    assert status == 422
    assert refusal["message"]
    assert call.get("/sandbox/bill")["droplets_total"] == 0


def test_keys_are_found_by_fingerprint_and_registered_once(call: Caller) -> None:
    public = generate_keypair("me").public_openssh
    made = call("POST", "/v2/account/keys", {"name": "me", "public_key": public})[1]["ssh_key"]
    if shutil.which("ssh-keygen"):
        told = subprocess.run(["ssh-keygen", "-l", "-E", "md5", "-f", "-"], input=public.encode(), capture_output=True)
        assert made["fingerprint"] in told.stdout.decode()
    status, refusal = call("POST", "/v2/account/keys", {"name": "again", "public_key": public})
    assert (status, refusal["message"]) == (422, "SSH Key is already in use on your account")
    assert call("POST", "/v2/account/keys", {"name": "x", "public_key": "ssh-ed25519 AAAA"})[0] == 422


def test_only_the_random_token_opens_it(call: Caller) -> None:
    for token in ("x", call.token[:-1], call.token + "x", "\xe9"):
        status, refusal = call("GET", "/v2/account", token=token)
        assert (status, refusal["id"]) == (401, "Unauthorized")
        assert call("GET", "/sandbox/bill", token=token)[0] == 401
    assert len(call.token) >= 32
    assert call.url.startswith("http://127.0.0.1:")


def bill_of(call: Caller) -> tuple[int, int, str]:
    bill = call.get("/sandbox/bill")
    assert abs(float(bill["usd_exactly"]) - float(bill["usd"])) <= 0.005
    return bill["droplets_total"], bill["droplets_alive"], bill["usd"]


def test_the_bill_is_by_the_second_with_a_minimum_and_ends_with_the_droplet(call: Caller) -> None:
    id = call.create()["droplet"]["id"]
    call("POST", "/sandbox/clock", {"advance_s": 3600})
    assert bill_of(call) == (1, 1, "1.99")
    call("POST", f"/v2/droplets/{id}/actions", {"type": "power_off"})
    assert call.get(f"/v2/droplets/{id}")["droplet"]["status"] == "off"
    call("POST", "/sandbox/clock", {"advance_s": 3600})
    assert call.get("/sandbox/bill")["usd"] == "3.98", "a droplet that is off bills in full"
    call("DELETE", f"/v2/droplets/{id}")
    call("POST", "/sandbox/clock", {"advance_s": 360_000})
    assert bill_of(call) == (1, 0, "3.98")
    call("DELETE", f"/v2/droplets/{call.create()['droplet']['id']}")
    assert call.get("/sandbox/bill")["usd"] == "4.01", "a minute is the least: 3.3 cents"
    assert call("POST", "/sandbox/clock", {"advance_s": -1})[0] == 422


TEXTS = st.text(max_size=20) | st.sampled_from(["\ud800", "\0", "gpu-amd-base", "atl1", "gpu-mi300x1-192gb"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*MI300X, "name", "names", "ssh_keys", "tags", "user_data", "type", "public_key", "advance_s"])
NEARLY_RIGHT = st.dictionaries(FIELDS, VALUES, max_size=2).map(lambda changes: {"name": "one", **MI300X, **changes})
PLACES = st.just(("POST", "/v2/droplets")) | st.sampled_from(
    [
        ("POST", "/v2/account/keys"),
        ("POST", "/v2/tags"),
        ("POST", "/v2/droplets/1/actions"),
        ("POST", "/sandbox/clock"),
        ("POST", "/sandbox/knobs"),
        ("POST", "/sandbox/faults"),
        ("POST", "/sandbox/tokens"),
        ("GET", "/sandbox/metadata/1/metadata/v1.json"),
        ("DELETE", "/v2/droplets"),
        ("DELETE", "/v2/droplets/%00"),
        ("GET", "/v2/droplets/99999999999999999999"),
        ("GET", "/v2/images/%E2%82%AC"),
        ("PUT", "/v2/droplets"),
        ("GET", "/elsewhere"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PLACES, VALUES | NEARLY_RIGHT)
def test_nothing_a_client_sends_breaks_the_server(call: Caller, place: tuple[str, str], body: Any) -> None:
    status, answer = call(*place, body=body)
    assert status in {200, 201, 202, 204, 400, 401, 404, 405, 422}
    assert status < 400 or set(answer) >= {"id", "message", "request_id"}


# -- the process


def started(directory: Path, *more: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    directory.mkdir()
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "chisel.sandbox", "serve", "--directory", str(directory), *more],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    endpoint = directory / "endpoint.json"
    until(lambda: endpoint.exists() or server.poll() is not None, what="the endpoint")
    return server, json.loads(endpoint.read_bytes())


def test_the_endpoint_is_private_and_the_server_ends_without_a_trace(tmp_path: Path) -> None:
    directory = tmp_path / "cloud"
    server, endpoint = started(directory)
    try:
        file = directory / "endpoint.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        call = Caller(endpoint["url"], endpoint["token"])
        id = call.create()["droplet"]["id"]
        until(
            lambda: call.get(f"/v2/droplets/{id}")["droplet"]["networks"]["v4"],
            what="an address",
        )
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) == 0
    assert not file.exists()
    assert list((directory).iterdir()) == [directory / "log"]
    assert (directory / "log").read_text() == ""
    assert not processes_with(str(directory))


def test_it_ends_with_the_process_it_was_started_for(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as parent:
        server, _ = started(tmp_path / "cloud", "--parent", str(parent.pid), "--remove")
        assert server.poll() is None
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert server.wait(15) == 0
    assert not (tmp_path / "cloud").exists()
