"""Syncs as their users meet them: in front of a command, told in words and in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import User

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def one(user: User) -> User:
    user.does("up")
    return user


def test_run_syncs_and_runs_in_one_message(one: User) -> None:
    (one.cwd / "sub").mkdir()
    (one.cwd / "sub" / "a.txt").write_text("first\n")
    (one.cwd / "big.bin").write_bytes(bytes(range(256)) * 9000)
    inside = User(one.home, one.cwd / "sub", one.cloud)
    ended = one.does("run", "-s", "--json", "cat sub/a.txt")
    (synced,) = ended.of("sync_ended")
    (started,) = ended.of("run_started")
    assert synced["result"]["error"] is None
    assert synced["result"]["sent_files"] == 2
    assert started["tree_hash"] == synced["result"]["tree_hash"] != ""
    (one.cwd / "sub" / "a.txt").write_text("other\n")
    assert one.does("run", "-s", "cat sub/a.txt").out == b"other\n"
    later = one.does("run", "--json", "cat sub/a.txt; cat ~/.chisel/runs/*/run.json | tail -c 300")
    assert later.of("run_started")[0]["tree_hash"] not in ("", synced["result"]["tree_hash"])
    (one.cwd / "chisel.toml").write_text("")
    inside.does("run", "-s", "true")
    assert inside.does("run", "cat", "a.txt").out == b"other\n", "the command runs where the user stands"


def test_the_record_of_a_run_names_its_tree(one: User) -> None:
    (one.cwd / "a").write_text("a")
    ended = one.does("run", "-s", "--json", "sleep 0")
    run_id = ended.of("run_started")[0]["run_id"]
    record = one.does("run", f"cat ~/.chisel/runs/{run_id}/run.json").out
    assert json.loads(record)["tree_hash"] == ended.of("sync_ended")[0]["result"]["tree_hash"]


def test_a_sync_that_fails_runs_nothing(one: User) -> None:
    (one.cwd / "a").write_text("a")
    (synced,) = one.does("sync", "--json").of("sync_ended")
    name = Path(synced["result"]["root"]).name
    one.does("run", "--cwd", "~", f"rm -rf chisel/{name} && ln -s /tmp chisel/{name}")
    ended = one.chisel("run", "-s", "touch ran-anyway")
    assert ended.status == 255
    assert "symbolic link" in ended.err
    assert not Path("/tmp/ran-anyway").exists()


def test_options_are_told_in_words(one: User) -> None:
    for name in ("keep.c", "gone.c", "meddled.c"):
        (one.cwd / name).write_text(name)
    first = one.does("sync").err
    assert "3 files sent" in first
    assert "nothing to send" in one.does("sync").err
    one.does("run", "echo theirs > meddled.c; echo own > result.csv")
    (one.cwd / "gone.c").unlink()
    dry = one.does("sync", "--dry-run").err
    assert "gone.c: deleted: it is gone here" in dry
    assert "meddled.c: repaired: it was changed on the droplet" in dry
    assert "kept `meddled.c`" in one.does("sync", "--keep-remote").err
    assert one.does("run", "cat meddled.c; ls").out == b"theirs\nkeep.c\nmeddled.c\nresult.csv\n"
    assert "repaired `meddled.c`" in one.does("sync", "--checksum").err
    extra = one.does("sync", "--delete-extra").err
    assert "deleting result.csv" in extra
    assert one.does("run", "ls").out == b"keep.c\nmeddled.c\n"
    assert one.chisel("sync", "--bwlimit", "fast").status == 2
    assert one.does("sync", "--bwlimit", "20M", "--to", "~/elsewhere").status == 0
    assert one.does("run", "ls").out == b"keep.c\nmeddled.c\n", "commands run where the last sync went"
    assert one.does("run", "pwd").out.strip().endswith(b"/elsewhere")
    assert one.chisel("sync", "--to", "relative").status == 2
