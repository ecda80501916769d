"""Import asyncssh without what chisel does not use of it, for a quick start.

asyncssh 2.24 looks for liboqs and nettle through `ctypes.util.find_library`, which starts gcc and ldconfig: 40 ms of
every start here. chisel agrees on curve25519 and AES-GCM (see `connector`), for which neither is needed.
"""

from __future__ import annotations

import ctypes.util
import sys


def load_asyncssh() -> None:
    """Import it and what chisel has on top of it, once; libraries are not looked for meanwhile."""
    if "asyncssh" in sys.modules:
        return
    find = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None
    try:
        import chisel.ssh.connector  # noqa: F401
    finally:
        ctypes.util.find_library = find
