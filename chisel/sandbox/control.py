"""Let a test govern the cloud over HTTP: addresses below `/sandbox`, which DigitalOcean does not have.

GET  /sandbox/bill       what everything has cost, to the cent and to the last digit
GET  /sandbox/droplets   every droplet there ever was, destroyed ones included
GET  /sandbox/requests   every request of the API so far, as method and path
POST /sandbox/clock      {"advance_s": 3600}
POST /sandbox/knobs      {"list_lag_s": 3, ...}: see `Knobs`; an empty object only shows them
POST /sandbox/faults     {"add": ["create-then-504"]} or {"clear": true}
POST /sandbox/tokens     {"scopes": ["droplet:delete"]} makes a token, {"revoke": "..."} ends one
GET  /sandbox/metadata/<id>/metadata/v1.json   the droplet's metadata service, which asks for no token
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

from chisel.sandbox.api import Answer
from chisel.sandbox.catalog import Json
from chisel.sandbox.cloud import Cloud
from chisel.sandbox.faults import Schedule, read_fault
from chisel.sandbox.refused import Refused, not_found


class Governed(Protocol):
    """What of the server may be governed."""

    cloud: Cloud
    schedule: Schedule
    served: list[tuple[str, str]]

    def add_token(self, scopes: frozenset[str]) -> str:
        """Return a new token that may do no more than `scopes`."""

    def revoke(self, token: str) -> None:
        """Let a token open nothing from now on."""


def control(server: Governed, method: str, path: str, body: Any) -> Answer:
    """Serve one request below `/sandbox`; raises Refused."""
    cloud = server.cloud
    if method == "GET":
        cloud.pass_time()
        shown: dict[str, Callable[[], Json]] = {
            "/sandbox/bill": cloud.bill,
            "/sandbox/droplets": lambda: {"droplets": _droplets(cloud)},
            "/sandbox/requests": lambda: {
                "requests": [list(one) for one in server.served if "/sandbox/" not in one[1]]
            },
        }
        if path not in shown:
            raise not_found()
        return Answer(200, shown[path]())
    changes = {
        "/sandbox/clock": _clock,
        "/sandbox/knobs": _knobs,
        "/sandbox/faults": _faults,
        "/sandbox/tokens": _tokens,
    }
    if method != "POST" or path not in changes or not isinstance(body, dict):
        raise not_found()
    try:
        return Answer(200, changes[path](server, body))
    except (TypeError, KeyError, ValueError) as error:
        raise Refused(422, "unprocessable_entity", str(error)) from None


def _clock(server: Governed, body: Json) -> Json:
    server.cloud.clock.advance(float(body["advance_s"]))
    return {"now": server.cloud.clock.now()}


def _knobs(server: Governed, body: Json) -> Json:
    server.cloud.knobs = server.cloud.knobs.changed(body)
    return asdict(server.cloud.knobs)


def _faults(server: Governed, body: Json) -> Json:
    faults = [read_fault(str(text)) for text in body.get("add", [])]
    if body.get("clear") is True:
        server.schedule.clear()
    for fault in faults:
        server.schedule.add(fault)
    return {"added": len(faults)}


def _tokens(server: Governed, body: Json) -> Json:
    if "revoke" in body:
        server.revoke(str(body["revoke"]))
        return {}
    return {"token": server.add_token(frozenset(str(scope) for scope in body["scopes"]))}


def _droplets(cloud: Cloud) -> list[Json]:
    with cloud.lock:
        every = sorted([*cloud.destroyed, *cloud.failed, *cloud.droplets.values()], key=lambda one: one.id)
        return [
            {
                "id": one.id,
                "name": one.name,
                "tags": one.tags,
                "region": one.region,
                "size": one.size["slug"],
                "is_alive": one.id in cloud.droplets,
                "usd": str(cloud.cost_of(one)),
            }
            for one in every
        ]


def metadata(cloud: Cloud, path: str) -> Answer:
    """Answer as a droplet's metadata service, to whoever asks; raises Refused (404)."""
    id, _, rest = path.partition("/")
    if rest != "metadata/v1.json" or not id.isdecimal():
        raise not_found()
    droplet = cloud.get(int(id))
    return Answer(
        200,
        {
            "droplet_id": droplet.id,
            "hostname": droplet.name,
            "user_data": droplet.user_data,
            "vendor_data": "",
            "public_keys": list(droplet.keys),
            "region": droplet.region,
            "interfaces": {"public": [{"ipv4": {"ip_address": "127.0.0.1"}, "type": "public"}]},
            "dns": {"nameservers": ["127.0.0.53"]},
            "tags": list(droplet.tags),
        },
    )
