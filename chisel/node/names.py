"""Read kernel names as the profilers write them: endings that name nothing dropped, rows that are no kernel told apart.

Standard library only, Python 3.10: runs on the droplet and on the laptop.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable

# rocprof v1 appends `.kd`, rocprofv3's `--mangled-kernels` and LLVM ` [clone .kd]`, rocprof-compute `(.kd)`.
_ENDINGS = re.compile(r"(?:\s*\[clone \.kd\]|\s*\(\.kd\)|\.kd)+\s*$")
_PSEUDO = re.compile(r"<?barrier packet>?|unknown command type|", re.IGNORECASE)
_MANGLED = re.compile(r"_Z[A-Za-z0-9_$.]+")
_LONGEST_MANGLED = 16_384
_LONGEST_DEMANGLED = 32_768
_LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1", "libc++abi.dylib", "/usr/lib/libc++abi.dylib")


def normalise(name: str) -> str:
    """Return a kernel's name without the endings that differ between tools; `.kd` alone stays what it is."""
    return _ENDINGS.sub("", name).strip() or name


def is_pseudo(name: str) -> bool:
    """Say whether a row is not a kernel: rocprof v1 times barrier packets and what it cannot name as if they were."""
    return bool(_PSEUDO.fullmatch(name.strip().strip('"')))


class Demangler:
    """Turn mangled C++ names (`_Z...`) into what a developer wrote, where this machine has a C++ runtime.

    A name that is too long, or that the runtime does not take, stays as it is; every answer is remembered.
    """

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._demangle: Callable[[bytes], bytes | None] | None = None
        self._was_loaded = False

    def readable(self, name: str) -> str:
        """Return the name without endings, demangled when it is mangled."""
        short = normalise(name)
        if not short.startswith("_Z"):
            return short
        if short not in self._known:
            self._known[short] = self._of(short)
        return self._known[short]

    def _of(self, name: str) -> str:
        if len(name) > _LONGEST_MANGLED or not _MANGLED.fullmatch(name):
            return name
        if not self._was_loaded:
            self._was_loaded = True
            self._demangle = _load()
        found = self._demangle(name.encode("ascii")) if self._demangle else None
        if not found or len(found) > _LONGEST_DEMANGLED:
            return name
        return found.decode("utf-8", "replace")


def _load() -> Callable[[bytes], bytes | None] | None:
    """Return `__cxa_demangle` of the first C++ runtime that is there."""
    for library in _LIBRARIES:
        try:
            loaded = ctypes.CDLL(library)
            function = loaded["__cxa_demangle"]
            free = ctypes.CDLL(None).free
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_void_p
        function.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
        free.argtypes = (ctypes.c_void_p,)
        free.restype = None

        def demangle(name: bytes, function: ctypes._NamedFuncPointer = function, free: object = free) -> bytes | None:
            status = ctypes.c_int(-1)
            place = function(name, None, None, ctypes.byref(status))
            if not place:
                return None
            try:
                return ctypes.string_at(place) if status.value == 0 else None
            finally:
                free(place)  # type: ignore[operator]  # a C function

        return demangle
    return None
