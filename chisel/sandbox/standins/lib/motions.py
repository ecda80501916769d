"""Go through the motions of a HIP program: what the stand-in `hipcc` builds is this text plus a description.

Nothing here is measured. Durations follow from kernel name, block size, element count and a seed
(`CHISEL_STANDIN_SEED`, default 0), so that a sweep has a shape and two runs agree. This file is copied whole into
every program built, so it imports nothing but the standard library, and little of that.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

NOTICE = "sandbox stand-in: no GPU was used; figures are made up"
DEVICE = "AMD Instinct MI300X (sandbox stand-in)"
COLLECT = "CHISEL_STANDIN_COLLECT"
SEED = "CHISEL_STANDIN_SEED"
MEMORY_BYTES = 192 * 10**9
ELEMENT_BYTES = 4
DEFAULT_N = 1 << 20
DEFAULT_ITERATIONS = 20
MAX_THREADS = 1024

Value = int | tuple[int, ...]

_OPERATORS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class Interrupted(BaseException):
    """A signal that the profiler lets the program finish its records for."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def evaluate(text: str, names: Mapping[str, Value], unknown: int | None = None) -> Value:
    """Compute an integer expression (or a `dim3` of them); names not known count as `unknown`.

    Raises ValueError for what is no such expression, and for unknown names when `unknown` is None.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        return _value(tree, names, unknown)
    except (SyntaxError, RecursionError, ArithmeticError, TypeError) as error:
        raise ValueError(f"not an integer expression: {text}") from error


def _value(node: ast.AST, names: Mapping[str, Value], unknown: int | None) -> Value:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return int(node.value)
    if isinstance(node, ast.Name):
        return _named(node.id, names, unknown)
    if isinstance(node, ast.Attribute):
        return _member(node, names, unknown)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        sides = _number(node.left, names, unknown), _number(node.right, names, unknown)
        if isinstance(node.op, ast.LShift) and not 0 <= sides[1] < 64:
            raise ValueError("shift out of range")
        return int(_OPERATORS[type(node.op)](*sides))
    if isinstance(node, ast.UnaryOp):
        number = _number(node.operand, names, unknown)
        return {ast.USub: -number, ast.UAdd: number, ast.Invert: ~number, ast.Not: int(not number)}[type(node.op)]
    if isinstance(node, ast.Compare):
        return _compared(node, names, unknown)
    if isinstance(node, ast.BoolOp):
        parts = [_number(part, names, unknown) for part in node.values]
        return int(all(parts) if isinstance(node.op, ast.And) else any(parts))
    if isinstance(node, ast.Tuple):
        return tuple(_number(part, names, unknown) for part in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return _called(node.func.id, [_number(part, names, unknown) for part in node.args])
    raise ValueError("not an integer expression")


def _number(node: ast.AST, names: Mapping[str, Value], unknown: int | None) -> int:
    value = _value(node, names, unknown)
    return value if isinstance(value, int) else value[0]


def _named(name: str, names: Mapping[str, Value], unknown: int | None) -> Value:
    if name in names:
        return names[name]
    if name in ("true", "false"):
        return int(name == "true")
    if unknown is None:
        raise ValueError(f"unknown name `{name}`")
    return unknown


def _member(node: ast.Attribute, names: Mapping[str, Value], unknown: int | None) -> int:
    value = _value(node.value, names, unknown)
    if isinstance(value, tuple) and node.attr in ("x", "y", "z"):
        index = "xyz".index(node.attr)
        return value[index] if index < len(value) else 1
    if unknown is None:
        raise ValueError(f"unknown member `{node.attr}`")
    return unknown


def _compared(node: ast.Compare, names: Mapping[str, Value], unknown: int | None) -> int:
    left = _number(node.left, names, unknown)
    for kind, side in zip(node.ops, node.comparators, strict=True):
        right = _number(side, names, unknown)
        if type(kind) not in _OPERATORS or not _OPERATORS[type(kind)](left, right):
            return 0
        left = right
    return 1


def _called(name: str, values: list[int]) -> Value:
    if name == "dim3":
        return tuple(values)
    if name in ("min", "max") and values:
        return min(values) if name == "min" else max(values)
    if len(values) == 1:
        return values[0]
    raise ValueError(f"unknown function `{name}`")


def three(value: Value) -> tuple[int, int, int]:
    """Pad a launch dimension to x, y, z."""
    parts = (value,) if isinstance(value, int) else value
    x, y, z = (*parts, 1, 1, 1)[:3] if parts else (1, 1, 1)
    return x, y, z


def duration_ns(kernel: str, block: int, n: int, pointers: int, index: int, seed: str) -> int:
    """Make up how long dispatch `index` of a kernel takes, in ns: memory bound, best near one block size."""
    trait = zlib.crc32(f"{seed}/{kernel}".encode())
    bytes_per_ns = 5300 * (0.50 + 0.35 * (trait % 1000) / 1000)
    best = 128 << ((trait >> 10) % 3)
    penalty = 1 + 0.07 * math.log2(max(block, 1) / best) ** 2
    jitter = zlib.crc32(f"{seed}/{kernel}/{block}/{index}".encode()) % 1000 / 1000
    return 1 + int((2200 + max(pointers, 1) * ELEMENT_BYTES * n / bytes_per_ns * penalty) * (1 + 0.04 * jitter))


class Recorder:
    """Write one process's records where the stand-in profiler asked for them; does nothing when it did not.

    The file appears under its final name only when it is complete, as JSON lines: a header, then records
    `[kind, ...]` with kinds k (dispatch), c (copy), a (API call), m (marker), and an `end` line.
    """

    def __init__(self, header: Mapping[str, Any]) -> None:
        directory = os.environ.get(COLLECT)
        self.now_ns = time.monotonic_ns()
        self._final = os.path.join(directory, f"{self.now_ns}-{os.getpid()}.jsonl") if directory else ""
        self._file = _open(self._final + ".part") if directory else None
        self._line({"stand-in": NOTICE, "process": _process(self.now_ns), **header})

    @property
    def is_on(self) -> bool:
        """Whether a profiler is listening."""
        return self._file is not None

    def call(self, name: str, took_ns: int) -> None:
        """Record one call of the HIP runtime and let its time pass."""
        self._line(["a", name, self.now_ns, self.now_ns + took_ns])
        self.now_ns += took_ns

    def write(self, kind: str, what: Any, start_ns: int, end_ns: int) -> None:
        """Record something that ran from `start_ns` to `end_ns`."""
        self._line([kind, what, start_ns, end_ns])

    def finish(self) -> None:
        """Complete the file and give it its name."""
        if self._file is not None:
            self._line(["end", "", self.now_ns, self.now_ns])
            self._file.close()
            os.rename(self._final + ".part", self._final)

    def _line(self, record: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(record) + "\n")


def _open(path: str) -> TextIO:
    """Open a new file that only its owner may read: it holds the whole environment."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")


def _process(start_ns: int) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "ppid": os.getppid(),
        "command": list(sys.argv),
        "environment": dict(os.environ),
        "start_ns": start_ns,
    }


def main(program: Mapping[str, Any], argv: Sequence[str]) -> int:
    """Run a built program: `argv` is its own, element count and iterations its first two numbers."""
    _default_signals()
    sizes = _numbers(argv)
    if sizes is None:
        sys.stderr.write(f"usage: {argv[0]} [N [ITERATIONS]] (both at least 1)\n{NOTICE}\n")
        return 2
    n, iterations = sizes
    _say(NOTICE)
    _say(f"device: {DEVICE}")
    problem = _problem(program, n)
    if problem:
        sys.stderr.write(f"{argv[0]}: {problem} ({NOTICE})\n")
        return 1
    launches = [_geometry(launch, n) for launch in program["launches"]]
    threads = program["block_size"] or (math.prod(launches[0]["block"]) if launches else 0)
    _say(f"n: {n}, block size: {threads}, iterations: {iterations}")
    totals = _perform(program, launches, n, iterations)
    _report(program, totals, n)
    passed = _adds_up()
    _say("PASSED" if passed else "FAILED")
    return 0 if passed else 1


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _default_signals() -> None:
    """Die of a signal as a compiled program does, not with a traceback; what is ignored stays ignored."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _numbers(argv: Sequence[str]) -> tuple[int, int] | None:
    given = [int(word) for word in argv[1:] if word.lstrip("-").isascii() and word.lstrip("-").isdecimal()]
    n, iterations = (*given[:2], *(DEFAULT_N, DEFAULT_ITERATIONS)[len(given) :])
    return (n, iterations) if n >= 1 and iterations >= 1 else None


def _problem(program: Mapping[str, Any], n: int) -> str | None:
    """Say what the HIP runtime would refuse, None when it would not."""
    if not any(arch in ("gfx942", "native", "gfx9-4-generic") for arch in program["architectures"]):
        built = ", ".join(program["architectures"])
        return f"HIP error: no kernel image is available for execution on the device (built for {built}, not gfx942)"
    if 3 * ELEMENT_BYTES * n > MEMORY_BYTES:
        return "HIP error: out of memory"
    for launch in program["launches"]:
        threads = math.prod(_geometry(launch, n)["block"])
        if not 1 <= threads <= MAX_THREADS:
            return f"HIP error: invalid configuration argument ({threads} threads a block) at {launch['at']}"
    return None


def _geometry(launch: Mapping[str, Any], n: int) -> dict[str, Any]:
    block = three(_or(launch["block"], n, 256))
    grid = three(_or(launch["grid"], n, -(-n // max(block[0], 1))))
    return {"kernel": launch["kernel"], "block": block, "grid": [g * b for g, b in zip(grid, block, strict=True)]}


def _or(text: str, n: int, otherwise: int) -> Value:
    try:
        return evaluate(text, {}, unknown=n)
    except ValueError:
        return otherwise


def _perform(
    program: Mapping[str, Any], launches: list[dict[str, Any]], n: int, iterations: int
) -> dict[int, tuple[int, int]]:
    """Go through all launches; return each kernel's dispatches and total ns."""
    recorder = Recorder({"kernels": program["kernels"], "launches": launches, "markers": program["markers"]})
    if recorder.is_on:
        _finish_on_signals()
    try:
        _before(recorder, program, n)
        began = recorder.now_ns
        totals = _dispatch_all(recorder, program["kernels"], launches, n, iterations)
        for text in program["markers"]:
            recorder.write("m", text, began, recorder.now_ns)
        _after(recorder, program, n)
        recorder.finish()
    except Interrupted as interruption:
        recorder.finish()
        _die(interruption.number)
    return totals


def _dispatch_all(
    recorder: Recorder, kernels: list[dict[str, Any]], launches: list[dict[str, Any]], n: int, iterations: int
) -> dict[int, tuple[int, int]]:
    totals: dict[int, tuple[int, int]] = {}
    seed = os.environ.get(SEED, "0")
    for index in range(iterations):
        for number, launch in enumerate(launches):
            kernel = kernels[launch["kernel"]]
            took = duration_ns(kernel["name"], math.prod(launch["block"]), n, kernel["pointers"], index, seed)
            recorder.call("hipLaunchKernel", 1800 + took % 700)
            start = recorder.now_ns + 900
            recorder.write("k", number, start, start + took)
            recorder.now_ns = start + took + 400
            calls, total = totals.get(launch["kernel"], (0, 0))
            totals[launch["kernel"]] = calls + 1, total + took
    recorder.call("hipDeviceSynchronize", 5200)
    return totals


def _before(recorder: Recorder, program: Mapping[str, Any], n: int) -> None:
    for _ in range(program["mallocs"]):
        recorder.call("hipMalloc", 21_000)
    for _ in range(program["copies"]["to_device"]):
        _copy(recorder, "MEMORY_COPY_HOST_TO_DEVICE", n)


def _after(recorder: Recorder, program: Mapping[str, Any], n: int) -> None:
    for _ in range(program["copies"]["to_host"]):
        _copy(recorder, "MEMORY_COPY_DEVICE_TO_HOST", n)
    for _ in range(program["mallocs"]):
        recorder.call("hipFree", 9_000)


def _copy(recorder: Recorder, direction: str, n: int) -> None:
    size = ELEMENT_BYTES * n
    took = 8000 + size // 50
    began = recorder.now_ns
    recorder.call("hipMemcpy", took + 3000)
    recorder.write("c", [direction, size], began + 1500, began + 1500 + took)


def _report(program: Mapping[str, Any], totals: Mapping[int, tuple[int, int]], n: int) -> None:
    for number, (calls, total_ns) in totals.items():
        kernel = program["kernels"][number]
        mean_ns = total_ns / calls
        rate = max(kernel["pointers"], 1) * ELEMENT_BYTES * n / mean_ns
        _say(f"{kernel['name']}: {mean_ns / 1e6:.6f} ms, {rate:.1f} GB/s")


def _adds_up() -> bool:
    """Add two small vectors for real, and check them."""
    a = [float(zlib.crc32(str(i).encode()) % 1000) for i in range(4096)]
    b = [float(i) for i in range(4096)]
    c = [x + y for x, y in zip(a, b, strict=True)]
    return all(total - x == y for total, x, y in zip(c, a, b, strict=True))


def _finish_on_signals() -> None:
    def interrupt(number: int, _frame: object) -> None:
        # A profiler passes on what the whole process group got already: the second one would cut the records.
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _die(number: int) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise SystemExit(128 + number)
