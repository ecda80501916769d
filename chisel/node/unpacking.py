"""Decompress what a client sends: zlib, lzma, or zstd by Python's own module (3.14) or the `zstd` program.

Standard library only, Python 3.10.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
from typing import Any

from . import tree

ZSTD, LZMA, ZLIB, PLAIN = "zstd", "lzma", "zlib", "none"
LZMA_MEMORY = 512 << 20
_WINDOW_LOG = 27
_READ = 1 << 18
_END_S = 60.0


def codecs() -> list[str]:
    """Return what this droplet can decompress, the best first."""
    found = [ZLIB]
    try:
        import lzma  # noqa: F401 - some minimal Pythons have none
    except ImportError:
        pass
    else:
        found.insert(0, LZMA)
    if sys.version_info >= (3, 14) or shutil.which(ZSTD):
        found.insert(0, ZSTD)
    return found


def open_unpacker(codec: str) -> tree.Unpacker:
    """Return what reads a stream of that codec; raises DamagedStream for one that is not known here."""
    if codec == PLAIN:
        return tree.PlainUnpacker()
    if codec == ZLIB:
        return tree.ZlibUnpacker()
    if codec == LZMA and LZMA in codecs():
        return LzmaUnpacker()
    if codec == ZSTD:
        if sys.version_info >= (3, 14):
            return ZstdUnpacker()
        program = shutil.which(ZSTD)
        if program is not None:
            return ProgramUnpacker(program)
    raise tree.DamagedStream(f"`{codec[:40]}` cannot be decompressed here")


class ModuleUnpacker:
    """Decompress with an object of the standard library's newer kind (`lzma`, `compression.zstd`)."""

    def __init__(self, unpacker: Any, error: type[Exception]) -> None:
        self._unpacker = unpacker
        self._error = error

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""
        return not self._unpacker.eof and not self._unpacker.needs_input

    @property
    def is_at_end(self) -> bool:
        """Say whether the stream is complete."""
        return bool(self._unpacker.eof)

    @property
    def is_overfull(self) -> bool:
        """Say whether something came after its end."""
        return bool(self._unpacker.unused_data)

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece and return at most `max_bytes` of content; raises DamagedStream."""
        try:
            return bytes(self._unpacker.decompress(data, max_bytes))
        except (self._error, EOFError) as error:
            raise tree.DamagedStream("the stream is damaged") from error

    def close(self) -> None:
        """Do nothing: nothing runs."""


class LzmaUnpacker(ModuleUnpacker):
    """Decompress one xz stream, in bounded memory."""

    def __init__(self) -> None:
        import lzma

        super().__init__(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LZMA_MEMORY), lzma.LZMAError)


class ZstdUnpacker(ModuleUnpacker):
    """Decompress one zstd frame."""

    def __init__(self) -> None:
        import importlib

        zstd: Any = importlib.import_module("compression.zstd")
        options = {zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}
        super().__init__(zstd.ZstdDecompressor(options=options), zstd.ZstdError)


class ProgramUnpacker:
    """Decompress in a `zstd` process, which works while this one writes; its pipes are never waited for one at a time.

    What it has not given yet is fetched by calling again with nothing.
    """

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen(
            [program, "-d", "-q", "-c", f"--long={_WINDOW_LOG}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        for pipe in (self._in, self._out):
            os.set_blocking(pipe.fileno(), False)
        self._waiting = memoryview(b"")
        self._has_ended = False
        self.is_overfull = False

    @property
    def has_more(self) -> bool:
        """Say whether there is more of what was taken."""
        return bool(self._waiting) and not self._has_ended

    @property
    def is_at_end(self) -> bool:
        """Say whether the program has read a whole stream."""
        return self._has_ended and self._process.returncode == 0

    def unpack(self, data: bytes, max_bytes: int) -> bytes:
        """Take a piece and return at most `max_bytes` of content; raises DamagedStream."""
        if data:
            self._waiting = memoryview(bytes(self._waiting) + data)
        while self._waiting:
            readable, writable, _ = select.select([self._out], [self._in], [])
            if readable:
                return self._read(max_bytes)
            if writable:
                try:
                    self._waiting = self._waiting[os.write(self._in.fileno(), self._waiting) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise tree.DamagedStream("the stream is damaged") from None
        return self._read(max_bytes) if select.select([self._out], [], [], 0)[0] else b""

    def drain(self, max_bytes: int) -> bytes:
        """Say that the stream is complete, and return what is left of its content, piece by piece."""
        if not self._in.closed:
            self._in.close()
        if self._has_ended or not select.select([self._out], [], [], _END_S)[0]:
            return b""
        return self._read(max_bytes)

    def _read(self, max_bytes: int) -> bytes:
        data = os.read(self._out.fileno(), min(_READ, max_bytes))
        if not data:
            self._has_ended = True
            self._waiting = memoryview(b"")
            self._process.wait(_END_S)
        return data

    def close(self) -> None:
        """Kill the program if it still runs."""
        for pipe in (self._in, self._out):
            pipe.close()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
