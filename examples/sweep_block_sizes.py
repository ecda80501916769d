"""Sweep the block size of `vector_add` over a pool of droplets, with chisel's async API.

    python examples/sweep_block_sizes.py --count 4 64 128 256 512 1024

Each droplet takes the next block size from one queue, builds and runs it, and comes back for more: one droplet runs
one size at a time, so no measurement disturbs another. Results go to standard output as JSON lines, each as soon as
it is there; a table goes to standard error at the end. The pool is destroyed whatever happens, unless `--keep` is
given.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import anyio

import chisel

KERNELS = Path(__file__).resolve().parent / "vector_add"
BLOCK_SIZES = (64, 128, 256, 384, 512, 768, 1024)
MEASURED = re.compile(r"^(?P<kernel>\w+): (?P<ms>[\d.]+) ms, (?P<gb_per_s>[\d.]+) GB/s$", re.MULTILINE)
DEVICE = re.compile(r"^device: (.*)$", re.MULTILINE)
DOWN_DEADLINE_S = 180.0
LOST = 255


@dataclass(frozen=True, slots=True)
class Measurement:
    """One kernel at one block size; `device` tells whether a real GPU or a stand-in ran it."""

    block_size: int
    kernel: str
    ms: float
    gb_per_s: float
    device: str
    droplet: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A block size that gave no figures, and what the droplet said about it."""

    block_size: int
    droplet: str
    status: int
    error: str


class Sweep:
    """The sizes still to do and the results so far; every change to them happens between two awaits."""

    def __init__(self, block_sizes: Sequence[int], n: int, iterations: int) -> None:
        self.waiting = deque(block_sizes)
        self.measured: list[Measurement] = []
        self.failed: list[Failure] = []
        self._arguments = f"{n} {iterations}"

    async def run_on(self, droplets: list[chisel.Pool]) -> None:
        """Measure everything that waits on these droplets, as long as one of them is left."""
        while self.waiting and droplets:
            lost: list[chisel.Pool] = []
            async with anyio.create_task_group() as tasks:
                for one in droplets:
                    tasks.start_soon(self._work, one, lost)
            droplets = [one for one in droplets if one not in lost]

    async def _work(self, one: chisel.Pool, lost: list[chisel.Pool]) -> None:
        """Take sizes for one droplet until none waits, or the droplet is lost: then another one gets its size."""
        while self.waiting:
            block_size = self.waiting.popleft()
            line = f"make -s BLOCK_SIZE={block_size} && ./build/vector_add {self._arguments}"
            [result] = await one.run(line)
            if result.status == LOST and result.source == "chisel":
                self.waiting.append(block_size)
                lost.append(one)
                print(f"{result.host} is lost: {result.error}", file=sys.stderr)
                return
            self._note(block_size, result)

    def _note(self, block_size: int, result: chisel.RunResult) -> None:
        text = (result.stdout or b"").decode(errors="replace")
        if result.status != 0:
            said = (result.stderr or b"").decode(errors="replace").strip()
            failure = Failure(block_size, result.host, result.status, said or result.error or "no output")
            self.failed.append(failure)
            _write(failure)
            return
        device = DEVICE.search(text)
        for match in MEASURED.finditer(text):
            measurement = Measurement(
                block_size=block_size,
                kernel=match["kernel"],
                ms=float(match["ms"]),
                gb_per_s=float(match["gb_per_s"]),
                device=device[1] if device else "unknown",
                droplet=result.host,
            )
            self.measured.append(measurement)
            _write(measurement)


def _write(record: Measurement | Failure) -> None:
    print(json.dumps(asdict(record)), flush=True)


def table(measured: Sequence[Measurement], failed: Sequence[Failure]) -> str:
    """Lay out GB/s by block size and kernel, the best of each kernel starred, and name the devices."""
    kernels = sorted({one.kernel for one in measured})
    rate = {(one.block_size, one.kernel): one.gb_per_s for one in measured}
    best = {kernel: max(rate[key] for key in rate if key[1] == kernel) for kernel in kernels}
    lines = ["GB/s       " + "".join(f"{kernel:>14}" for kernel in kernels)]
    for size in sorted({one.block_size for one in measured}):
        cells = [_cell(rate.get((size, kernel)), best[kernel]) for kernel in kernels]
        lines.append(f"block {size:<5}" + "".join(cells))
    lines += [f"block {one.block_size:<5} failed with status {one.status} on {one.droplet}" for one in failed]
    lines += [f"device: {device}" for device in sorted({one.device for one in measured})]
    return "\n".join(lines)


def _cell(value: float | None, best: float) -> str:
    shown = "-" if value is None else f"{value:.1f}" + ("*" if value == best else " ")
    return f"{shown:>14}"


async def sweep(options: argparse.Namespace) -> int:
    """Bring the pool up, measure, show the table; returns the exit status."""
    progress = Sweep(options.block_sizes, options.n, options.iterations)
    async with chisel.open() as client:
        pool = await client.up("sweep", count=options.count)
        try:
            synced = {result.host: result.error for result in await pool.sync(KERNELS)}
            await progress.run_on([one for one in pool.each() if not any(synced[name] for name in one.names)])
        finally:
            if not options.keep:
                await destroy(pool)
    print(table(progress.measured, progress.failed), file=sys.stderr)
    for block_size in progress.waiting:
        print(f"block {block_size} was not measured: no droplet was left", file=sys.stderr)
    return 1 if progress.failed or progress.waiting else 0


async def destroy(pool: chisel.Pool) -> None:
    """Destroy the pool and print its bill, also when the sweep was interrupted: droplets bill until they are gone."""
    with anyio.move_on_after(DOWN_DEADLINE_S, shield=True) as deadline:
        for bill in await pool.down():
            print(f"{bill.host}: ${bill.usd:.2f}" + (f" ({bill.error})" if bill.error else ""), file=sys.stderr)
    if deadline.cancelled_caught:
        print("gave up waiting; see: chisel status, chisel down --pool sweep", file=sys.stderr)


def options_from(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Sweep the block size of vector_add over a pool of droplets.")
    parser.add_argument("block_sizes", nargs="*", type=int, default=list(BLOCK_SIZES), metavar="BLOCK_SIZE")
    parser.add_argument("--count", type=int, default=2, help="how many droplets (default %(default)s)")
    parser.add_argument("--n", type=int, default=1 << 26, help="floats in each vector (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=50, help="timed runs of each kernel (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the droplets up, and billing")
    return parser.parse_args(arguments)


def main() -> int:
    """Run the sweep as a script."""
    try:
        return anyio.run(sweep, options_from(sys.argv[1:]))
    except KeyboardInterrupt:
        return 130
    except chisel.ChiselError as error:
        print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
