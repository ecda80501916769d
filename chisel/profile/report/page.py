"""Put a report together. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime

from chisel.figures import Comparison, ProfileResult, Ranking, Spread
from chisel.profile.report import kernels, machine
from chisel.profile.report.escape import brief
from chisel.profile.report.look import SCRIPT, STYLE
from chisel.profile.report.markup import Inside, Markup, join, raw, tag

_LONGEST_TITLE = 200


def report_html(
    results: Sequence[ProfileResult],
    *,
    merged: Ranking,
    spreads: Sequence[Spread] = (),
    comparison: Comparison | None = None,
    title: str,
    created_at: datetime,
) -> str:
    """Return one HTML file that shows a profile and needs nothing else: no network, no script, no font.

    `results` are the droplets' profiles, `merged` ranks over all of them (one droplet's own ranking where there is
    one). Everything in them is taken to be hostile: it is escaped, hidden characters are spelt out, and sizes are
    bounded: under 2 MB for 400 kernels on 8 droplets with 8 GPUs each. A script of ours sorts, finds and unfolds; the
    page's policy lets only that one run.
    """
    curves, drifts = kernels.curves_of(results, merged), kernels.drifts_of(results, merged)
    parts = [
        machine.verdicts(comparison),
        kernels.hottest(merged) if merged.kernels else _nothing(),
        machine.pool(spreads),
        kernels.details(merged, curves, drifts) if merged.kernels else None,
        kernels.all_kernels(merged, curves) if merged.kernels else None,
        kernels.pseudo(merged),
        kernels.copies(merged.copies),
        kernels.parts(merged.parts),
        machine.telemetry(results),
        machine.environment(results),
        machine.notes(results, merged),
    ]
    body = tag(
        "body",
        machine.banners(results, merged),
        machine.failures(results),
        machine.head(results, merged, title, created_at),
        tag("main", *parts),
        tag(
            "footer",
            "Written by chisel. All times are GPU time of dispatches as the profiler told them.",
            class_="quiet",
        ),
        tag("script", raw(SCRIPT)),
    )
    return "<!doctype html>\n" + tag("html", _head(title), body, lang="en") + "\n"


def _nothing() -> Markup:
    return kernels.section("hottest", "No kernels", tag("p", "The profiler saw no kernel in this run."))


def _head(title: str) -> Markup:
    inside: list[Inside] = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", brief(title, _LONGEST_TITLE)),
        tag("style", raw(STYLE)),
    ]
    return tag("head", join(*inside))


def policy() -> str:
    """Return what the page may do: show its own styles, run our one script, reach nothing."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
