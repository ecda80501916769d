"""report.html: one file that shows everything, reaches nothing, and lets nothing from a droplet act."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from chisel.figures import (
    Comparison,
    Copies,
    Fingerprint,
    KernelStats,
    KernelVerdict,
    Part,
    ProfileResult,
    Ranking,
    Sample,
    Spread,
    Telemetry,
)
from chisel.profile.report import report_html
from chisel.profile.report.escape import SHOWN_NAME, escaped, fitted, shortened, visible
from chisel.profile.report.look import SCRIPT
from chisel.profile.report.markup import tag
from chisel.profile.report.page import policy
from tests.profile import showpiece
from tests.profile.browser import Browser, Tab, chromium

VOID = {"meta", "br", "input", "col"}
HOSTILE = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    '"\' onload=alert(1) x="',
    "</code></summary></details></section></main>",
    "<!-- &lt; &#60; ]]>",
    "evil\u202eeman\u2066x\u200b",
    "nul\x00esc\x1b[31m\x9bbell\x07",
    "lone\ud800surrogate\udfff",
    "javascript:alert(1)",
    "{{constructor}} ${x} %s {title}",
    "line\u2028break\u0085",
]
NEEDLE = "zq"


class Page(HTMLParser):
    """Parse a page as strictly as it was meant: every element closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.comments: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> is no HTML")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def text(self) -> str:
        return " ".join(data for where, data in self.texts if where not in ("style", "script"))


ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "div", "p", "strong", "header", "h1", "h2", "main", "section"),
    *(
        "footer",
        "script",
        "dl",
        "dt",
        "dd",
        "ol",
        "ul",
        "li",
        "a",
        "code",
        "b",
        "small",
        "span",
        "label",
        "input",
        "br",
    ),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "details", "summary", "figure", "figcaption"),
    *("svg", "desc", "path", "rect", "circle", "text", "g"),
}


def check(text: str) -> Page:
    """Assert what holds for every report, whatever is in it, and return it parsed."""
    page = Page(text)
    assert set(page.tags) <= ALLOWED, set(page.tags) - ALLOWED
    assert page.tags["script"] == 1
    assert page.tags["style"] == 1
    assert not page.comments
    assert len(page.ids) == len(set(page.ids))
    names = {name for _, name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on")], names
    assert not names & {"src", "srcset", "action", "formaction", "style", "xlink:href", "ping", "data", "srcdoc"}
    links = [value for _, name, value in page.attributes if name == "href"]
    assert all(link.startswith("#") and link[1:] in page.ids for link in links)
    scripts = [data for where, data in page.texts if where == "script"]
    assert "".join(scripts) == SCRIPT
    policies = [value for one, name, value in page.attributes if one == "meta" and name == "content"]
    assert policies[0] == policy()
    assert policies[0].startswith("default-src 'none'")
    assert not [char for char in text if ord(char) < 0x20 and char not in "\n\t"]
    assert not re.search(r"[\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff\x7f-\x9f\u2028\u2029]", text)
    assert not re.search(r"\bnan\b|\binf\b", " ".join(value for _, name, value in page.attributes if name != "id"))
    text.encode()
    scopes = [dict(found) for found in _attributes_of(page, "th")]
    assert page.tags["th"] == sum(one.get("scope") in ("row", "col") for one in scopes)
    return page


def _attributes_of(page: Page, tag: str) -> list[list[tuple[str, str]]]:
    return [[(name, value)] for one, name, value in page.attributes if one == tag and name == "scope"]


def test_the_showpiece_says_everything_there_is_to_say() -> None:
    text = showpiece.showpiece()
    said = check(text).text()
    for word in (
        *(
            "./bench.sh --batch 64 --dtype bf16",
            "flash_attention_fwd_d128_causal",
            "chisel-dev-4",
            "2026-11-26 04:30:00 UTC",
        ),
        *("37.6 %", "grid 77,824 \N{MULTIPLICATION SIGN} 8", "128 VGPRs", "64 KiB LDS", "SQ_INSTS_VALU_MFMA_MOPS_BF16"),
        *("<barrier packet>", "HOST_TO_DEVICE", "47.8 GB/s", "4711 ./bench.sh", "GPU 0", "maximum 2,100", "cap 750"),
        *("Driver (differs)", "amdgpu 6.14.5", "gpu-amd-base, id 188571990", "3f9a1c0e5b7d", "rocprofv3 1.1.0 (rocpd)"),
        *(
            "power cap: 749 of 750 W, clock 1260 of 2100 MHz",
            "slower +6.2 %",
            "can't tell",
            "only in A",
            "+4.1 % to +8.4 %",
        ),
        *("31 kernels rank behind these", "its last 3 dispatches are missing", "power cap reached 41 times"),
    ):
        assert word in said, word
    pictures = re.findall(r'<svg [^>]*role="img"[^>]*>(<title>.+?</title><desc>.+?</desc>)?', text)
    assert pictures
    assert all(pictures), "a picture without a name and a description"


def test_the_order_is_what_matters_first() -> None:
    text = showpiece.showpiece()
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == [
        *("comparison", "hottest", "pool", "details", "kernels", "pseudo", "copies", "parts", "telemetry"),
        *("environment", "notes"),
    ]


def hostile_report(name: str) -> str:
    """Return a report that says `name` wherever a droplet may say something."""
    chance = random.Random(1)
    found = showpiece.ranking(3, chance, names=[name, name + "2", name + "3"])
    found = replace(
        found,
        pseudo=(replace(found.pseudo[0], name=name),),
        parts=(Part("process", name, 1, 5, ((name, 1, 5),)), Part("gpu", name, 1, 5)),
        copies=(Copies(name, 1, 5, 10),),
        notes=(name,),
        stand_in=name,
        source=name,
        kernels=(replace(found.kernels[0], counters={name: 5.0}), *found.kernels[1:]),
    )
    result = replace(
        showpiece.result(name, found),
        tool=name,
        generation=name,
        error=name,
        is_partial=True,
        fingerprint=Fingerprint({name: name, "ROCm": name}),
    )
    result = replace(result, telemetry=replace(result.telemetry, source=name, notes=(name,)))
    other = replace(result, host=name + "b", error=None, status=1, is_partial=False)
    return report_html(
        [result, other],
        merged=found,
        spreads=[Spread(name, 1, 5, 0.5, {name: 1.0, name + "b": 2.0}, 1.0, name, name)],
        comparison=Comparison(
            name, name, 2, 2, (KernelVerdict(name, "slower", 1.1, 1.0, 1.2, 0.1, 5, 6),), (name,), name
        ),
        title=name,
        created_at=showpiece.WHEN,
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_droplet_says_stays_text(name: str) -> None:
    page = check(hostile_report(name))
    assert page.tags == check(hostile_report(NEEDLE)).tags, "it made elements of its own, or closed some of ours"
    assert visible(name) in page.text()


def test_hostile_text_was_tried_wherever_text_can_be() -> None:
    page = Page(hostile_report(NEEDLE))
    places = {where for where, data in page.texts if NEEDLE in data}
    assert places == {
        *("title", "desc", "text", "h1", "p", "strong", "b", "code", "th", "td", "li", "dt", "figcaption"),
    }


def test_names_that_are_empty_are_named() -> None:
    assert "(no name)" in check(hostile_report("")).text()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\x00b", "a\u2400b"),
        ("\x1b[2J", "\u241b[2J"),
        ("\x7f\x9b", "\\x7f\\x9b"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\ud800", "\\ud800"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("plain ÄÖ 漢 🙂\tx", "plain ÄÖ 漢 🙂\tx"),
    ],
)
def test_hidden_characters_are_spelt_out(text: str, wanted: str) -> None:
    assert visible(text) == wanted
    assert visible(visible(text)) == wanted


def test_escaping_knows_its_bounds() -> None:
    assert escaped('<a href="x">\'&') == "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;"
    assert shortened("abcdefgh", 8) == "abcdefgh"
    assert shortened("abcdefghi", 6) == "abcd\N{HORIZONTAL ELLIPSIS}i"
    assert len(shortened("x" * 1000, 160)) == 160
    long = "h" + '"' * 1_000_000 + "t"
    assert len(escaped(long, 100)) <= 600
    assert escaped(long, 100).startswith("h&quot;")
    assert escaped(long, 100).endswith("&quot;t")
    for text in ('"' * 5000, "漢" * 5000, "a" * 5000):
        assert len(fitted(text, 600).encode()) <= 600
    assert fitted("<b>", 100) == "&lt;b&gt;"


def test_markup_is_escaped_unless_it_was_made_here() -> None:
    assert tag("p", "<b>", tag("b", "x&y"), None, class_='a"b', hidden=True, title=None) == (
        '<p class="a&quot;b" hidden>&lt;b&gt;<b>x&amp;y</b></p>'
    )
    assert tag("path", stroke_width=math.nan, x=math.inf) == '<path stroke-width="0" x="1000000"></path>'


def test_a_name_of_100_kb_is_short_in_the_table_and_whole_on_its_card() -> None:
    name = "void k<" + "int, " * 20_000 + ">()"
    found = showpiece.ranking(2, random.Random(1), names=[name, "other"])
    text = report_html([], merged=found, title="t", created_at=showpiece.WHEN)
    check(text)
    assert text.count(escaped(name, len(name))) == 1
    shown = re.findall(r"<code>([^<]*)</code>", text)
    assert max(map(len, shown)) <= 2 * SHOWN_NAME
    assert len(text) < 200_000


@pytest.mark.parametrize(
    "names", [None, ['"' * 100_000] * 400, ["\u202e" * 100_000] * 400], ids=["real", "quotes", "bidi"]
)
def test_its_size_is_bounded(names: list[str] | None) -> None:
    text = showpiece.showpiece(droplets=8, kernels=400, gpus=8, samples=400, names=names)
    assert len(text.encode()) < 2_000_000
    page = check(text)
    assert page.tags["details"] == 400
    if names is None:
        assert text.count('class="chart"') > 600


def bare(*kernels: KernelStats, **more: object) -> str:
    return report_html([], merged=Ranking(kernels=kernels, **more), title="t", created_at=showpiece.WHEN)  # type: ignore[arg-type]


SUMS_ONLY = KernelStats("k", 3, 300, 100.0, None, None, None, None, 1.0)


def test_what_is_not_known_is_not_drawn() -> None:
    text = bare(SUMS_ONLY)
    page = check(text)
    assert 'class="chart"' not in text
    assert 'class="spark"' not in text
    assert "\N{EN DASH}" in page.text()
    assert re.findall(r'<section id="(\w+)"', text) == ["hottest", "details", "kernels"]
    empty = check(report_html([], merged=Ranking(), title="t", created_at=showpiece.WHEN))
    assert "The profiler saw no kernel" in empty.text()


WILD = (math.nan, math.inf, -math.inf, 1e308, -5.0, 0.0)


@pytest.mark.parametrize("wild", WILD)
def test_wild_numbers_draw_nothing_wild(wild: float) -> None:
    known = KernelStats(
        "k", 3, 300, wild, wild, wild, wild, wild, wild, wild, quantiles=(wild,) * 65, drift=((1, wild),) * 9
    )
    mixed = replace(known, name="m", quantiles=(1.0, wild, 3.0) * 21, drift=((1, 5.0), (1, wild), (1, 6.0)))
    samples = tuple(Sample(at, 0, wild, wild, wild, wild, wild, wild) for at in (0.0, 1.0, wild))
    told = Telemetry("amd-smi", samples, {0: wild}, {0: wild})
    verdict = KernelVerdict("k", "slower", wild, wild, wild, wild, wild, wild)
    check(
        report_html(
            [ProfileResult("h", 0, Ranking((known, mixed)), telemetry=told)],
            merged=Ranking((known, mixed)),
            spreads=[Spread("k", 1, 1, wild, {"a": wild, "b": 1.0, "c": wild}, wild)],
            comparison=Comparison("a", "b", 1, 1, (verdict,)),
            title="t",
            created_at=showpiece.WHEN,
        )
    )


def test_made_up_and_partial_cannot_be_missed() -> None:
    found = showpiece.ranking(2, random.Random(1))
    honest = showpiece.result("a", found)
    clean = report_html([honest], merged=found, title="t", created_at=showpiece.WHEN)
    assert 'class="banner' not in clean
    played = replace(found, stand_in="chisel sandbox stand-in 1")
    text = report_html(
        [replace(honest, ranking=played, is_partial=True), replace(honest, host="b", error="no kernels: crashed")],
        merged=found,
        title="t",
        created_at=showpiece.WHEN,
    )
    page = check(text)
    assert "all figures here are made up" in page.text()
    assert "chisel sandbox stand-in 1" in page.text()
    assert "Partial: the command was interrupted" in page.text()
    assert "no kernels: crashed" in page.text()
    assert text.index('class="banner made-up"') < text.index("<h1") < text.index("<main")
    failed = report_html([replace(honest, status=3)], merged=found, title="t", created_at=showpiece.WHEN)
    assert "The command ended with status 3 on a." in check(failed).text()


def test_several_droplets_curves_are_laid_over_each_other_where_none_is_common() -> None:
    hosts = ("d1", "d2", "d3")
    results = [showpiece.result(host, showpiece.ranking(2, random.Random(host))) for host in hosts]
    merged = showpiece.ranking(2, random.Random(0))
    merged = replace(merged, kernels=tuple(replace(one, quantiles=(), drift=()) for one in merged.kernels))
    text = report_html(results, merged=merged, title="t", created_at=showpiece.WHEN)
    said = check(text).text()
    assert "on 3 droplets: d1, d2, d3" in said
    assert text.count('class="curve c2"') == 2


# In a real browser.


async def open_report(browser: Browser, path: Path, width: int, *, is_dark: bool = False) -> Tab:
    tab = await browser.open(path.as_uri(), width=width)
    await tab.size(width, 900, is_dark=is_dark)
    await tab.until("document.readyState === 'complete' && !!document.querySelector('main')")
    return tab


@pytest.mark.real_part("chromium")
@pytest.mark.timeout(60)
async def test_a_browser_shows_it_reaches_nothing_and_logs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(showpiece.showpiece(), encoding="utf-8")
    async with chromium(tmp_path / "browser") as browser:
        colours = set()
        for width, is_dark in ((360, False), (1280, True), (1600, False)):
            tab = await open_report(browser, path, width, is_dark=is_dark)
            assert await tab.evaluate("document.documentElement.scrollWidth") == width, "it scrolls sideways"
            colours.add(await tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert len(await tab.screenshot()) > 20_000
            assert tab.console == []
            assert tab.requests == [path.as_uri()]
        assert len(colours) == 2, "dark is as light as light"
        # Sorted by calls, greatest first; then by name; then found by a part of the name.
        column = (
            "[...document.querySelectorAll('#all tbody tr:not(.last)')].filter(r => !r.hidden).map(r => r.cells[%d]%s)"
        )
        await tab.evaluate(
            "[...document.querySelectorAll('#all th button')].find(b => b.textContent === 'Calls').click()"
        )
        calls = await tab.evaluate(column % (4, ".dataset.v"))
        assert [float(one) for one in calls] == sorted((float(one) for one in calls), reverse=True)
        await tab.evaluate(
            "[...document.querySelectorAll('#all th button')].find(b => b.textContent === 'Kernel').click()"
        )
        names = await tab.evaluate(column % (1, ".textContent"))
        assert names == sorted(names)
        await tab.evaluate(
            "const box = document.getElementById('find'); box.value = 'FLASH'; box.dispatchEvent(new Event('input'))"
        )
        assert await tab.evaluate(column % (1, ".textContent")) == ["flash_attention_fwd_d128_causal"]
        await tab.evaluate("location.hash = '#k9'")
        await tab.until("document.getElementById('k9').open")


@pytest.mark.real_part("chromium")
@pytest.mark.timeout(60)
async def test_nothing_hostile_runs_even_if_it_came_through(tmp_path: Path) -> None:
    """The page's policy is a second wall: a script put into the finished file does not run either."""
    path = tmp_path / "report.html"
    name = "".join(one for one in HOSTILE if "\ud800" not in one)
    text = hostile_report(name)
    holes = "<script>document.title='owned'</script><img src='http://127.0.0.1:9/x' onerror=\"document.title='owned'\">"
    path.write_text(text.replace("<main>", holes + "<main>"), encoding="utf-8")
    async with chromium(tmp_path / "browser") as browser:
        tab = await open_report(browser, path, 1280)
        assert await tab.evaluate("document.title") == shortened(visible(name), 200)
        assert any("Content Security Policy" in line for line in tab.console)
        assert not [line for line in tab.console if line.startswith("exception")]
        assert await tab.evaluate("!!document.querySelector('#all th button')"), "our own script did not run"
