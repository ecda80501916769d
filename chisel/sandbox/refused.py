"""Refuse requests in the API's own words."""

from __future__ import annotations

import base64
import binascii
import hashlib


class Refused(Exception):
    """A request that the API answers with an error: `status` is HTTP's, `id` the API's word for it."""

    def __init__(self, status: int, id: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.id = id


def unprocessable(message: str) -> Refused:
    """Return a 422."""
    return Refused(422, "unprocessable_entity", message)


def not_found() -> Refused:
    """Return a 404."""
    return Refused(404, "not_found", "The resource you requested could not be found.")


def md5_fingerprint(public_key: str) -> str:
    """Return DigitalOcean's fingerprint of a public key; raises Refused for a text that is none."""
    try:
        algorithm, blob = public_key.split()[:2]
        data = base64.b64decode(blob, validate=True)
    except (ValueError, binascii.Error):
        raise unprocessable("Key invalid, key should be of the format `ssh-rsa AAAA... user@host`") from None
    if algorithm.encode() not in data[: 4 + len(algorithm)]:
        raise unprocessable("Key invalid, key should be of the format `ssh-rsa AAAA... user@host`")
    return hashlib.md5(data, usedforsecurity=False).digest().hex(":")
