"""Profiles kept under a name: what comes back, what is refused, what may be compared."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chisel.errors import UsageError
from chisel.figures import Fingerprint, KernelStats
from chisel.profile import saved as module
from chisel.profile.compare import REST, compare
from chisel.profile.saved import Saved, check_comparable, encode, limited, load, save
from tests.profile.noise import ROUGH, Lab, kernel

AT = datetime(2026, 11, 26, 12, 30, tzinfo=UTC)
FACTS = {"ROCm": "7.1.0", "GPU": "MI300X VF", "clock range": "132 to 2100 MHz", "tree hash": "ab12", "command": "./a"}
SESSION = {"k<a, b>()": kernel("k<a, b>()", [100.0, 110.0, 125.5]), "µ": kernel("µ", [7.0])}


def profile(**changes: Any) -> Saved:
    whole = Saved(
        "main", "rocprofv3 1.1.0 (rocpd)", "rocprofv3/rocpd", (SESSION,) * 2, AT, Fingerprint(FACTS), "bench-1"
    )
    return replace(whole, **changes)


def figures(kernel: KernelStats) -> tuple[Any, ...]:
    return kernel.name, kernel.calls, kernel.total_ns, kernel.mean_ns, kernel.p50_ns, kernel.quantiles


# -- what comes back


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    file = save(tmp_path / "new" / "profiles", "main", profile())
    assert file == tmp_path / "new" / "profiles" / "main.json"
    back = load(file.parent, "main")
    assert replace(back, sessions=()) == profile(sessions=())
    for session in back.sessions:
        assert [figures(one) for one in session.values()] == [figures(one) for one in SESSION.values()]
        assert sum(one.share for one in session.values()) == pytest.approx(1)
        assert (session["µ"].min_ns, session["µ"].max_ns) == (7.0, 7.0)


names = st.text(max_size=20)
stats = st.builds(
    lambda name, ns: kernel(name, ns) if ns else KernelStats(name, 3, 10**9, 3e8, None, None, None, None, 0.5),
    names,
    st.lists(st.floats(1, 1e12), max_size=5),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(stats, max_size=5), names, st.dictionaries(names, names, max_size=3))
def test_any_session_comes_back(
    tmp_path_factory: pytest.TempPathFactory, kernels: list[KernelStats], label: str, facts: dict[str, str]
) -> None:
    directory = tmp_path_factory.mktemp("saved")
    session = {one.name: one for one in kernels}
    save(directory, "x", profile(sessions=(session,), label=label, fingerprint=Fingerprint(facts)))
    back = load(directory, "x")
    assert [figures(one) for one in back.sessions[0].values()] == [figures(one) for one in limited(session).values()]
    assert (back.label, back.fingerprint.facts) == (label, facts)


def test_a_comparison_is_the_same_from_a_file(tmp_path: Path) -> None:
    a, b = Lab.of(3, ROUGH).sides(5)
    save(tmp_path, "a", profile(sessions=tuple(a)))
    direct, read = (compare(one, b, label_a="a", label_b="b") for one in (a, load(tmp_path, "a").sessions))
    assert direct == read


def test_small_kernels_are_kept_in_sum() -> None:
    session = {
        "hot": KernelStats("hot", 1, 10**9, 1e9, None, None, None, None, 0.9),
        "at": KernelStats("at", 1, 101_000, 1e5, None, None, None, None, 0.1),
        "a": KernelStats("a", 2, 20_000, 1e4, None, None, None, None, 0.0),
        REST: KernelStats(REST, 5, 80_000, 16e3, None, None, None, None, 0.0),
    }
    kept = limited(session)
    assert list(kept) == ["hot", "at", REST]
    assert (kept[REST].calls, kept[REST].total_ns) == (7, 100_000)
    assert limited(kept) == kept
    assert limited({}) == {}


# -- the file


def test_the_file_is_for_all_to_read_and_replaced_at_once(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        file = save(tmp_path, "main", profile())
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    first = file.stat().st_ino
    save(tmp_path, "main", profile(label="newer"))
    assert file.stat().st_ino != first
    assert load(tmp_path, "main").label == "newer"
    assert [entry.name for entry in tmp_path.iterdir()] == ["main.json"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "main.json").symlink_to(precious)
    save(tmp_path, "main", profile())
    assert precious.read_text() == "mine"
    assert not (tmp_path / "main.json").is_symlink()


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "main.json").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        save(tmp_path, "main", profile())
    assert [entry.name for entry in tmp_path.iterdir()] == ["main.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        save(tmp_path / "file", "main", profile())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/abs", ".hidden", "-x", "a\0", "a\n", "é", "x" * 101])
def test_a_name_is_a_plain_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a profile") as caught:
        save(tmp_path, name, profile())
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_no_session_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profiling session"):
        save(tmp_path, "main", profile(sessions=()))


def test_a_path_and_a_profiles_directory_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    elsewhere = save(tmp_path / "other", "file", profile(label="file"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "profile.json").write_bytes(encode(profile(label="directory")))
    assert load(kept, str(elsewhere)).label == "file"
    assert load(kept, str(out)).label == "directory"
    monkeypatch.chdir(tmp_path)
    assert load(kept, "out").label == "directory"
    save(kept, "out", profile(label="kept"))
    assert load(kept, "out").label == "kept"


def test_what_is_missing_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no profile `main`") as caught:
        load(tmp_path / "none", "main")
    assert "--save main" in str(caught.value.hint)
    save(tmp_path, "other", profile())
    with pytest.raises(UsageError, match="no profile `main`") as caught:
        load(tmp_path, "main")
    assert caught.value.hint == "known: other"
    for wrong in ("no/such", "a\0"):
        with pytest.raises(UsageError):
            load(tmp_path, wrong)


# -- what is refused


def newer(tree: dict[str, Any]) -> None:
    tree["version"] = 2


def test_a_newer_file_is_refused_and_never_rewritten(tmp_path: Path) -> None:
    file = save(tmp_path, "main", profile())
    tree = orjson.loads(file.read_bytes())
    newer(tree)
    file.write_bytes(orjson.dumps(tree))
    for act in (lambda: load(tmp_path, "main"), lambda: save(tmp_path, "main", profile())):
        with pytest.raises(UsageError, match=r"newer chisel \(format 2") as caught:
            act()
        assert "upgrade" in str(caught.value.hint)
    assert orjson.loads(file.read_bytes()) == tree


def at(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = value

    return change


KERNEL = ("sessions", 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        at("format", value="x"), at("version", value=True), at("version", value=0), at("version", value="1"),
        at("label", value=7), at("host", value=None), at("sessions", value=[]), at("sessions", value={}),
        at("sessions", value=[7]), at("sessions", value=[[]] * 1001), at("sessions", 0, value=[7]),
        at("saved_at", value="now"), at("saved_at", value="2026-11-26T12:30:00"), at("fingerprint", value=[]),
        at("fingerprint", value={"a": 7}), at("fingerprint", value={str(k): "" for k in range(201)}),
        at(*KERNEL, "calls", value=-1), at(*KERNEL, "calls", value=1.5), at(*KERNEL, "total_ns", value=2**63),
        at(*KERNEL, "mean_ns", value=None), at(*KERNEL, "p50_ns", value="1"), at(*KERNEL, "p50_ns", value=-1),
        at(*KERNEL, "name", value="x" * 70_000), at(*KERNEL, "name", value="µ"), at(*KERNEL, "quantiles", value=[1]),
        at(*KERNEL, "quantiles", value=[2.0] * 64 + [1.0]), at(*KERNEL, "quantiles", value=[True] * 65),
        at(*KERNEL, "quantiles", value=[1] * 10_000),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(tmp_path: Path, change: Callable[[Any], None]) -> None:
    file = save(tmp_path, "main", profile())
    tree = orjson.loads(file.read_bytes())
    change(tree)
    file.write_bytes(orjson.dumps(tree))
    with pytest.raises(UsageError, match="is no profile that chisel saved") as caught:
        load(tmp_path, "main")
    assert str(file) in caught.value.message
    save(tmp_path, "main", profile())
    assert load(tmp_path, "main").label == "main"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_cut_or_flipped_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("damaged") / "main.json"
    whole = bytearray(encode(profile()))
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[place:]
    else:
        whole[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(whole)
    with contextlib.suppress(UsageError):
        assert load(file.parent, "main").sessions


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"1e999", b"[" * 100_000, b"\xff", b'{"version": 1e999}'])
def test_what_is_no_json_of_ours_is_refused(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "main.json").write_bytes(text)
    with pytest.raises(UsageError, match="is no profile that chisel saved"):
        load(tmp_path, "main")


def test_a_file_without_end_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "main.json").open("wb") as stream:
        stream.truncate(module.LARGEST_BYTES + 1)
    with pytest.raises(UsageError, match="larger than 64 MiB"):
        load(tmp_path, "main")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UsageError, match="no regular file"):
        load(tmp_path, "pipe")


def test_odd_texts_are_kept_in_a_form_that_can_be_read(tmp_path: Path) -> None:
    odd = profile(label="\udcff", host="\x1b[31m", saved_at=AT.astimezone(timezone(timedelta(hours=2))))
    save(tmp_path, "main", odd)
    back = load(tmp_path, "main")
    assert (back.label, back.host, back.saved_at) == ("?", "\x1b[31m", AT)


# -- what may be compared


def test_the_same_setting_has_nothing_to_say() -> None:
    after = profile(label="after", fingerprint=Fingerprint({**FACTS, "command": "./b", "tree hash": "cd34"}))
    assert check_comparable(profile(), after) == ()


@pytest.mark.parametrize("other", ["rocprof v1", "rocprofv3/csv", ""])
def test_profilers_of_different_generations_are_never_compared(other: str) -> None:
    with pytest.raises(UsageError, match="not compared") as caught:
        check_comparable(profile(), profile(label="after", generation=other))
    assert "--driver" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "bench-2"}, "droplet differs: `bench-1`, then `bench-2`"),
        ({"tool": "v3 1.3.0"}, "profiler differs: `rocprofv3 1.1.0 (rocpd)`, then `v3 1.3.0`"),
        ({"fingerprint": Fingerprint({**FACTS, "ROCm": "7.2.0"})}, "ROCm differs: `7.1.0`, then `7.2.0`"),
        ({"fingerprint": Fingerprint({**FACTS, "GPU": ""})}, "GPU differs: `MI300X VF`, then something unknown"),
        ({"fingerprint": Fingerprint({**FACTS, "image": "x"})}, "image differs: something unknown, then `x`"),
    ],
)  # fmt: skip
def test_what_differs_is_said(changes: dict[str, Any], said: str) -> None:
    assert check_comparable(profile(), profile(**changes)) == (said,)


def test_it_is_said_when_no_profiler_is_known() -> None:
    assert "not known which profiler" in check_comparable(profile(generation=""), profile(generation=""))[0]
