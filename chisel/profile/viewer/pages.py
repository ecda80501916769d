"""Fill our page in, and say what it and the UI in it may load."""

from __future__ import annotations

import html
from importlib import resources

from chisel.profile.report.escape import escaped, visible
from chisel.profile.viewer.trace import Form
from chisel.profile.viewer.ui import Ui, fragment, seen

PAGE = "page.html"
_LONGEST_TITLE = 300

UI_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "connect-src 'self' blob: data:; img-src 'self' blob: data:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; object-src 'none'; frame-ancestors 'self'; form-action 'none'"
)
"""What the offline UI may do. It needs eval (for its charts), inline styles and blobs (v52). What it must not do is
leave this origin: neither for telemetry nor for a trace processor that happens to listen on port 9001."""


def page_policy(ui: Ui) -> str:
    """Return what our page may load: its own files, and the UI in a frame."""
    frame = "'self'" if ui.is_offline else visible(ui.origin)
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
        f"frame-src {frame}; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )


def own_files() -> dict[str, bytes]:
    """Return the page, its style and its script, by name. Blocking."""
    here = resources.files("chisel.profile.viewer")
    return {name: (here / name).read_bytes() for name in (PAGE, "page.css", "page.js")}


def page(
    template: bytes, file: str, title: str, window_ns: tuple[int, int] | None, form: Form, ui: Ui, answer_s: float
) -> bytes:
    """Return our page for one trace; the title and the file's name may be hostile."""
    start, end = seen(window_ns, form) if window_ns is not None else ("", "")
    behind = fragment(window_ns, form=form, is_embedded=not ui.is_offline)
    values = {
        "title": escaped(title, _LONGEST_TITLE),
        "file": escaped(file, _LONGEST_TITLE),
        "ui": html.escape(("ui/index.html" if ui.is_offline else f"{ui.origin}/") + behind),
        "origin": "" if ui.is_offline else html.escape(ui.origin),
        "start": str(start),
        "end": str(end),
        "patience": str(round(answer_s * 1000)),
    }
    return template.decode().format(**values).encode()
