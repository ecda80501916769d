"""Answer DigitalOcean's API v2: routes, query rules and the shapes of its published OpenAPI description."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chisel.sandbox.catalog import IMAGES, REGIONS, SIZES, Json, find_image, find_region
from chisel.sandbox.clock import as_text
from chisel.sandbox.cloud import Action, Cloud, Droplet, Key
from chisel.sandbox.refused import Refused, not_found, unprocessable

MAX_PER_PAGE = 200
DEFAULT_PER_PAGE = 20


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the routes see it; `url` is the cloud's own address, without a path."""

    method: str
    path: str
    query: Mapping[str, str]
    body: Any
    url: str

    def fields(self) -> Json:
        """Return the body as an object; raises Refused for anything else."""
        if not isinstance(self.body, dict):
            raise unprocessable("The request body is not a JSON object.")
        return self.body


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON body; None is no body at all."""

    status: int
    body: Any = None


Handler = Callable[[Cloud, Request, Mapping[str, str]], Answer]


def answer(cloud: Cloud, request: Request, scopes: frozenset[str] | None = None) -> Answer:
    """Serve one request; raises Refused for what the API answers with an error.

    `scopes` is what the token may do, None for everything; a scope that is missing is found out before anything else.
    """
    is_known = False
    cloud.pass_time()
    for method, pattern, handler in ROUTES:
        found = pattern.fullmatch(request.path)
        if found is not None:
            is_known = True
            if method == request.method:
                _check_scopes(cloud, request, scopes)
                return handler(cloud, request, found.groupdict())
    if is_known:
        raise Refused(405, "method_not_allowed", "The method is not allowed for this resource.")
    raise not_found()


def _check_scopes(cloud: Cloud, request: Request, scopes: frozenset[str] | None) -> None:
    """Refuse what the token may not do: a scope is `<resource>:<verb>`, and a create with new tags needs two."""
    if scopes is None:
        return
    resource = next(name for start, name in _RESOURCES if request.path.startswith(start))
    verb = {"GET": "read", "POST": "create", "DELETE": "delete"}[request.method]
    needed = {f"{resource}:{'update' if verb == 'create' and request.path.endswith('/actions') else verb}"}
    if request.path == "/v2/droplets" and verb == "create" and isinstance(request.body, dict):
        tags = request.body.get("tags")
        if isinstance(tags, list) and any(tag not in cloud.tags for tag in tags):
            needed.add("tag:create")
    if not needed <= scopes:
        raise Refused(403, "forbidden", "You are not authorized to perform this operation")


_RESOURCES = (
    ("/v2/account/keys", "ssh_key"),
    ("/v2/account", "account"),
    ("/v2/customers", "billing"),
    ("/v2/sizes", "sizes"),
    ("/v2/regions", "regions"),
    ("/v2/images", "image"),
    ("/v2/droplets", "droplet"),
    ("/v2/actions", "actions"),
    ("/v2/tags", "tag"),
)


# -- account


def _account(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    account = {
        "droplet_limit": cloud.knobs.droplet_limit,
        "floating_ip_limit": 3,
        "email": "sandbox@chisel.example",
        "name": "Sandbox",
        "uuid": "00000000000000000000000000005a9d00000000",
        "email_verified": True,
        "status": cloud.knobs.account_status,
        "status_message": "",
        "team": {"uuid": "00000000000000000000000000005a9d00000001", "name": "chisel sandbox"},
    }
    return Answer(200, {"account": account})


def _balance(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    usd = cloud.bill()["usd"]
    return Answer(
        200,
        {
            "month_to_date_balance": usd,
            "account_balance": "0.00",
            "month_to_date_usage": usd,
            "generated_at": as_text(cloud.clock.now()),
        },
    )


def _keys(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return _page(cloud, request, "ssh_keys", [_key_json(key) for key in list(cloud.keys.values())])


def _add_key(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    fields = request.fields()
    return Answer(201, {"ssh_key": _key_json(cloud.add_key(fields.get("name"), fields.get("public_key")))})


def _key(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return Answer(200, {"ssh_key": _key_json(cloud.key(words["key"]))})


def _delete_key(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    with cloud.lock:
        del cloud.keys[cloud.key(words["key"]).id]
    return Answer(204)


def _key_json(key: Key) -> Json:
    return {"id": key.id, "fingerprint": key.fingerprint, "public_key": key.public_key, "name": key.name}


# -- what is on offer


def _sizes(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return _page(cloud, request, "sizes", SIZES)


def _regions(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return _page(cloud, request, "regions", REGIONS)


def _images(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return _page(cloud, request, "images", cloud.images if request.query.get("private") == "true" else IMAGES)


def _image(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    found = find_image(words["image"], cloud.images)
    if found is None:
        raise not_found()
    return Answer(200, {"image": found})


# -- droplets


def _droplets(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    query = request.query
    if "tag_name" in query and ("name" in query or "type" in query):
        raise unprocessable("tag_name cannot be combined with name or type")
    if query.get("type", "droplets") not in {"droplets", "gpus"}:
        raise unprocessable("type must be droplets or gpus")
    found = cloud.list(tag=query.get("tag_name"), name=query.get("name"), gpus=query.get("type") == "gpus")
    return _page(cloud, request, "droplets", [_droplet_json(cloud, droplet) for droplet in found])


def _create(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    fields = request.fields()
    made, actions = cloud.create(fields)
    links = {
        "actions": [
            {"id": action.id, "rel": "create", "href": f"{request.url}/v2/actions/{action.id}"} for action in actions
        ]
    }
    shown = [_droplet_json(cloud, droplet) for droplet in made]
    return Answer(
        202, {"droplets": shown, "links": links} if "names" in fields else {"droplet": shown[0], "links": links}
    )


def _droplet(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return Answer(200, {"droplet": _droplet_json(cloud, cloud.seen(_id(words["id"])))})


def _destroy(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    cloud.destroy(_id(words["id"]))
    return Answer(204)


def _destroy_tagged(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    tag = request.query.get("tag_name")
    if not tag:
        raise unprocessable("tag_name is required")
    cloud.destroy_tagged(tag)
    return Answer(204)


def _act(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    fields, id = request.fields(), _id(words["id"])
    kind = fields.get("type")
    if kind == "snapshot":
        action = cloud.take_snapshot(id, fields.get("name"))
    else:
        action = cloud.power(id, kind if isinstance(kind, str) else "")
    return Answer(201, {"action": _action_json(cloud, action)})


def _droplet_actions(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    id = cloud.get(_id(words["id"])).id
    mine = [_action_json(cloud, action) for action in list(cloud.actions.values()) if action.droplet_id == id]
    return _page(cloud, request, "actions", mine)


def _action(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    found = cloud.action(_id(words["action"]))
    if "id" in words and found.droplet_id != _id(words["id"]):
        raise not_found()
    return Answer(200, {"action": _action_json(cloud, found)})


def _actions(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return _page(cloud, request, "actions", [_action_json(cloud, action) for action in list(cloud.actions.values())])


def _droplet_json(cloud: Cloud, droplet: Droplet) -> Json:
    size, port = droplet.size, cloud.port_of(droplet)
    shown = {
        "id": droplet.id,
        "name": droplet.name,
        "memory": size["memory"],
        "vcpus": size["vcpus"],
        "disk": size["disk"],
        "disk_info": size["disk_info"],
        "locked": False,
        "status": cloud.status_of(droplet),
        "kernel": None,
        "created_at": as_text(droplet.created_at - cloud.knobs.clock_behind_s),
        "features": [],
        "backup_ids": [],
        "next_backup_window": None,
        "snapshot_ids": [],
        "image": droplet.image,
        "volume_ids": [],
        "size": size,
        "size_slug": size["slug"],
        "networks": {"v4": _networks_json(cloud, droplet, port), "v6": []},
        "region": find_region(droplet.region),
        "tags": list(droplet.tags),
        "vpc_uuid": droplet.vpc_uuid,
    }
    return {**shown, "gpu_info": size["gpu_info"]} if "gpu_info" in size else shown


def _networks_json(cloud: Cloud, droplet: Droplet, port: int | None) -> list[Json]:
    if port is None:
        return []
    private = _private_address(cloud, droplet)
    shown = [_network_json(port)]
    if private is not None:
        shown.append({"ip_address": private, "netmask": "255.0.0.0", "gateway": "nil", "type": "private"})
    return shown


def _private_address(cloud: Cloud, droplet: Droplet) -> str | None:
    """Return an address of the droplet's own that works on one machine: Linux takes all of 127.0.0.0/8 as its own."""
    if not cloud.knobs.has_private_network or sys.platform != "linux":
        return None
    low, high = droplet.id % 250 + 1, droplet.id // 250 % 250
    # The other network is set aside for documentation (RFC 5737): no machine has an address in it.
    return (
        f"192.0.2.{low}" if cloud.knobs.closes_private_network else f"127.{16 + droplet.id // 62500 % 200}.{high}.{low}"
    )


def _network_json(port: int) -> Json:
    """Show the public address; `ssh_port` is the sandbox's own, because all its droplets share one address."""
    return {
        "ip_address": "127.0.0.1",
        "netmask": "255.0.0.0",
        "gateway": "127.0.0.1",
        "type": "public",
        "ssh_port": port,
    }


def _action_json(cloud: Cloud, action: Action) -> Json:
    droplet = cloud.droplets.get(action.droplet_id)
    has_vanished = any(one.id == action.droplet_id for one in cloud.failed)
    has_failed = action.kind == "create" and (has_vanished or (droplet is not None and droplet.has_failed))
    is_open = action.kind == "create" and droplet is not None and not has_failed and cloud.status_of(droplet) == "new"
    return {
        "id": action.id,
        "status": "errored" if has_failed else "in-progress" if is_open else "completed",
        "type": action.kind,
        "started_at": as_text(action.started_at),
        "completed_at": None if is_open else as_text(action.started_at),
        "resource_id": action.droplet_id,
        "resource_type": "droplet",
        "region": find_region(action.region),
        "region_slug": action.region,
    }


# -- tags


def _tags(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return _page(cloud, request, "tags", [_tag_json(cloud, tag) for tag in sorted(cloud.tags)])


def _add_tag(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    return Answer(201, {"tag": _tag_json(cloud, cloud.add_tag(request.fields().get("name")))})


def _tag(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    if words["tag"] not in cloud.tags:
        raise not_found()
    return Answer(200, {"tag": _tag_json(cloud, words["tag"])})


def _put_tag(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    cloud.mark(words["tag"], _resources(request.fields()), is_on=True)
    return Answer(204)


def _take_tag(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    cloud.mark(words["tag"], _resources(request.fields()), is_on=False)
    return Answer(204)


def _resources(fields: Json) -> list[int]:
    """Return the ids of the droplets that a body names; other resources are not played."""
    found = fields.get("resources")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise unprocessable("resources must be a list of objects")
    if any(one.get("resource_type") != "droplet" for one in found):
        raise unprocessable("the sandbox knows no resource but droplets")
    return [_id(str(one.get("resource_id"))) for one in found]


def _delete_tag(cloud: Cloud, request: Request, words: Mapping[str, str]) -> Answer:
    cloud.delete_tag(words["tag"])
    return Answer(204)


def _tag_json(cloud: Cloud, tag: str) -> Json:
    count = len(cloud.list(tag=tag))
    nothing = {"count": 0}
    return {"name": tag, "resources": {"count": count, "droplets": {"count": count}, "volumes": nothing}}


# -- pages


def _page(cloud: Cloud, request: Request, name: str, entries: Sequence[Any]) -> Answer:
    """Return one page with its links, as every list of the API comes."""
    size = min(cloud.knobs.page_size, _number(request, "per_page", DEFAULT_PER_PAGE, MAX_PER_PAGE))
    page = _number(request, "page", 1, 1_000_000)
    last = max(1, -(-len(entries) // size))
    places: Json = {}
    if page > 1:
        places |= {"first": 1, "prev": page - 1}
    if page < last:
        places |= {"next": page + 1, "last": last}
    pages = {word: f"{request.url}{request.path}?page={number}&per_page={size}" for word, number in places.items()}
    shown = list(entries[(page - 1) * size : page * size])
    return Answer(200, {name: shown, "links": {"pages": pages} if pages else {}, "meta": {"total": len(entries)}})


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) <= most):
        raise unprocessable(f"{name} must be a number from 1 to {most}")
    return int(text)


def _id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise not_found()
    return int(text)


def _route(method: str, path: str, handler: Handler) -> tuple[str, re.Pattern[str], Handler]:
    return method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), handler


ROUTES = (
    _route("GET", "/v2/account", _account),
    _route("GET", "/v2/customers/my/balance", _balance),
    _route("GET", "/v2/account/keys", _keys),
    _route("POST", "/v2/account/keys", _add_key),
    _route("GET", "/v2/account/keys/{key}", _key),
    _route("DELETE", "/v2/account/keys/{key}", _delete_key),
    _route("GET", "/v2/sizes", _sizes),
    _route("GET", "/v2/regions", _regions),
    _route("GET", "/v2/images", _images),
    _route("GET", "/v2/images/{image}", _image),
    _route("GET", "/v2/droplets", _droplets),
    _route("POST", "/v2/droplets", _create),
    _route("DELETE", "/v2/droplets", _destroy_tagged),
    _route("GET", "/v2/droplets/{id}", _droplet),
    _route("DELETE", "/v2/droplets/{id}", _destroy),
    _route("GET", "/v2/droplets/{id}/actions", _droplet_actions),
    _route("POST", "/v2/droplets/{id}/actions", _act),
    _route("GET", "/v2/droplets/{id}/actions/{action}", _action),
    _route("GET", "/v2/actions", _actions),
    _route("GET", "/v2/actions/{action}", _action),
    _route("GET", "/v2/tags", _tags),
    _route("POST", "/v2/tags", _add_tag),
    _route("GET", "/v2/tags/{tag}", _tag),
    _route("DELETE", "/v2/tags/{tag}", _delete_tag),
    _route("POST", "/v2/tags/{tag}/resources", _put_tag),
    _route("DELETE", "/v2/tags/{tag}/resources", _take_tag),
)
