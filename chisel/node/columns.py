"""Find the columns of a profiler's CSV by name, and cut its lines.

Names differ by release: rocprofv3 of 6.2 to 10, `rocpd convert`, rocprofv2 and rocprof v1 are known here (read in their
sources, 2024 to 2026). Standard library only, Python 3.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .plainfile import opened
from .tally import FormatError, Shape, Tally

TEXTS = ("kernel_name", "kernelname", "name", "direction", "function")
START = ("start_timestamp", "beginns", "start_ns", "start")
END = ("end_timestamp", "endns", "end_ns", "end")
AGENT = ("agent_id", "gpu_id", "gpu-id", "dev-id")
PROCESS = ("process_id", "pid")
WHERE = (("guid",), PROCESS, AGENT)
"""What tells a process and a GPU, in the order in which it is kept."""

MOST_SHAPES = 1 << 12
LONGEST_COUNTER = 200

Place = tuple[bool, int]
"""Where a column is: before the text or not, and its index on that side."""

RangePart = Callable[[int, "int | None", Tally], list[int]]

_SIZES = {
    "vgprs": ("vgpr_count", "arch_vgpr", "arch_vgpr_count", "vgpr"),
    "agprs": ("accum_vgpr_count", "accum_vgpr"),
    "sgprs": ("sgpr_count", "sgpr"),
    "lds_bytes": ("lds_block_size", "group_segment_size", "lds"),
    "scratch_bytes": ("scratch_size", "private_segment_size", "scr"),
}
_VOLUMES = {
    "workgroup": (("workgroup_size_x", "workgroup_size_y", "workgroup_size_z"), ("workgroup_size", "wgr")),
    "grid": (("grid_size_x", "grid_size_y", "grid_size_z"), ("grid_size", "grd")),
}
# What rocprof v1 and v2 write beside counters; every other column of theirs is a counter.
_NO_COUNTERS = frozenset(
    {
        *("index", "dispatch_id", "kernelname", "kernel_name", "gpu-id", "gpu_id", "queue-id", "queue_id", "kind"),
        *("queue-index", "queue_index", "pid", "tid", "grd", "wgr", "lds", "scr", "vgpr", "arch_vgpr", "accum_vgpr"),
        *("sgpr", "wave_size", "fbar", "sig", "obj", "dispatchns", "beginns", "endns", "completens", "durationns"),
        *("start_timestamp", "end_timestamp", "correlation_id", "domain", "function", "xcc_index", "agent_id"),
        *("stream_id", "thread_id", "process_id", "kernel_id", "guid", "duration"),
    }
)
_WIDE = frozenset({"grd", "wgr", "kernelname"})


class Fields:
    """One line, cut: the fields before the text, the text, the fields after it."""

    __slots__ = ("head", "tail", "text")

    def __init__(self, head: list[bytes], text: bytes, tail: list[bytes]) -> None:
        self.head = head
        self.text = text
        self.tail = tail

    def raw(self, place: Place) -> bytes:
        """Return a field as it is written."""
        return self.head[place[1]] if place[0] else self.tail[place[1]]

    def word(self, place: Place) -> str:
        """Return a field's text."""
        return unquoted(self.raw(place)).decode("utf-8", "replace")

    def number(self, place: Place) -> int:
        """Return a whole number, quoted or not; raises ValueError."""
        return int(self.raw(place).strip(b'" \r'))

    def real(self, place: Place) -> float:
        """Return a number as it is, whole ones exactly; small ones are written in scientific form."""
        text = self.raw(place).strip(b'" \r')
        return int(text) if text.isdigit() else float(text)

    def joined(self, places: Sequence[Place]) -> bytes:
        """Return some fields as one text."""
        return b",".join([self.raw(place) for place in places])

    def after_end(self, end: Place) -> bytes:
        """Return everything behind the column of the end."""
        return b",".join(self.tail[end[1] + 1 :])


class Layout:
    """The columns of one file. `is_plain`: kernel id before the name, times behind it, launches at the very end."""

    def __init__(self, header: bytes, file_name: str) -> None:
        self.names = [unquoted(word).decode("utf-8", "replace") for word in header.strip().split(b",")]
        self.columns = [name.lower() for name in self.names]
        self._file_name = file_name
        text = next((name for name in TEXTS if name in self.columns), None)
        if text is None:
            shown = ", ".join(self.columns)
            raise FormatError(f"`{file_name}` has no column `kernel_name`, line 1: {shown}"[:300])
        self.before = self.columns.index(text)
        self.after = len(self.columns) - self.before - 1
        self.is_plain = self._is_plain()
        self._shape_names = (
            self.columns[self.place(*END)[1] + self.before + 2 :]
            if self.is_plain
            else [self.columns[self._index(place)] for place in self.shape_places()]
        )

    def _is_plain(self) -> bool:
        if not (self.has(*START) and self.has(*END) and "kernel_id" in self.columns[: self.before]):
            return False
        start, end = self.place(*START), self.place(*END)
        shapes_behind = all(not place[0] and place[1] > end[1] for place in self.shape_places())
        return not start[0] and not end[0] and end[1] == start[1] + 1 < self.after and shapes_behind

    def _index(self, place: Place) -> int:
        return place[1] if place[0] else place[1] + self.before + 1

    def has(self, *names: str) -> bool:
        """Say whether there is a column of one of these names."""
        return any(name in self.columns for name in names)

    def at(self, name: str) -> int:
        """Return a column's number."""
        return self.columns.index(name)

    def place(self, *names: str) -> Place:
        """Return where the first of these columns is; raises FormatError without any."""
        for name in names:
            if name in self.columns:
                index = self.columns.index(name)
                return index < self.before, index if index < self.before else index - self.before - 1
        raise FormatError(f"`{self._file_name}` has no column `{names[0]}`, line 1")

    def cut(self, line: bytes) -> Fields | None:
        """Return a line cut at its columns, None when it lacks some."""
        head = line.split(b",", self.before)
        tail = head.pop().rsplit(b",", self.after)
        if len(head) < self.before or len(tail) <= self.after:
            return None
        return Fields(head, tail[0], tail[1:])

    def shape_places(self) -> list[Place]:
        """Return where the columns are that describe a launch."""
        wanted = [name for names in _SIZES.values() for name in names]
        wanted += [name for parts, products in _VOLUMES.values() for name in (*parts, *products)]
        return [self.place(name) for name in wanted if name in self.columns]

    def shape(self, rest: bytes) -> Shape:
        """Return the launch that the joined fields of a line describe."""
        words = dict(zip(self._shape_names, (part.strip(b'" \r') for part in rest.split(b",")), strict=False))
        sizes = {field: _first(words, names) for field, names in _SIZES.items()}
        volumes = {field: _volume(words, *names) for field, names in _VOLUMES.items()}
        return Shape(**volumes, **sizes)  # type: ignore[arg-type]  # the fields' names are the keys

    def counter_places(self) -> list[tuple[str, Place]]:
        """Return the counters that have a column of their own, as v1 and v2 write them."""
        if not _WIDE & set(self.columns):
            return []
        return [
            (name[:LONGEST_COUNTER], self.place(column))
            for name, column in zip(self.names, self.columns, strict=True)
            if column and column not in _NO_COUNTERS
        ]


def _first(words: dict[str, bytes], names: Sequence[str]) -> int | None:
    for name in names:
        text = words.get(name)
        if text is not None and text.isdigit():
            return int(text)
    return None


def _volume(words: dict[str, bytes], parts: Sequence[str], products: Sequence[str]) -> tuple[int, int, int] | None:
    """Return work-items along x, y, z; a format that knows their product only has it along x."""
    found = [_first(words, [name]) for name in parts]
    x, y, z = found
    if x is not None and y is not None and z is not None:
        return x, y, z
    product = _first(words, products)
    return None if product is None else (product, 1, 1)


def gpu_name(word: str) -> str:
    """Name a GPU as a file numbers it: `Agent 4` (ROCm 7), `4` (6.x), v1's `gpu-id`."""
    return f"GPU {word.lower()}" if not word.isdigit() else f"GPU agent {word}"


def unquoted(text: bytes) -> bytes:
    """Return a field without its outer quotes."""
    stripped = text.strip()
    if len(stripped) > 1 and stripped[:1] == stripped[-1:] == b'"':
        return stripped[1:-1]
    return text if stripped == text else stripped


def next_line(path: str, offset: int) -> int:
    """Return where the first line begins at or behind an offset."""
    with opened(path) as source:
        source.seek(offset - 1)
        while True:
            piece = source.readline(1 << 20)
            if piece.endswith(b"\n") or not piece:
                return source.tell()
