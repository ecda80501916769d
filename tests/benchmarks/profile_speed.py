"""Measure how fast large profiles are ranked, against the fastest way to read the same file at all.

`python -m tests.benchmarks.profile_speed [--dispatches N] [--json-mb N] [--runs N] [--dir DIR] [--only rocpd,csv,json]`

Chisel (the worker behind `chisel profile --from`) and its peer take turns; the median of each is compared. The peers:
one SQL aggregate by Python's sqlite3 over the same database; duckdb with exact p50 and p99 (left out where it is not
installed); `split` at rocprof v1's separators with orjson for every event. Memory is the peak of all processes' RSS
together. `node` is the droplet's own program (standard library only) on the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import generate_profile

SEED = 5
WORKER = [sys.executable, "-m", "chisel.profile.worker"]
GOALS = {"rocpd": (1.2, 700), "csv": (2.0, 150), "json": (1.1, 60)}

_SQLITE = """
import sqlite3, sys
db = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True)
(table,) = db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'rocpd_kernel_dispatch%'").fetchone()
took = '"end" - start'
query = f'SELECT kernel_id, count(*), sum({took}), min({took}), max({took}) FROM "{table}" GROUP BY kernel_id'
print(sum(row[1] for row in db.execute(query)))
"""
_DUCKDB = """
import duckdb, sys
duckdb.sql("SET enable_progress_bar = false")
rows = duckdb.sql(f'''
    SELECT Kernel_Name, count(*), sum(d), min(d), max(d), quantile_cont(d, 0.5), quantile_cont(d, 0.99)
    FROM (SELECT Kernel_Name, End_Timestamp - Start_Timestamp AS d FROM read_csv('{sys.argv[1]}')) GROUP BY 1
''').fetchall()
print(sum(row[1] for row in rows))
"""
_SPLIT = """
import sys, orjson
found, rest, count = {}, b"", 0
with open(sys.argv[1], "rb") as source:
    while data := source.read(1 << 20):
        pieces = (rest + data).split(b"\\n,{")
        rest = pieces.pop()
        for piece in pieces:
            try:
                event = orjson.loads(b"{" + piece)
            except ValueError:
                continue
            if event.get("pid") == 6 and event["ph"] == "X":
                arguments = event["args"]
                found.setdefault(event["name"], []).append(int(arguments["EndNs"]) - int(arguments["BeginNs"]))
                count += 1
print(count)
"""
_NODE = """
import json, sys
sys.path.insert(0, sys.argv[2])
from chisel.node.ranking import rank
print(rank(sys.argv[1])["dispatches"])
"""


@dataclass
class Taken:
    """Wall times in s and the largest memory in MB of one way to read."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    counted: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def run(command: list[str], stdin: bytes, into: Taken) -> bytes:
    """Run a command and add its time and memory."""
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out:
        source.write(stdin)
        source.seek(0)
        used, begin = cpu_of_children(), time.perf_counter()
        process = subprocess.Popen(command, stdin=source, stdout=out)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(resident, tree(process.pid))))
            time.sleep(0.01)  # noqa: TID251 - a look at memory every 10 ms, beside the process
        into.seconds.append(time.perf_counter() - begin)
        into.cpu.append(cpu_of_children() - used)
        into.peak_mb = max(into.peak_mb, peak / 2**20)
        assert process.returncode == 0, command
        out.seek(0)
        return out.read()


def cpu_of_children() -> float:
    """Return the CPU seconds of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, as /proc tells."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in tree(int(child)))]


def resident(pid: int) -> int:
    """Return the bytes a process holds in memory, 0 when it has gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def chisel(path: Path, into: Taken) -> None:
    """Rank by the worker, as `chisel profile --from` does."""
    answer = json.loads(run(WORKER, json.dumps({"do": "rank", "path": str(path), "top": 10}).encode(), into))
    into.counted = answer["figures"]["dispatches"]


def other(program: str, path: Path, into: Taken) -> None:
    """Read by a program of a few lines."""
    project = str(Path(__file__).resolve().parents[2])
    into.counted = int(run([sys.executable, "-c", program, str(path), project], b"", into))


def compare(kind: str, path: Path, peer: str | None, runs: int) -> bool:
    """Let both take turns, say what was found, and return whether the goals are reached."""
    ours, theirs, node = Taken(), Taken(), Taken()
    for _ in range(runs):
        if peer:
            other(peer, path, theirs)
        chisel(path, ours)
    other(_NODE, path, node)
    size = path.stat().st_size / 2**20
    print(f"\n{kind}: {ours.counted} dispatches, {size:.0f} MB")
    for name, taken in (("peer", theirs), ("chisel", ours), ("node", node)):
        if taken.seconds:
            spread = f"{min(taken.seconds):.2f} to {max(taken.seconds):.2f}"
            cpu = statistics.median(taken.cpu)
            print(f"  {name:7} {taken.median:6.2f} s ({spread}), {cpu:6.2f} CPU s, peak {taken.peak_mb:5.0f} MB")
    ratio, most_mb = GOALS[kind]
    reached = ours.peak_mb < most_mb
    if theirs.seconds:
        # The peer leaves the last event, behind which the list ends, to others.
        missing = 1 if kind == "json" else 0
        assert theirs.counted + missing == ours.counted == node.counted, (theirs.counted, ours.counted, node.counted)
        found = ours.median / theirs.median
        reached = reached and found <= ratio
        print(f"  ratio {found:.2f} (goal {ratio}), memory {ours.peak_mb:.0f} MB (goal {most_mb})")
    return reached


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dispatches", type=int, default=5_000_000)
    options.add_argument("--json-mb", type=int, default=500)
    options.add_argument("--runs", type=int, default=5)
    options.add_argument(
        "--dir", type=Path, help="where the files are kept for another run; otherwise they are removed"
    )
    options.add_argument("--only", default="rocpd,csv,json")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="chisel-benchmark-") as scratch:
        place = chosen.dir or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        reached = [measure(kind, place, chosen) for kind in chosen.only.split(",")]
    return 0 if all(reached) else 1


def measure(kind: str, place: Path, chosen: argparse.Namespace) -> bool:
    """Make one kind of file, unless it is there, and compare."""
    if kind == "rocpd":
        path = place / f"{chosen.dispatches}_results.db"
        if not path.exists():
            generate_profile.write_rocpd(path, chosen.dispatches, SEED)
        return compare(kind, path, _SQLITE, chosen.runs)
    if kind == "csv":
        path = place / f"{chosen.dispatches}_kernel_trace.csv"
        if not path.exists():
            generate_profile.write_csv(path, chosen.dispatches, SEED)
        return compare(kind, path, _DUCKDB if has_duckdb() else None, chosen.runs)
    path = place / f"results-{chosen.json_mb}.json"
    if not path.exists():
        generate_profile.write_v1_json(path, chosen.json_mb << 20, SEED)
    return compare(kind, path, _SPLIT, chosen.runs)


def has_duckdb() -> bool:
    """Say whether duckdb is installed: it is an oracle, no dependency."""
    return subprocess.run([sys.executable, "-c", "import duckdb"], capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
