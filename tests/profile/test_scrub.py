"""No byte of a secret leaves, whatever file it stands in; the figures stay."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from chisel.node import ranking, scrub
from chisel.node.scrub import make_fit_to_leave
from tests.profile import lookalike

SECRET = "hunter2-secret-value"
ODD = 'pa"ss\\wörd/1'
DISPATCHES = [("gemm", 9000), ("scale", 500)]


def everything(place: Path) -> bytes:
    """Return every byte below a directory, gzip unpacked as well."""
    found = b""
    for path in sorted(place.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found += data + (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else b"")
    return found


def holds(data: bytes, text: str) -> bool:
    forms = {text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], text.replace('"', '""')}
    return any(form.encode() in data for form in forms)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in blocks so small that every text lies across two of them."""
    monkeypatch.setattr(scrub, "_BLOCK", 100)


def test_no_value_of_an_environment_stays_and_the_figures_do(tmp_path: Path) -> None:
    path = tmp_path / "7_results.db"
    lookalike.rocpd(path, DISPATCHES, environment={"HF_TOKEN": SECRET, "BIG": SECRET * 2000})
    (tmp_path / "8_results.db-journal").write_text(SECRET)
    assert SECRET.encode() in path.read_bytes()
    before = {**ranking.rank(str(path)), "unfinished": None}
    assert make_fit_to_leave(str(tmp_path)) == []
    assert {**ranking.rank(str(path)), "unfinished": None} == before
    left = everything(tmp_path)
    assert SECRET.encode() not in left
    assert b"HF_TOKEN" in left, "which variables there were is worth knowing"
    assert [entry.name for entry in tmp_path.iterdir()] == ["7_results.db"]


@pytest.mark.parametrize(
    "environment",
    [{"HF_TOKEN": SECRET, "N": 'a{]}\\"'}, [{"key": "HF_TOKEN", "value": SECRET}], [f"HF_TOKEN={SECRET}"]],
    ids=["object", "pairs", "lines"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_the_environment_in_json_keeps_its_names(tmp_path: Path, environment: object, packed: bool) -> None:
    path = tmp_path / "7_results.json"
    lookalike.v3_json(path, DISPATCHES, environment=environment)
    before = json.loads(path.read_bytes())["rocprofiler-sdk-tool"][0]
    if packed:
        (tmp_path / "7_results.json.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert make_fit_to_leave(str(tmp_path)) == []
    (left,) = tmp_path.iterdir()
    data = gzip.decompress(left.read_bytes()) if packed else left.read_bytes()
    after = json.loads(data)["rocprofiler-sdk-tool"][0]
    assert SECRET.encode() not in data
    assert b"HF_TOKEN" in data
    assert {**after, "metadata": None} == {**before, "metadata": None}
    assert ranking.rank(str(left))["source"] == "json"


def test_json_that_ends_within_its_environment_ends_before_it(tmp_path: Path) -> None:
    path = tmp_path / "7_results.json"
    lookalike.v3_json(path, DISPATCHES, environment={"HF_TOKEN": SECRET})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(SECRET.encode()) + 8])
    make_fit_to_leave(str(tmp_path))
    assert SECRET[:8].encode() not in everything(tmp_path)


@pytest.mark.parametrize("secret", [SECRET, ODD, SECRET * 20], ids=["plain", "odd", "long"])
def test_given_texts_are_blanked_wherever_they_stand(tmp_path: Path, secret: str) -> None:
    lookalike.rocpd(tmp_path / "a.db", DISPATCHES, command=f"./app --key {secret}")
    lookalike.rocpd(tmp_path / "b.db", [(f"k<{secret}>", 5)])
    lookalike.v3_json(tmp_path / "c.json", [(f"k<{secret}>", 5)])
    lookalike.v1_json(tmp_path / "d.json.gz", [(json.dumps(secret)[1:-1], 5)])
    text = f'"Domain","Function"\n"MARKER","{secret.replace(chr(34), chr(34) * 2)}"\n'
    (tmp_path / "7_marker_api_trace.csv").write_text(text * 30)
    (tmp_path / "x.pftrace").write_bytes(b"\x0a\xff" * 90 + secret.encode() + b"\0\xfe" * 90)
    with gzip.open(tmp_path / "log.txt.gz", "wt") as log:
        log.write(f"x{secret}" * 9)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert make_fit_to_leave(str(tmp_path), [secret, "abc"]) == []
    assert not holds(everything(tmp_path), secret)
    for name in ("7_marker_api_trace.csv", "x.pftrace"):
        assert (tmp_path / name).stat().st_size == sizes[name], "every other byte stays where it is"
    assert (tmp_path / "x.pftrace").read_bytes().startswith(b"\x0a\xff" * 90 + b"*")
    for name in ("a.db", "b.db", "c.json", "d.json.gz"):
        assert ranking.rank(str(tmp_path / name))["dispatches"] > 0


def test_short_texts_are_no_secrets(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,abc,2\n")
    make_fit_to_leave(str(tmp_path), ["abc", "1", ""])
    assert (tmp_path / "a.csv").read_text() == "1,abc,2\n"


def test_what_cannot_be_cleaned_stays_on_the_droplet(tmp_path: Path) -> None:
    cut, odd, packed = tmp_path / "7_results.db", tmp_path / "8_results.db", tmp_path / "x.json.gz"
    lookalike.rocpd(cut, DISPATCHES * 50, environment={"HF_TOKEN": SECRET * 5000})
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    with closing(sqlite3.connect(odd)) as database:
        database.execute(f'CREATE TABLE "{SECRET}" (id INTEGER)')
    packed.write_bytes(gzip.compress(SECRET.encode() * 99)[:-20])
    withheld = make_fit_to_leave(str(tmp_path), [SECRET])
    assert [note.split("`")[1] for note in withheld] == ["7_results.db", "8_results.db", "x.json.gz"]
    assert all("may hold the values" in note for note in withheld)
    assert list(tmp_path.iterdir()) == []
