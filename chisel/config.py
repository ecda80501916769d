"""Read and write what the user configured: the token, the API's address, defaults, and a project's `chisel.toml`.

Everything here blocks on the disk: call it in a thread, or before the event loop starts.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from chisel.errors import ConfigError
from chisel.model import Secret
from chisel.paths import PRIVATE_DIRECTORY, Paths, make_private_directory, write_private_file

DEFAULT_API_URL = "https://api.digitalocean.com"
DEFAULT_POOL = "chisel-dev"
DEFAULT_SIZES = ("gpu-mi300x1-192gb",)
DEFAULT_IMAGE = "gpu-amd-base"
DEFAULT_WARN_AFTER = timedelta(hours=4)
DEFAULT_AGENT_IDLE = timedelta(minutes=30)
DEFAULT_AGENT_LOOK = timedelta(minutes=1)
TOKEN_VARIABLE = "CHISEL_DO_TOKEN"
SELF_DESTRUCT_VARIABLE = "CHISEL_SELF_DESTRUCT_TOKEN"
API_URL_VARIABLE = "CHISEL_DO_API_URL"
PROJECT_FILE = "chisel.toml"
_VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOKEN = re.compile(r"[\x21-\x7e]+")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_MAX_BYTES = 1 << 20

TokenSource = Literal["environment", "file"]


@dataclass(frozen=True, slots=True)
class Config:
    """What holds for this user everywhere; `sizes` are wanted in this order, `region` None lets the offer decide.

    `token_source` says where the token came from; both are None when there is none for `api_url`. What droplets get to
    destroy themselves is `self_destruct_token`, which can only delete. Of droplets that have been up for `warn_after`
    every command warns (zero: none does). The background agent ends itself after `agent_idle` without a command;
    every `agent_look` it looks whether a droplet's time is over.
    """

    token: Secret | None
    token_source: TokenSource | None
    api_url: str = DEFAULT_API_URL
    pool: str = DEFAULT_POOL
    sizes: tuple[str, ...] = DEFAULT_SIZES
    region: str | None = None
    image: str = DEFAULT_IMAGE
    self_destruct_token: Secret | None = None
    warn_after: timedelta = DEFAULT_WARN_AFTER
    agent_idle: timedelta = DEFAULT_AGENT_IDLE
    agent_look: timedelta = DEFAULT_AGENT_LOOK


@dataclass(frozen=True, slots=True)
class Settings:
    """What a project's `chisel.toml` says; None and empty where it says nothing.

    `env` names the local variables that commands get, `setup` is a script relative to the project's root.
    """

    pool: str | None = None
    size: str | None = None
    region: str | None = None
    image: str | None = None
    env: tuple[str, ...] = ()
    setup: str | None = None


@dataclass(frozen=True, slots=True)
class Project:
    """A tree of the user's; `id` is its name plus a hash of its path, so that equal names never meet."""

    root: Path
    name: str
    id: str
    settings: Settings = Settings()


# -- the user's configuration


def load_config(paths: Paths, environ: Mapping[str, str], *, api_url: str | None = None) -> Config:
    """Read the environment and `config.toml`; `api_url` and the environment win over the file.

    The file's token is used only for the API it was stored for: it must not be sent to another host because a variable
    points there. Raises ConfigError for an unusable file, and for one that holds a token others could read or change.
    """
    source = _read_file(paths.config_file)
    values = source.values
    home = check_api_url(_text(values, "api_url", source.file) or DEFAULT_API_URL)
    wanted = check_api_url(api_url or environ.get(API_URL_VARIABLE) or home)
    token, token_source = _token(source, environ, "token", TOKEN_VARIABLE, use_file=wanted == home)
    second, _ = _token(source, environ, "self_destruct_token", SELF_DESTRUCT_VARIABLE, use_file=wanted == home)
    return Config(
        token=token,
        token_source=token_source,
        api_url=wanted,
        pool=_text(values, "pool", source.file) or DEFAULT_POOL,
        sizes=_sizes(values, source.file) or DEFAULT_SIZES,
        region=_text(values, "region", source.file),
        image=_text(values, "image", source.file) or DEFAULT_IMAGE,
        self_destruct_token=second,
        warn_after=_hours(values, "warn_after_hours", source.file),
        agent_idle=_minutes(values, "agent_idle_minutes", source.file) or DEFAULT_AGENT_IDLE,
        agent_look=_minutes(values, "agent_look_minutes", source.file) or DEFAULT_AGENT_LOOK,
    )


def _token(
    source: _Source, environ: Mapping[str, str], key: str, variable: str, *, use_file: bool
) -> tuple[Secret | None, TokenSource | None]:
    if given := environ.get(variable, "").strip():
        return _checked_token(given, f"`{variable}`"), "environment"
    stored = _text(source.values, key, source.file)
    if stored is None or not use_file:
        return None, None
    source.refuse_unless_private()
    return _checked_token(stored.strip(), f"`{key}` in `{source.file}`"), "file"


def _checked_token(text: str, what: str) -> Secret:
    """Refuse what cannot travel in a header; the message never shows the text."""
    if not _TOKEN.fullmatch(text):
        raise ConfigError(
            f"{what} has characters that no token has (a space or a line end inside?)", hint="chisel auth"
        )
    return Secret(text)


def save_token(
    paths: Paths, token: Secret | None, *, self_destruct: Secret | None = None, api_url: str | None = None
) -> None:
    """Store the tokens given (0600 in a 0700 folder) and the API they are for, keeping the file's other keys.

    Comments in the file are lost. Raises ConfigError for a file that is not ours alone or cannot be read or written;
    the old content is then still there.
    """
    given = {"token": token, "self_destruct_token": self_destruct}
    checked = {key: _checked_token(one.reveal(), "the token").reveal() for key, one in given.items() if one is not None}
    source = _read_file(paths.config_file)
    source.refuse_unless_private()
    values = {**source.values, **checked}
    if api_url is not None and api_url != (values.get("api_url") or DEFAULT_API_URL) and self_destruct is None:
        values.pop("self_destruct_token", None)  # it was for another API
    if api_url is not None:
        values["api_url"] = check_api_url(api_url)
    try:
        make_private_directory(paths.config_dir)
        paths.config_dir.chmod(PRIVATE_DIRECTORY)
        write_private_file(paths.config_file, dump_toml(values).encode(), suffix=f".new-{os.getpid()}")
    except OSError as error:
        raise ConfigError(
            f"cannot write `{paths.config_file}`: {error.strerror}", hint=f"or set {TOKEN_VARIABLE}"
        ) from error


def check_api_url(url: str) -> str:
    """Return the URL without a slash at its end; raises ConfigError unless it is https, or http to this machine.

    A token must not cross a network in the clear.
    """
    url = url.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if not host or parts.query or parts.fragment or "@" in parts.netloc or not url.isascii():
        raise ConfigError(f"`{url}` is not the address of an API", hint=f"like {DEFAULT_API_URL}")
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return url
    raise ConfigError(f"`{url}` must start with https:// (plain http only to this machine)")


def is_loopback(host: str) -> bool:
    """Say whether a host name or address means this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- a project


def find_project(start: Path) -> Project:
    """Return the project around a directory: the nearest with `chisel.toml` or `.git` upwards, else `start` itself.

    Raises ConfigError for a `chisel.toml` that cannot be read or says something unknown.
    """
    start = start.resolve()
    root = next((place for place in (start, *start.parents) if _is_root(place)), start)
    name = re.sub(r"[^a-z0-9]+", "-", root.name.lower()).strip("-")[:40] or "root"
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    return Project(root=root, name=name, id=f"{name}-{digest}", settings=_settings(root / PROJECT_FILE))


def _is_root(directory: Path) -> bool:
    return os.path.lexists(directory / PROJECT_FILE) or os.path.lexists(directory / ".git")


def _settings(file: Path) -> Settings:
    values = _read_file(file).values
    known = ("pool", "size", "region", "image", "env", "setup")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"`{file}` has the unknown key `{unknown[0]}`", hint=f"known: {', '.join(known)}")
    return Settings(
        pool=_text(values, "pool", file),
        size=_text(values, "size", file),
        region=_text(values, "region", file),
        image=_text(values, "image", file),
        env=_variables(values, file),
        setup=_inside(_text(values, "setup", file), file),
    )


def _variables(values: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    names = _texts(values, "env", file)
    wrong = next((name for name in names if not _VARIABLE_NAME.fullmatch(name)), None)
    if wrong is not None:
        raise ConfigError(f"`env` in `{file}` has `{wrong}`, which cannot name a variable", hint='env = ["HF_HOME"]')
    return names


def _inside(script: str | None, file: Path) -> str | None:
    if script is not None and (script.startswith("/") or ".." in script.split("/")):
        raise ConfigError(f"`setup` in `{file}` must lie inside the project: `{script}`", hint='setup = "./setup.sh"')
    return script


# -- reading


@dataclass(frozen=True, slots=True)
class _Source:
    """A TOML file's values (empty when it is not there), and why it is no place for a token, if so."""

    file: Path
    values: dict[str, Any]
    objection: str | None = None
    remedy: str | None = None

    def refuse_unless_private(self) -> None:
        if self.objection:
            raise ConfigError(f"`{self.file}` is no place for a token: {self.objection}", hint=self.remedy)


def _read_file(file: Path) -> _Source:
    try:
        descriptor, is_link = _open(file)
    except FileNotFoundError:
        return _Source(file, {})
    except OSError as error:
        raise ConfigError(f"cannot read `{file}`: {error.strerror}") from error
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"`{file}` is not a file")
        try:
            data = stream.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"cannot read `{file}`: {error.strerror}") from error
    objection, remedy = _objection(file, status, is_link=is_link)
    return _Source(file, _parse(file, data), objection, remedy)


def _open(file: Path) -> tuple[int, bool]:
    """Open without following a link in the last place; a link is followed in a second step, and said to be one."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO put here must not hang us
    try:
        return os.open(file, flags | os.O_NOFOLLOW), False
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        return os.open(file, flags), True


def _objection(file: Path, status: os.stat_result, *, is_link: bool) -> tuple[str | None, str | None]:
    """Say why others could read or change what this file holds, and what to type; Nones when they cannot."""
    if is_link:
        return "it is a symbolic link", f"put the file itself there, or set {TOKEN_VARIABLE}"
    if status.st_uid != os.geteuid():
        return f"it belongs to another user (uid {status.st_uid})", f"remove it, or set {TOKEN_VARIABLE}"
    if status.st_mode & 0o077:
        return f"others may read it (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod 600 {file}"
    return None, None


def _parse(file: Path, data: bytes) -> dict[str, Any]:
    """Parse TOML; the message names the place and never quotes the line, which may hold the token."""
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"`{file}` is too large for a configuration file")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"`{file}` is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place = re.search(r"\(at [a-z0-9, ]+\)$", str(error))
        raise ConfigError(f"`{file}` is not valid TOML {place.group() if place else ''}".rstrip()) from None


def _text(values: Mapping[str, Any], key: str, file: Path) -> str | None:
    value = values.get(key)
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"`{key}` in `{file}` must be a text in quotes")
    return value


def _texts(values: Mapping[str, Any], key: str, file: Path) -> tuple[str, ...]:
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"`{key}` in `{file}` must be a list of texts in quotes")
    return tuple(value)


def _hours(values: Mapping[str, Any], key: str, file: Path) -> timedelta:
    value = values.get(key)
    if value is None:
        return DEFAULT_WARN_AFTER
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e5:
        raise ConfigError(f"`{key}` in `{file}` must be a number of hours")
    return timedelta(hours=value)


def _minutes(values: Mapping[str, Any], key: str, file: Path) -> timedelta | None:
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ConfigError(f"`{key}` in `{file}` must be a number of minutes")
    return timedelta(minutes=value)


def _sizes(values: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Take `sizes = [...]` in the order of preference, or `size = "..."` alone."""
    one = _text(values, "size", file)
    return (one,) if one else _texts(values, "sizes", file)


# -- writing


def dump_toml(values: Mapping[str, Any]) -> str:
    """Write what `tomllib` reads back to the same values; plain keys first, then one section per table."""
    return "".join(_lines(values, ()))


def _lines(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"[{'.'.join(map(_key, path))}]\n"] if path else []
    lines += [f"{_key(key)} = {_value(value)}\n" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += ["\n", *_lines(value, (*path, key))]
    return lines


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int | float):
        return repr(value)  # inf and nan are TOML's own words, too
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _quoted(text: str) -> str:
    """Quote as a TOML basic string: backslash, quote and control characters escaped."""
    named = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return '"' + "".join(named.get(c) or (c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}") for c in text) + '"'
