"""Import asyncssh without what chisel does not use of it, for a quick start.

asyncssh 2.24 looks for liboqs and nettle through `ctypes.util.find_library`, which starts gcc and ldconfig: 40 ms of
every start here. chisel agrees on curve25519 and AES-GCM (see `connector`), for which neither is needed. Without
pyOpenSSL it has no X.509 certificates, and finds that out when it has loaded 16 ms of `cryptography`: it is told first.
"""

from __future__ import annotations

import ctypes.util
import sys
from importlib.util import find_spec

_CERTIFICATES = "asyncssh.crypto.x509"


def load_asyncssh() -> None:
    """Import it and what chisel has on top of it, once; libraries are not looked for meanwhile."""
    if "asyncssh" in sys.modules:
        return
    find = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None
    has_certificates = find_spec("OpenSSL") is not None
    if not has_certificates:
        sys.modules[_CERTIFICATES] = None  # type: ignore[assignment]  # to import it raises (`import`, Python's docs)
    try:
        import chisel.ssh.connector  # noqa: F401
    finally:
        ctypes.util.find_library = find
        if not has_certificates:
            del sys.modules[_CERTIFICATES]
