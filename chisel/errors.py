"""Name everything that can go wrong, with the exit status each class stands for.

A message says what failed, on what, with the value in backticks; a hint is the next command to type.
Subclasses exist where a caller would act differently.
"""

from __future__ import annotations

from collections.abc import Iterator


class ChiselError(Exception):
    """Say what failed; the base of every error chisel raises on purpose."""

    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ChiselError):
    """The command line or a call's arguments do not make sense; nothing was done."""

    exit_status = 2


class ConfigError(ChiselError):
    """Configuration or credentials are missing, unreadable or refused."""

    exit_status = 3


class CloudError(ChiselError):
    """DigitalOcean's API refused, failed, or did not answer in time.

    `status` is the HTTP status (None when there was no answer), `error_id` the API's `id` (`not_found`, ...),
    `request_id` what DigitalOcean's support asks for.
    """

    exit_status = 4

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        status: int | None = None,
        error_id: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.error_id = error_id
        self.request_id = request_id


class NotFoundError(CloudError):
    """The API says 404: the thing does not exist, or not yet (its list lags a create by seconds)."""


class CapacityError(CloudError):
    """The API refused a create because there is no room for that size in that region now: nothing was created."""


class CredentialsRefused(CloudError):
    """The API says 401 or 403: the token is wrong, expired, or lacks a scope."""

    exit_status = 3


class RateLimited(CloudError):
    """The API says 429; `retry_after_s` is what it asks for, None when it does not say."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, status=429, error_id="too_many_requests")
        self.retry_after_s = retry_after_s


class OutcomeUnknown(CloudError):
    """A request that changes something was sent and its answer never came: it may or may not have happened."""


class GuardrailError(ChiselError):
    """chisel refused to do what might cost money or destroy something without being told to."""

    exit_status = 5


class StateError(ChiselError):
    """The state file cannot be read, locked or written, or was written by a newer chisel."""

    exit_status = 6


class HostUnreachable(ChiselError):
    """A droplet could not be reached, or the connection to it was lost; `host` is its name.

    `was_asked` says that what was wanted of it was on its way: it may have been done.
    """

    exit_status = 255

    def __init__(self, message: str, *, host: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.was_asked = False


class HostKeyMismatch(HostUnreachable):
    """Another host key than the pinned one answered: nothing was sent there."""


class NotReady(HostUnreachable):
    """The droplet answers, but does not yet do what it is told (first boot, cloud-init, sshd restarting)."""


class RemoteError(ChiselError):
    """The node program on a droplet refused or failed; `code` is its short machine-readable reason."""

    def __init__(self, message: str, *, host: str, code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.host = host
        self.code = code


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Give the errors inside a group, groups within it included, in their order; an error that is none, itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error
