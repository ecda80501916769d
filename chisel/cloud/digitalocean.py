"""Speak to DigitalOcean through pydo: the only module that knows it, and the only one that sees its exceptions.

pydo's own habits are switched off where they cost money or time (measured with 0.44.0 and azure-core 1.41.0): it sends
a failed create up to four times, sleeps through `Retry-After` whatever its timeout, returns 404 as an ordinary value,
lets `~/.netrc` replace the token, and waits 300 s for a silent server.
"""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio

from chisel import __version__
from chisel.cloud import decode
from chisel.cloud.abilities import IMPOSSIBLE_FINGERPRINT, IMPOSSIBLE_ID, IMPOSSIBLE_TAG, judged, told_by
from chisel.cloud.base import Cloud
from chisel.cloud.deadline import Calls, DeadlinePassed
from chisel.cloud.headers import ahead_of, retry_after_s
from chisel.cloud.refusals import is_clear, refusal
from chisel.config import DEFAULT_API_URL, check_api_url
from chisel.errors import ChiselError, CloudError, NotFoundError, OutcomeUnknown
from chisel.events import NullSink, Retry, Sink
from chisel.model import Abilities, Account, CreateRequest, Droplet, DropletId, Secret, Size, Snapshot, SshKey

T = TypeVar("T")

CONNECT_TIMEOUT_S, READ_TIMEOUT_S, REQUEST_TIMEOUT_S = 5, 20, 30
_PER_PAGE = 200
_ATTEMPTS = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.3, 5.0
_KEY_LAG_S = (0.0, 0.5, 1.0, 2.0, 4.0)
_CLOSE_S = 2.0
_ECHOED = re.compile(r"authorization: bearer \*\*\*", re.IGNORECASE)
_NEVER_SENT = {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ConnectTimeout"}


@asynccontextmanager
async def open_digitalocean(
    token: Secret,
    *,
    api_url: str = DEFAULT_API_URL,
    sink: Sink | None = None,
    transport: Any = None,
    deadline_s: float = 30.0,
) -> AsyncIterator[Cloud]:
    """Open one account of DigitalOcean; nothing is sent yet.

    Every call of what is yielded ends within `deadline_s` seconds, its retries included; each retry is an event for
    `sink`. `transport` replaces azure-core's own (tests). Raises ConfigError for an unusable address. Leaving waits
    for no call that still hangs.
    """
    url = check_api_url(api_url)
    calls = Calls()
    try:
        client = await calls.call(
            partial(_make_client, token, url, transport), ends_at=anyio.current_time() + deadline_s
        )
    except DeadlinePassed as late:
        raise CloudError(f"pydo could not be loaded within {deadline_s:g} s") from late
    try:
        yield DigitalOcean(client, token, url, sink or NullSink(), calls, deadline_s)
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True) as closing:
            await calls.call(client.close, ends_at=closing.deadline)


def _make_client(token: Secret, url: str, transport: Any) -> Any:
    """Import pydo (0.1 s, and much more without compiled files) and make its client; runs in a thread."""
    import pydo

    options = {"transport": transport} if transport is not None else {}
    return pydo.Client(
        token.reveal(),
        endpoint=url,
        timeout=REQUEST_TIMEOUT_S,
        connection_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retry_total=0,
        permit_redirects=False,
        use_env_settings=False,
        auto_request_id=False,  # a uuid1, which tells everybody this machine's hardware address
        user_agent=f"chisel/{__version__}",
        **options,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back, with the status that pydo hides."""

    status: int
    headers: Mapping[str, str]
    text: str
    body: Any = None


@dataclass(frozen=True, slots=True)
class _Order:
    """One call for the API: `what` names it in messages, `ends_at` is the clock of the whole operation."""

    what: str
    send: Callable[..., Any]
    ends_at: float
    is_deletion: bool = False


class _Trouble(Exception):
    """An attempt that failed: `is_transient` may be tried again, `is_clear` says that nothing was changed by it."""

    def __init__(
        self,
        error: ChiselError,
        *,
        is_transient: bool = False,
        is_clear: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.is_transient = is_transient
        self.is_clear = is_clear
        self.retry_after_s = retry_after_s


class DigitalOcean:
    """Fulfil `chisel.cloud.base.Cloud`."""

    def __init__(self, client: Any, token: Secret, api_url: str, sink: Sink, calls: Calls, deadline_s: float) -> None:
        self.ahead = timedelta(0)
        self._client = client
        self._token = token
        self._host = urlsplit(api_url).netloc
        # azure-core refuses to send a bearer token over http unless each call says so; the address was checked.
        self._options = {"enforce_https": False} if api_url.startswith("http://") else {}
        self._sink = sink
        self._calls = calls
        self._deadline_s = deadline_s

    def _ends_at(self) -> float:
        return anyio.current_time() + self._deadline_s

    # -- calls that change nothing

    async def account(self) -> Account:
        """Return what the account is and how many droplets it may have."""
        order = _Order("reading the account", self._client.account.get, self._ends_at())
        return decode.account((await self._retried(order)).body)

    async def abilities(self) -> Abilities:
        """Find out what the token may do, with requests that cannot succeed: nothing is changed."""
        api, ends_at = self._client, self._ends_at()
        harmless = {
            "delete droplets": partial(api.droplets.destroy, IMPOSSIBLE_ID),
            "create droplets": partial(api.droplets.create, body={}),
            "power droplets": partial(api.droplet_actions.post, IMPOSSIBLE_ID, body={"type": "power_off"}),
            "register SSH keys": partial(api.ssh_keys.create, body={}),
            "make tags": partial(api.tags.create, body={}),
            "delete tags": partial(api.tags.delete, IMPOSSIBLE_TAG),
            "read the account": api.account.get,
            "read droplets": partial(api.droplets.get, IMPOSSIBLE_ID),
            "read sizes": api.sizes.list,
            "read SSH keys": partial(api.ssh_keys.get, IMPOSSIBLE_FINGERPRINT),
        }
        found = {}
        for what, send in harmless.items():
            order = _Order(f"trying whether the token may {what}", send, ends_at)
            found[what] = told_by(await self._status_of(order))
        return judged(found)

    async def _status_of(self, order: _Order) -> int | None:
        """Return the status of an answer, None without one; raises CredentialsRefused for a token that is not valid."""
        try:
            return (await self._attempt(order)).status
        except _Trouble as trouble:
            status = trouble.error.status if isinstance(trouble.error, CloudError) else None
            if status == 401:
                raise trouble.error from trouble.__cause__
            return status

    async def sizes(self) -> list[Size]:
        """Return every size with its price and the regions where it can be created now."""
        order = _Order("listing sizes", self._client.sizes.list, self._ends_at())
        return await self._pages(order, "sizes", decode.size)

    async def list_droplets(self, *, tag: str | None = None) -> list[Droplet]:
        """Return all droplets (with this tag), GPU and others, from all pages, by id.

        The default listing leaves GPU droplets out (specification of 2026-08-07); whether a listing by tag does is not
        said, and the two filters cannot be combined: so the GPU droplets are always asked for as well.
        """
        ends_at = self._ends_at()
        by_tag = {} if tag is None else {"tag_name": tag}
        plain = _Order("listing droplets", partial(self._client.droplets.list, **by_tag), ends_at)
        gpus = _Order("listing GPU droplets", partial(self._client.droplets.list, type="gpus"), ends_at)
        found = {one.id: one for one in await self._pages(plain, "droplets", decode.droplet)}
        for one in await self._pages(gpus, "droplets", decode.droplet):
            if tag is None or tag in one.tags:
                found[one.id] = one
        return [found[id] for id in sorted(found)]

    async def get_droplet(self, id: DropletId) -> Droplet:
        """Return one droplet; raises NotFoundError when it is gone, or not yet visible."""
        order = _Order(f"reading droplet `{id}`", partial(self._client.droplets.get, int(id)), self._ends_at())
        droplet = decode.droplet_of((await self._retried(order)).body)
        if droplet.id != id:
            raise CloudError(f"reading droplet `{id}`: the API answered with droplet `{droplet.id}`")
        return droplet

    # -- deletions, which may be repeated

    async def destroy_droplet(self, id: DropletId) -> None:
        """Destroy one droplet; it may stay visible for seconds. Raises NotFoundError when it is already gone."""
        send = partial(self._client.droplets.destroy, int(id))
        await self._retried(_Order(f"destroying droplet `{id}`", send, self._ends_at(), is_deletion=True))

    async def delete_tag(self, tag: str) -> None:
        """Delete a tag, not what carries it; a tag that is already gone is fine."""
        order = _Order(f"deleting tag `{tag}`", partial(self._client.tags.delete, tag), self._ends_at())
        try:
            await self._retried(order)
        except NotFoundError:
            return

    # -- what is sent exactly once

    async def create_droplet(self, request: CreateRequest) -> Droplet:
        """Send one create request, exactly once, and return the new droplet.

        Raises OutcomeUnknown when no clear answer came; any other CloudError means that nothing was created.
        """
        what = f"creating droplet `{request.name}`"
        send = partial(self._client.droplets.create, body=_create_body(request))
        answer = await self._once(_Order(what, send, self._ends_at()))
        try:
            return decode.droplet_of(answer.body)
        except CloudError as unfit:
            raise _unknown(what, unfit) from unfit

    async def power_on(self, id: DropletId) -> None:
        """Start a droplet that is off, sent once (OutcomeUnknown without a clear answer)."""
        send = partial(self._client.droplet_actions.post, int(id), body={"type": "power_on"})
        await self._once(_Order(f"powering on droplet `{id}`", send, self._ends_at()))

    async def snapshots(self) -> list[Snapshot]:
        """Return the account's own images that were made from droplets, the newest last."""
        order = _Order("listing images", partial(self._client.images.list, private=True), self._ends_at())
        found = [one for one in await self._pages(order, "images", decode.snapshot) if one is not None]
        return sorted(found, key=lambda one: one.created_at)

    async def take_snapshot(self, id: DropletId, name: str) -> int:
        """Ask once for a snapshot of a droplet and return the action's id; OutcomeUnknown without a clear answer."""
        send = partial(self._client.droplet_actions.post, int(id), body={"type": "snapshot", "name": name})
        answer = await self._once(_Order(f"taking a snapshot of droplet `{id}`", send, self._ends_at()))
        return decode.action(answer.body)[0]

    async def action_status(self, id: int) -> str:
        """Return how far an action is: `in-progress`, `completed` or `errored`."""
        order = _Order(f"reading action `{id}`", partial(self._client.actions.get, id), self._ends_at())
        return decode.action((await self._retried(order)).body)[1]

    async def tag_droplet(self, tag: str, id: DropletId) -> None:
        """Put a tag, made where there is none, on a droplet; raises NotFoundError for a droplet that is gone.

        Both requests say what shall hold, not what shall change, so they may be repeated.
        """
        ends_at = self._ends_at()
        make = partial(self._client.tags.create, body={"name": tag})
        await self._retried(_Order(f"making tag `{tag}`", make, ends_at))
        put = partial(self._client.tags.assign_resources, tag, body=_resource(id))
        await self._retried(_Order(f"tagging droplet `{id}`", put, ends_at))

    async def untag_droplet(self, tag: str, id: DropletId) -> None:
        """Take a tag off a droplet; one that it does not carry is fine."""
        send = partial(self._client.tags.unassign_resources, tag, body=_resource(id))
        try:
            await self._retried(_Order(f"taking tag `{tag}` off droplet `{id}`", send, self._ends_at()))
        except NotFoundError:
            return

    async def power_off(self, id: DropletId) -> None:
        """Cut a droplet's power, sent once (OutcomeUnknown without a clear answer): it goes on billing in full."""
        send = partial(self._client.droplet_actions.post, int(id), body={"type": "power_off"})
        await self._once(_Order(f"powering off droplet `{id}`", send, self._ends_at()))

    async def ensure_ssh_key(self, name: str, public_openssh: str) -> SshKey:
        """Return the account's entry for a public key, registering it under `name` when it is not there.

        Looked up by its fingerprint: listing keys is limited to 10 requests a minute.
        """
        fingerprint = decode.fingerprint_md5(public_openssh)
        ends_at = self._ends_at()
        found = await self._find_key(fingerprint, ends_at)
        return found or await self._register_key(name, public_openssh, fingerprint, ends_at)

    async def _find_key(self, fingerprint: str, ends_at: float) -> SshKey | None:
        order = _Order("looking up the SSH key", partial(self._client.ssh_keys.get, fingerprint), ends_at)
        try:
            return decode.ssh_key((await self._retried(order)).body)
        except NotFoundError:
            return None

    async def _register_key(self, name: str, public_openssh: str, fingerprint: str, ends_at: float) -> SshKey:
        body = {"name": name, "public_key": public_openssh.strip()}
        order = _Order("registering the SSH key", partial(self._client.ssh_keys.create, body=body), ends_at)
        try:
            return decode.ssh_key((await self._once(order)).body)
        except CloudError as error:
            # 422: somebody registered it meanwhile. No clear answer: it may be there now.
            if error.status != 422 and not isinstance(error, OutcomeUnknown):
                raise
            refused = error
        for lag_s in _KEY_LAG_S:
            if anyio.current_time() + lag_s >= ends_at:
                break
            await anyio.sleep(lag_s)
            found = await self._find_key(fingerprint, ends_at)
            if found is not None:
                return found
        raise refused

    # -- sending

    async def _pages(self, order: _Order, name: str, item: Callable[[Any, str], T]) -> list[T]:
        """Return every entry of every page of a listing."""
        found: list[T] = []
        page: int | None = 1
        while page is not None:
            send = partial(order.send, per_page=_PER_PAGE, page=page)
            answer = await self._retried(_Order(order.what, send, order.ends_at))
            entries = decode.listed(answer.body, name, item)
            found += entries
            page = decode.next_page(answer.body, page, len(found)) if entries else None
        return found

    async def _once(self, order: _Order) -> _Answer:
        """Send a request that changes something, once; raises OutcomeUnknown unless the answer is clear."""
        try:
            return await self._attempt(order)
        except _Trouble as trouble:
            if trouble.is_clear:
                raise trouble.error from trouble.__cause__
            raise _unknown(order.what, trouble.error) from trouble.__cause__

    async def _retried(self, order: _Order) -> _Answer:
        """Send a request that may be repeated, again and again while it fails for a reason that may pass.

        Those are lost connections, 5xx and 429. `Retry-After` is obeyed, or ends the trying when it asks for more time
        than there is.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._attempt(order)
            except _Trouble as trouble:
                if order.is_deletion and attempt > 1 and isinstance(trouble.error, NotFoundError):
                    return _Answer(404, {}, "")  # an earlier attempt, whose answer was lost, has done it
                wait_s = _wait_s(attempt) if trouble.retry_after_s is None else trouble.retry_after_s
                is_late = anyio.current_time() + wait_s >= order.ends_at
                if not trouble.is_transient or attempt >= _ATTEMPTS or is_late:
                    raise trouble.error from trouble.__cause__
                reason = trouble.error.message.removeprefix(f"{order.what}: ")
            self._sink.emit(Retry(what=order.what, attempt=attempt, wait_s=wait_s, reason=reason))
            await anyio.sleep(wait_s)

    async def _attempt(self, order: _Order) -> _Answer:
        """Send once and return a success; everything else is a _Trouble."""
        from azure.core.exceptions import AzureError

        try:
            answer: _Answer = await self._calls.call(
                partial(order.send, cls=_keep, **self._options), ends_at=order.ends_at
            )
        except DeadlinePassed as late:
            raise self._late(order, was_sent=late.was_started) from late
        except AzureError as error:
            raise self._failed(order, error) from (None if self._token.reveal() in str(error) else error)
        except ValueError as error:
            raise _Trouble(_not_json(order.what)) from error
        if not 200 <= answer.status < 300:
            raise self._refused(order, answer)
        self.ahead = ahead_of(datetime.now(UTC), answer.headers)
        return answer

    def _late(self, order: _Order, *, was_sent: bool) -> _Trouble:
        error = CloudError(
            f"{order.what}: no answer from `{self._host}` within {self._deadline_s:g} s",
            hint="an outage? https://status.digitalocean.com",
        )
        return _Trouble(error, is_clear=not was_sent)

    def _failed(self, order: _Order, error: Exception) -> _Trouble:
        """Judge what azure-core raised: an answer that is no success, or no answer at all."""
        response = getattr(error, "response", None)
        if response is not None:
            return self._refused(order, _answer_of(response))
        names = {type(cause).__name__ for cause in _causes(error)}
        lost = CloudError(f"{order.what}: {_lost(self._host, names)}", hint="is this machine online?")
        return _Trouble(lost, is_transient=True, is_clear=bool(names & _NEVER_SENT))

    def _refused(self, order: _Order, answer: _Answer) -> _Trouble:
        self.ahead = ahead_of(datetime.now(UTC), answer.headers)  # a 404 of a droplet is judged by its age
        if 200 <= answer.status < 300:  # a success whose body azure-core could not read
            return _Trouble(_not_json(order.what))
        # Some servers repeat the request's headers in their error pages.
        text = _ECHOED.sub("***", answer.text.replace(self._token.reveal(), "***"))
        return _Trouble(
            refusal(order.what, answer.status, answer.headers, text),
            is_transient=answer.status == 429 or answer.status >= 500,
            is_clear=is_clear(answer.status, text),
            retry_after_s=retry_after_s(answer.headers),
        )


def _resource(id: DropletId) -> dict[str, Any]:
    return {"resources": [{"resource_id": str(int(id)), "resource_type": "droplet"}]}


def _create_body(request: CreateRequest) -> dict[str, Any]:
    """Return the body of one create; an image given as a number is an image's id."""
    return {
        "name": request.name,
        "region": request.region,
        "size": request.size,
        "image": int(request.image) if request.image.isdecimal() else request.image,
        "ssh_keys": list(request.ssh_keys),
        "tags": list(request.tags),
        "user_data": request.user_data,
        "with_droplet_agent": False,  # it would add keys of its own to root's authorized_keys
    }


def _keep(pipeline_response: Any, body: Any, _headers: Any) -> _Answer:
    """Take an answer out of pydo with its true status; pydo calls this hook for what it takes for a success."""
    answer = _answer_of(pipeline_response.http_response)
    return _Answer(answer.status, answer.headers, answer.text, body)


def _answer_of(response: Any) -> _Answer:
    headers = {str(key).lower(): str(value) for key, value in response.headers.items()}
    return _Answer(int(response.status_code), headers, response.read().decode("utf-8", "replace"))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Walk through everything an exception was made of.

    urllib3 and requests hide causes in `args` and `reason`, azure-core in `inner_exception`.
    """
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            hidden = (getattr(one, name, None) for name in ("reason", "inner_exception", "__cause__"))
            inner = (*one.args, *hidden)
            waiting += [cause for cause in inner if isinstance(cause, BaseException)]


def _lost(host: str, names: set[str]) -> str:
    """Say in words how a connection failed, from the names of the exceptions it caused."""
    words = (
        ("NameResolutionError", f"`{host}` cannot be found"),
        ("SSLCertVerificationError", f"`{host}` shows a certificate that is not trusted"),
        ("ConnectionRefusedError", f"`{host}` refuses connections"),
        ("ConnectTimeout", f"`{host}` does not answer"),
        ("ConnectTimeoutError", f"`{host}` does not answer"),
        ("NewConnectionError", f"`{host}` cannot be reached"),
        ("ReadTimeout", f"`{host}` took too long to answer"),
        ("ReadTimeoutError", f"`{host}` took too long to answer"),
    )
    return next((said for name, said in words if name in names), f"the connection to `{host}` was lost")


def _not_json(what: str) -> CloudError:
    return CloudError(
        f"{what}: the answer is not JSON", hint="does a proxy or a log-in page stand between here and the API?"
    )


def _unknown(what: str, error: ChiselError) -> OutcomeUnknown:
    status = error.status if isinstance(error, CloudError) else None
    request_id = error.request_id if isinstance(error, CloudError) else None
    message = error.message if error.message.startswith(what) else f"{what}: {error.message}"
    return OutcomeUnknown(f"{message}; it may have happened", hint=error.hint, status=status, request_id=request_id)


def _wait_s(attempt: int) -> float:
    """Return the pause after a failed attempt: doubled each time, capped, and jittered so that a fan-out spreads."""
    return float(min(_FIRST_WAIT_S * 2 ** (attempt - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0))
