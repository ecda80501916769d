"""Exchange two files in one step. Standard library only, Python 3.10."""

from __future__ import annotations

import os

_RENAME_EXCHANGE = 2


def exchanged(name: str, directory: int, other: str, other_directory: int) -> bool:
    """Exchange two paths by renameat2(2); False, with nothing changed, where the system or the disk cannot.

    ext4 writes a file out before it lets it replace another by rename(2) (ext4(5), `auto_da_alloc`), which takes
    0.1 s for 200 MB, and frees what was replaced, which takes as long.
    """
    try:
        import ctypes

        rename = ctypes.CDLL(None).renameat2
        failed = rename(directory, os.fsencode(name), other_directory, os.fsencode(other), _RENAME_EXCHANGE)
    except (ImportError, OSError, AttributeError):
        return False
    return not failed
