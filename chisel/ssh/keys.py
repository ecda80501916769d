"""Make, keep and name SSH keys: Ed25519 only, in OpenSSH's text forms.

asyncssh is imported where a key is made or read, not with this module: whoever only passes keys on starts faster.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from chisel.errors import ConfigError

ALGORITHM = "ssh-ed25519"
_LARGEST_KEY_FILE_BYTES = 1 << 16
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An Ed25519 key pair in OpenSSH's forms: the private PEM text, the public one-line text with its comment."""

    private_openssh: str
    public_openssh: str

    def __repr__(self) -> str:
        """Show the public half only."""
        return f"KeyPair({self.public_openssh!r})"


def generate_keypair(comment: str) -> KeyPair:
    """Make a new key pair; pure CPU (about 1 ms, and asyncssh's import the first time)."""
    import asyncssh

    key = asyncssh.generate_private_key(ALGORITHM, comment=comment)
    private, public = key.export_private_key("openssh"), key.export_public_key("openssh")
    return KeyPair(private.decode("ascii"), public.decode("utf-8").strip())


def load_or_create_client_key(path: Path) -> KeyPair:
    """Return the key pair kept in a file, made there the first time; blocking, so call it in a thread.

    The file is created whole or not at all, mode 0600, missing parents 0700; of two that create it at once, both
    return the same key. Raises ConfigError for a file that others may read, that is no plain file, or no such key.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ConfigError(f"cannot read the key `{path}`: {error.strerror}") from error
    try:
        _create(path)
        return _load(path)
    except OSError as error:
        raise ConfigError(f"cannot create the key `{path}`: {error.strerror}") from error


def fingerprint_md5(public_openssh: str) -> str:
    """Return a public key's fingerprint as DigitalOcean writes it: `aa:bb:...`."""
    digest = hashlib.md5(_blob(public_openssh), usedforsecurity=False).hexdigest()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def fingerprint_sha256(public_openssh: str) -> str:
    """Return a public key's fingerprint as OpenSSH writes it: `SHA256:...`."""
    digest = hashlib.sha256(_blob(public_openssh)).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


def _blob(public_openssh: str) -> bytes:
    try:
        return base64.b64decode(public_openssh.split()[1], validate=True)
    except (IndexError, ValueError) as error:
        raise ConfigError(f"`{public_openssh[:40]}` is no public key in OpenSSH's form") from error


def _load(path: Path) -> KeyPair:
    import asyncssh

    text = _read_private(path)
    try:
        key = asyncssh.import_private_key(text)
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        hint = f"mv {path} {path}.old, and chisel makes a new one"
        raise ConfigError(f"`{path}` holds no private key that chisel can use: {error}", hint=hint) from error
    if key.get_algorithm() != ALGORITHM:
        raise ConfigError(f"`{path}` holds a key of type `{key.get_algorithm()}`; chisel uses `{ALGORITHM}`")
    return KeyPair(text, key.export_public_key("openssh").decode("utf-8").strip())


def _read_private(path: Path) -> str:
    """Read a file that only its owner may read; raises ConfigError with how to mend it."""
    with open(path, "rb", opener=_open_plainly) as source:
        facts = os.fstat(source.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(f"the key `{path}` is no plain file")
        if facts.st_uid != os.geteuid():
            raise ConfigError(f"the key `{path}` belongs to another user")
        if facts.st_mode & _OTHERS:
            raise ConfigError(f"the key `{path}` can be read by others", hint=f"chmod 600 {path}")
        return source.read(_LARGEST_KEY_FILE_BYTES).decode("ascii", "replace")


def _open_plainly(path: str, flags: int) -> int:
    """Open without waiting for a peer, in case the path is a pipe."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _create(path: Path) -> None:
    """Write a new key beside the path and link it there: whoever links first wins, nothing is ever overwritten."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair = generate_keypair("chisel")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(pair.private_openssh)
            out.flush()
            os.fsync(out.fileno())
        _link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
