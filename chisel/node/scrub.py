"""Take secrets out of a profile's files before they leave: environments, and given texts wherever they stand.

rocprofv3 stores the whole environment of the profiled process in rocpd databases and, since 7.x, in its JSON. Names of
variables stay, values go. Large files are read in pieces. Standard library only, Python 3.10.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from . import sqlitefile
from .ranking import files_below
from .sqlitefile import columns, quoted, text
from .tally import FormatError

SHORTEST = 4
"""Texts below this many characters are no secrets: they would be found everywhere."""

_BLOCK = 1 << 20
_LONGEST_SECRET = 1 << 16
_LONGEST_ENVIRONMENT = 64 << 20
_LEFT_OVER = ("-journal", "-wal", "-shm")
_GZIP = b"\x1f\x8b"
_ENVIRONMENT = re.compile(rb'"environment"\s*:\s*(?=[\[{])')


def make_fit_to_leave(raw: str, secrets: Sequence[str] = ()) -> list[str]:
    """Make every file below a directory fit to leave; return what was withheld (removed), each with its reason."""
    forms = forms_of(secrets)
    withheld = []
    paths = list(files_below(raw))
    for path in [path for path in paths if not path.endswith(_LEFT_OVER)]:
        try:
            _clean(path, forms)
        except (FormatError, OSError, EOFError, zlib.error) as error:
            _remove(path)
            said = str(error) if isinstance(error, FormatError) else f"`{os.path.basename(path)}`: {error}"
            withheld.append(f"{said}; it was not brought, because it may hold the values of environment variables")
    for path in paths:
        if path.endswith(_LEFT_OVER):
            _remove(path)  # the rest of a killed writer: it may hold what was just blanked
    return withheld


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def forms_of(secrets: Sequence[str]) -> list[bytes]:
    """Return the bytes that a secret may stand as, the longest first: as it is, within JSON, within CSV."""
    found = set()
    for secret in secrets:
        if SHORTEST <= len(secret) <= _LONGEST_SECRET:
            escaped = json.dumps(secret)[1:-1]
            shapes = {secret, escaped, json.dumps(secret, ensure_ascii=False)[1:-1], secret.replace('"', '""')}
            shapes |= {
                escaped.replace("/", "\\/"),
                re.sub(r"\\u[0-9a-f]{4}", lambda m: "\\u" + m[0][2:].upper(), escaped),
            }
            found |= {shape.encode("utf-8", "surrogateescape") for shape in shapes}
    return sorted(found, key=lambda form: (-len(form), form))


def _clean(path: str, forms: list[bytes]) -> None:
    with open(path, "rb") as source:
        start = source.read(_BLOCK)
    if start.startswith(sqlitefile.MAGIC):
        _clean_database(path, forms)
    elif path.endswith(".db") and start:
        raise FormatError(f"`{os.path.basename(path)}` cannot be scrubbed: it is no database")
    elif start.startswith(_GZIP):
        with gzip.open(path, "rb") as unpacked:
            is_json = unpacked.read(64).lstrip()[:1] in {b"{", b"["}
        if is_json or _holds_packed(path, forms):
            _rewrite(path, forms, is_json=is_json, packed=True)
    elif start.lstrip(b"\xef\xbb\xbf \r\n\t")[:1] in {b"{", b"["} and _has_environment(path):
        _rewrite(path, forms, is_json=True, packed=False)
    else:
        _blank_in_place(path, forms)


# -- plain files


def _blank(data: bytes, forms: Sequence[bytes]) -> bytes:
    """Return the data with stars in the place of secrets, of the same length."""
    for form in forms:
        if form in data:
            data = data.replace(form, b"*" * len(form))
    return data


def _blank_in_place(path: str, forms: Sequence[bytes]) -> None:
    """Overwrite secrets with stars; whatever the format, every other byte stays where it is."""
    if not forms:
        return
    overlap = max(map(len, forms)) - 1
    with open(path, "r+b") as file:
        offset = 0
        while True:
            file.seek(offset)
            data = file.read(_BLOCK + overlap)
            if not data:
                return
            clean = _blank(data, forms)
            if clean != data:
                file.seek(offset)
                file.write(clean)
            offset += _BLOCK


def _holds_packed(path: str, forms: Sequence[bytes]) -> bool:
    overlap = max(map(len, forms), default=1) - 1
    rest = b""
    with gzip.open(path, "rb") as source:
        while data := source.read(_BLOCK):
            if any(form in rest + data for form in forms):
                return True
            rest = (rest + data)[-overlap:] if overlap else b""
    return False


def _has_environment(path: str) -> bool:
    rest = b""
    with open(path, "rb") as source:
        while data := source.read(_BLOCK):
            if b'"environment"' in rest + data:
                return True
            rest = data[-16:]
    return False


def _rewrite(path: str, forms: Sequence[bytes], *, is_json: bool, packed: bool) -> None:
    """Write a file anew without environments and secrets, and put it in the old one's place."""
    fresh = path + ".clean"
    try:
        with _opened(path, "rb", packed) as source, _opened(fresh, "wb", packed) as out:
            blocks = _without_environments(source) if is_json else _blocks(source)
            for block in _blanked(blocks, forms):
                out.write(block)
        os.replace(fresh, path)
    finally:
        _remove(fresh)


def _opened(path: str, mode: str, packed: bool) -> Any:
    if not packed:
        return open(path, mode)
    return gzip.open(path, mode, compresslevel=1) if "w" in mode else gzip.open(path, mode)


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    while data := source.read(_BLOCK):
        yield data


def _blanked(blocks: Iterator[bytes], forms: Sequence[bytes]) -> Iterator[bytes]:
    overlap = max(map(len, forms), default=1) - 1
    rest = b""
    for block in blocks:
        data = _blank(rest + block, forms)
        cut = max(len(data) - overlap, 0)
        rest = data[cut:]
        yield data[:cut]
    yield rest


def _without_environments(source: BinaryIO) -> Iterator[bytes]:
    """Give a JSON text in pieces, the values within every `environment` emptied; names stay.

    A text that ends within an environment ends before it.
    """
    rest = b""
    while True:
        data = source.read(_BLOCK)
        rest += data
        while found := _ENVIRONMENT.search(rest):
            yield rest[: found.end()]
            value, rest = _value(rest[found.end() :], source)
            if value is None:
                return
            yield _names_alone(value)
        if not data:
            yield rest
            return
        keep = 64  # a key may be cut here
        yield rest[:-keep]
        rest = rest[-keep:]


def _value(start: bytes, source: BinaryIO) -> tuple[bytes | None, bytes]:
    """Return the JSON value that begins here, read on as far as needed, and what stands behind it."""
    data = start
    while (end := _end_of_value(data)) is None:
        more = source.read(_BLOCK)
        if not more:
            return None, b""
        data += more
        if len(data) > _LONGEST_ENVIRONMENT:
            raise FormatError("its environment does not end within 64 MB")
    return data[:end], data[end:]


def _end_of_value(data: bytes) -> int | None:
    depth = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]|"', data, re.DOTALL):
        if token[0] == b'"':
            return None  # a string that does not end here
        if token[0] in {b"{", b"["}:
            depth += 1
        elif token[0] in {b"}", b"]"}:
            depth -= 1
            if depth == 0:
                return token.end()
    return None


def _names_alone(value: bytes | str) -> bytes:
    """Return an environment with its names and no value; what is none becomes an empty object."""
    try:
        found = json.loads(value)
    except ValueError:
        return b"{}"
    if isinstance(found, dict):
        return json.dumps({str(name): "" for name in found}).encode()
    names: list[Any] = []
    for one in found if isinstance(found, list) else []:
        if isinstance(one, dict):
            names.append({"key": str(one.get("key", "")), "value": ""})
        elif isinstance(one, str):
            names.append(one.partition("=")[0] + "=")
    return json.dumps(names).encode()


# -- databases


def _clean_database(path: str, forms: list[bytes]) -> None:
    """Blank environments, then secrets in any column; VACUUM, so that no byte of them remains."""
    with sqlitefile.opened(path, writable=True) as database:
        database.execute("PRAGMA secure_delete = ON")
        if str(database.execute("PRAGMA encoding").fetchone()[0]) != "UTF-8":
            raise FormatError(f"`{os.path.basename(path)}` cannot be scrubbed: its texts are not UTF-8")
        for table in sqlitefile.tables(database):
            for column in sorted(columns(database, table)):
                if column == "environment":
                    _empty_environment(database, table)
                elif forms and column != "guid":
                    _blank_column(database, table, column, forms)
        database.commit()
        database.execute("PRAGMA journal_mode = DELETE")
        database.execute("VACUUM")
    if forms and _holds(path, forms):
        raise FormatError(f"`{os.path.basename(path)}` cannot be scrubbed: a secret stands where no value is")


def _empty_environment(database: sqlite3.Connection, table: str) -> None:
    name = quoted(table)
    for rowid, stored in database.execute(f"SELECT rowid, environment FROM {name}").fetchall():
        emptied = _names_alone(text(stored) or "{}").decode()
        database.execute(f"UPDATE {name} SET environment = ? WHERE rowid = ?", (emptied, rowid))


def _blank_column(database: sqlite3.Connection, table: str, column: str, forms: list[bytes]) -> None:
    """Blank secrets in the texts and blobs of one column; numbers hold none, and are not looked at."""
    shortest = min(map(len, forms))
    where = f"typeof({quoted(column)}) IN ('text', 'blob') AND length({quoted(column)}) >= {shortest // 4}"
    for form in forms:
        found = database.execute(
            f"SELECT rowid FROM {quoted(table)} WHERE {where} AND instr(CAST({quoted(column)} AS BLOB), ?) LIMIT 1",
            (form,),
        ).fetchone()
        if found:
            database.create_function("chisel_blank", 1, lambda stored: _blank_value(stored, forms))
            database.execute(
                f"UPDATE {quoted(table)} SET {quoted(column)} = chisel_blank({quoted(column)}) WHERE {where}"
            )
            return


def _blank_value(stored: Any, forms: Sequence[bytes]) -> bytes | str:
    if isinstance(stored, bytes):
        return _blank(stored, forms)
    return _blank(str(stored).encode("utf-8", "replace"), forms).decode("utf-8", "replace")


def _holds(path: str, forms: Sequence[bytes]) -> bool:
    overlap = max(map(len, forms)) - 1
    rest = b""
    with open(path, "rb") as source:
        while data := source.read(_BLOCK):
            window = rest + data
            if any(form in window for form in forms):
                return True
            rest = window[-overlap:] if overlap else b""
    return False
