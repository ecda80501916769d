"""Hold the report's style sheet and its one script; the script is for comfort, nothing is hidden without it."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfaf8; --card: #fff; --ink: #1d2329; --quiet: #5f6b76; --line: #dcdfe3; --soft: #eef0f2;
  --hot: #d9531e; --hot-soft: #f4b08f; --area: #e8875c; --blue: #1f6fb2; --good: #16794c; --bad: #b3261e;
  --band: #e6e9ec; --made-up: #7a1fa2; --made-up-soft: #f6e8fb; --warn: #8a5a00; --warn-soft: #fff1d0;
  --bad-soft: #fde7e5;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #11161b; --card: #181f26; --ink: #e6ebef; --quiet: #9aa7b3; --line: #2c3640; --soft: #202932;
    --hot: #ff8a5b; --hot-soft: #7a4026; --area: #e0774a; --blue: #6db3f2; --good: #5fd39a; --bad: #ff8a80;
    --band: #26303a; --made-up: #e0a8f5; --made-up-soft: #34183f; --warn: #ffcf70; --warn-soft: #3a2c0c;
    --bad-soft: #3f1b18;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
body > header, main, footer { max-width: 1320px; margin: 0 auto; padding: 0 24px; }
body > header { padding-top: 28px; }
footer { padding-top: 24px; padding-bottom: 40px; }
.brand { margin: 0; color: var(--hot); font-weight: 700; letter-spacing: .06em; }
h1 { margin: 0; font-size: clamp(1.35rem, 3.4vw, 2.1rem); line-height: 1.2; font-weight: 650; }
h2 { margin: 0 0 12px; font-size: 1.15rem; font-weight: 650; }
.quiet { color: var(--quiet); margin: 6px 0 14px; }
code { font: .92em/1.45 ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace; }
a { color: inherit; text-decoration-color: var(--hot-soft); text-underline-offset: 3px; }
a:hover { color: var(--hot); }
:focus-visible { outline: 2px solid var(--hot); outline-offset: 2px; }
section { margin: 20px 0; padding: 18px 20px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.banners { position: sticky; top: 0; z-index: 2; }
.banner { margin: 0; padding: 10px 24px; border-bottom: 2px solid currentColor; }
.made-up { color: var(--made-up); background: var(--made-up-soft); font-size: 1.05rem; }
.partial { color: var(--warn); background: var(--warn-soft); }
.failed { color: var(--bad); background: var(--bad-soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 16px 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px;
  display: flex; flex-direction: column-reverse; }
.tiles dt { color: var(--quiet); font-size: .85rem; }
.tiles dd { margin: 0; font-size: 1.4rem; font-weight: 650; white-space: nowrap; }
.bars { list-style: none; margin: 0; padding: 0; display: grid; gap: 12px; }
.bars .head { display: flex; gap: 16px; justify-content: space-between; align-items: baseline; }
.bars b { color: var(--hot); white-space: nowrap; }
.bars svg { display: block; width: 100%; height: 9px; margin: 3px 0; border-radius: 4px; overflow: hidden; }
.bars .track { fill: var(--soft); } .bars .fill { fill: var(--hot); }
.bars small { color: var(--quiet); }
.launch { display: block; }
.wide { overflow-x: auto; margin: 0 -4px; padding: 0 4px; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { color: var(--quiet); font-weight: 600; font-size: .85rem; white-space: nowrap; }
tbody th { font-weight: 400; min-width: 15em; }
.n { text-align: right; white-space: nowrap; }
thead button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
thead button:hover { color: var(--hot); }
th[aria-sort=ascending] button::after { content: " ↑"; } th[aria-sort=descending] button::after { content: " ↓"; }
.differs th, .outlying th { color: var(--hot); }
.spark { width: 96px; height: 22px; display: block; }
input[type=search] { font: inherit; padding: 4px 8px; border: 1px solid var(--line); border-radius: 6px;
  margin-bottom: 10px; background: var(--ground); color: inherit; }
details { border-top: 1px solid var(--line); padding: 8px 0; scroll-margin-top: 80px; }
summary { cursor: pointer; display: flex; gap: 12px; align-items: baseline; }
summary::before { content: "▸"; color: var(--quiet); } details[open] > summary::before { content: "▾"; }
summary::-webkit-details-marker { display: none; }
summary code { flex: 1; } summary b { color: var(--hot); white-space: nowrap; }
.rank { color: var(--quiet); min-width: 1.6em; text-align: right; }
.name { margin: 8px 0; max-height: 14em; overflow: auto; }
.whole { color: var(--quiet); white-space: pre-wrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 6px 18px; margin: 10px 0; }
.figures dt { color: var(--quiet); font-size: .82rem; } .figures dd { margin: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); gap: 20px; }
figure { margin: 8px 0 14px; } figcaption { color: var(--quiet); font-size: .85rem; }
svg { max-width: 100%; }
svg text { fill: var(--quiet); font-size: 11px; font-family: inherit; }
text.e { text-anchor: end; } text.m { text-anchor: middle; }
svg .strong { fill: var(--ink); font-weight: 600; }
.chart { width: 100%; max-height: 260px; }
.strip { width: 100%; display: block; }
.strips { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 4px 28px; }
.rows { width: 100%; min-width: 620px; max-width: 1000px; display: block; }
.rows text { font-size: 12px; } svg .row { fill: var(--ink); }
.area { fill: var(--area); }
.axis, .grid, .mark, .curve, .bound, .interval { fill: none; stroke: var(--line); }
.axis { stroke: var(--quiet); } .mark { stroke: var(--ink); stroke-dasharray: 3 3; }
.mark.p50 { stroke-dasharray: none; }
.bound { stroke: var(--bad); stroke-dasharray: 5 4; }
.curve { stroke-width: 1.6; stroke: var(--hot); stroke-linejoin: round; } .curve + .dot, .dot { fill: var(--hot); }
.c1 { stroke: var(--blue); } .c2 { stroke: var(--good); } .c3 { stroke: var(--made-up); } .c4 { stroke: var(--warn); }
.c5 { stroke: var(--bad); } .c6 { stroke: var(--quiet); } .c7 { stroke: var(--ink); }
text.label { stroke: none; } text.c0 { fill: var(--hot); } text.c1 { fill: var(--blue); stroke: none; }
.ground { fill: var(--soft); }
.band { fill: var(--band); }
.rows .dot { fill: var(--blue); } .outlier { fill: var(--bad); }
.interval { stroke: var(--quiet); stroke-width: 1.6; } .unsure .dot { fill: var(--quiet); }
.faster .interval { stroke: var(--good); } .faster .dot { fill: var(--good); }
.slower .interval { stroke: var(--bad); } .slower .dot { fill: var(--bad); }
.verdict { font-weight: 650; white-space: nowrap; } .verdict.faster { color: var(--good); }
.verdict.slower { color: var(--bad); } .verdict.unsure { color: var(--quiet); }
[hidden] { display: none !important; }
@media (max-width: 600px) {
  body { font-size: 14px; }
  body > header, main, footer { padding-left: 10px; padding-right: 10px; }
  section { padding: 12px; border-radius: 8px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 8px; } .tiles dd { font-size: 1.1rem; }
  tbody th { min-width: 11em; }
  .banner { padding: 6px 12px; font-size: .9rem; }
  .figures { grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); }
}
@media print {
  :root { --ground: #fff; --card: #fff; --ink: #000; --quiet: #444; --line: #bbb; --soft: #eee; }
  body { font-size: 10pt; } section { break-inside: auto; border: 0; padding: 0; } .banners { position: static; }
  .bars li, figure, tr { break-inside: avoid; } .wide { overflow: visible; } .scripted { display: none; }
  .rows { min-width: 0; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

SCRIPT = """
"use strict";
(() => {
  const table = document.getElementById("all");
  const unfold = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    if (target && target.localName === "details") target.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")].slice(0, 20);
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
  if (!table) return;
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const rows = [...body.rows].filter((row) => !row.classList.contains("last"));
  const last = [...body.rows].filter((row) => row.classList.contains("last"));
  const key = (row, place) => {
    const cell = row.cells[place];
    return cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
  };
  heads.forEach((head, place) => {
    if (head.textContent === "Shape") return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.onclick = () => {
      const isUp = head.getAttribute("aria-sort") === "descending" || (place < 2 && !head.hasAttribute("aria-sort"));
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      rows.sort((a, b) => (isUp ? 1 : -1) * order(key(a, place), key(b, place)));
      body.replaceChildren(...rows, ...last);
    };
  });
  const find = document.getElementById("find");
  find.parentElement.hidden = false;
  find.oninput = () => {
    const wanted = find.value.toLowerCase();
    for (const row of rows) row.hidden = !row.cells[1].textContent.toLowerCase().includes(wanted);
  };
})();
"""
