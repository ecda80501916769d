"""Syncs as their users meet them: in front of a command, told in words and in JSON."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import chisel
from chisel.errors import UsageError
from chisel.sync.scan import LocalTree, scan_tree
from tests.support import User, processes_with, until

pytestmark = pytest.mark.timeout(120)


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


@pytest.mark.parametrize("wait_s", [0, 1.0])
async def test_a_tree_that_cannot_be_read_runs_nothing(
    one: User, monkeypatch: pytest.MonkeyPatch, wait_s: float
) -> None:
    """Also where the droplet has been told of the command, and looks at its working copy meanwhile."""
    made = one.home / "made"
    (one.cwd / "a").write_text("content")

    async def fails(*_: Any, **__: Any) -> LocalTree:
        await anyio.sleep(wait_s)
        raise UsageError("the tree cannot be read")

    monkeypatch.setattr("chisel.client.syncing.scan_tree", fails)
    async with chisel.open(environ=one.environ(), cwd=one.cwd) as client:
        pool = await client.pool()
        with anyio.fail_after(30), pytest.raises(UsageError, match="cannot be read"):
            await pool.run(f"touch {made}", sync=True)
        with anyio.fail_after(30), pytest.raises(UsageError, match="cannot be read"):
            await pool.sync()
        monkeypatch.undo()
        (ended,) = await pool.run("cat a", sync=True)
    assert (ended.stdout, ended.status) == (b"content", 0)
    assert not made.exists()


@pytest.mark.parametrize("runs", [False, True])
async def test_a_login_does_not_wait_for_a_scan_that_takes_its_time(
    one: User, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    (one.cwd / "a").write_text("content")
    async with chisel.open(environ=one.environ(), cwd=one.cwd) as client:
        pool = await client.pool()

        async def waits(*given: Any, **more: Any) -> LocalTree:
            while client.connector_to(pool.hosts()) is None:  # noqa: ASYNC110 - a connection tells nobody that it is there
                await anyio.sleep(0.01)
            return await scan_tree(*given, **more)

        monkeypatch.setattr("chisel.client.syncing.scan_tree", waits)
        with anyio.fail_after(30):
            if runs:
                (ended,) = await pool.run("cat a", sync=True)
                assert (ended.stdout, ended.status) == (b"content", 0)
            else:
                (synced,) = await pool.sync()
                assert (synced.error, synced.sent_files) == (None, 1)


@pytest.mark.real_part("git")
def test_records_say_what_the_tree_was_checked_out_from(one: User) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        said = subprocess.run(["git", "-C", one.cwd, *who, *words], check=True, capture_output=True, text=True)
        return said.stdout.strip()

    (one.cwd / "a").write_text("a")
    outside = one.does("run", "-s", "--json", "true")
    assert outside.of("run_started")[0]["git"] is None
    git("init", "-q", "-b", "faster")
    git("add", ".")
    git("commit", "-qm", "x")
    clean = {"revision": git("rev-parse", "HEAD"), "is_dirty": False, "branch": "faster"}
    ended = one.does("run", "-s", "--json", "true")
    assert ended.of("sync_ended")[0]["result"]["git"] == ended.of("run_started")[0]["git"] == clean
    (one.cwd / "a").write_text("b")
    assert one.does("sync", "--json").of("sync_ended")[0]["result"]["git"] == {**clean, "is_dirty": True}
    (started,) = one.does("run", "--json", "true").of("run_started")
    assert started["git"] == {**clean, "is_dirty": True}, "a later command runs on the tree that was synced last"
    record = json.loads(one.does("run", f"cat ~/.chisel/runs/{started['run_id']}/run.json").out)
    assert record["git"] == started["git"]


@pytest.mark.real_part("git")
def test_a_git_that_takes_its_time_holds_no_sync_up(one: User) -> None:
    """What it says is a remark: a sync goes without one, and ends long before the minute that git sleeps."""
    subprocess.run(["git", "init", "-q", one.cwd], check=True)
    tools = one.home / "tools"
    tools.mkdir()
    slow = tools / "git"
    slow.write_text(
        f'#!/bin/sh\ncase " $* " in *" status "*) exec sleep 61.5 ;; esac\nexec {shutil.which("git")} "$@"\n'
    )
    slow.chmod(0o755)
    (one.cwd / "a").write_text("a")
    path = f"{tools}:{os.environ['PATH']}"
    for words in (("sync", "--json"), ("run", "-s", "--json", "true")):
        (synced,) = one.does(*words, PATH=path).of("sync_ended")
        assert (synced["result"]["error"], synced["result"]["git"]) == (None, None)
    until(lambda: not processes_with("sleep 61.5"), what="git's end")


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


class Watching:
    """A `sync --watch --json` that runs; `of` gives its events of a kind, waiting until there are so many."""

    def __init__(self, user: User, *words: str) -> None:
        self.file = user.home / "watched.json"
        with self.file.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "chisel", "sync", "--watch", "--json", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                cwd=user.cwd,
                env=user.environ(),
            )

    def of(self, kind: str, least: int) -> list[dict[str, Any]]:
        def found() -> list[dict[str, Any]]:
            whole = self.file.read_bytes().rpartition(b"\n")[0].splitlines()
            return [event for line in whole if (event := json.loads(line))["event"] == kind]

        until(lambda: len(found()) >= least, what=f"{least} times {kind}")
        return found()

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def test_a_watch_syncs_and_runs_after_each_change(one: User) -> None:
    (one.cwd / "a.txt").write_text("first")
    # One process that shows it and stays: a shell that waits for another one would miss the signal (it goes on then).
    with Watching(one, "--run", "exec tail -s 4321.5 -n +1 -f a.txt") as watching:
        watching.of("output", 1)
        (one.cwd / "a.txt").write_text("other")
        (second,) = watching.of("sync_ended", 2)[1:]
        assert second["result"]["sent_files"] == 1
        assert 0 < second["after_s"] < 20
        assert [event["text"] for event in watching.of("output", 2)] == ["first", "other"]
        (first,) = watching.of("run_ended", 1)
        assert first["result"]["signal"] == signal.SIGINT, "the one before is interrupted"
        assert watching.interrupt() == 130
        (ended,) = watching.of("ended", 1)
        assert ended["status"] == 130
        assert len(watching.of("run_ended", 2)) == 2
    until(lambda: not processes_with("4321.5"), what="the command to end")


def test_a_watch_tells_what_fails_and_goes_on(one: User) -> None:
    (one.cwd / "a.txt").write_text("first")
    (synced,) = one.does("sync", "--json").of("sync_ended")
    name = Path(synced["result"]["root"]).name
    one.does("run", "--cwd", "~", f"mv chisel/{name} chisel/aside && ln -s /tmp chisel/{name}")
    with Watching(one, "--run", "cat a.txt") as watching:
        (failed,) = watching.of("sync_ended", 1)[:1]
        assert "symbolic link" in failed["result"]["error"]
        one.does("run", "--cwd", "~", f"rm chisel/{name} && mv chisel/aside chisel/{name}")
        (one.cwd / "a.txt").write_text("other")
        assert [event["text"] for event in watching.of("output", 1)] == ["other"]
        assert watching.interrupt() == 130


def test_a_mode_that_changes_is_told(one: User) -> None:
    (one.cwd / "a.sh").write_text("same")
    with Watching(one) as watching:
        watching.of("sync_ended", 1)
        (one.cwd / "a.sh").chmod(0o755)
        (told,) = watching.of("sync_ended", 2)[1:]
        assert told["after_s"] > 0
        assert told["result"]["sent_files"] == 0
        assert watching.interrupt() == 130


def test_ctrl_c_ends_a_sync_that_waits(one: User) -> None:
    (one.cwd / "a.txt").write_text("first")
    one.does("sync")
    began = one.does("run", "--detach", "--json", "exec sleep 4322.5").of("run_started")[0]["run_id"]
    (one.cwd / "a.txt").write_text("other")
    with Watching(one) as watching:
        until(
            lambda: any("waiting for what runs" in one["message"] for one in watching.of("notice", 1)),
            what="the sync to wait for the command",
        )
        assert watching.interrupt() == 130
    one.does("kill", began)


def test_a_change_that_is_none_is_not_told(one: User) -> None:
    (one.cwd / "a.txt").write_text("same")
    with Watching(one) as watching:
        watching.of("sync_ended", 1)
        (one.cwd / "a.txt").write_text("same")
        (one.cwd / "b.txt").write_text("new")
        told = watching.of("sync_ended", 2)
        assert [one["result"]["sent_files"] for one in told] == [1, 1]
        assert watching.interrupt() == 130


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "make"], "--run goes with --watch"),
        (["--watch", "--dry-run"], "neither --explain nor --dry-run"),
        (["--watch", "--explain", "a"], "neither --explain nor --dry-run"),
    ],
)
def test_a_watch_that_makes_no_sense_is_refused(user: User, words: list[str], said: str) -> None:
    ended = user.chisel("sync", *words)
    assert ended.status == 2
    assert said in ended.err


def test_options_of_a_sync_go_with_a_run(one: User) -> None:
    (one.cwd / "a").write_text("here\n")
    assert one.does("run", "-s", "cat a; echo there > a").out == b"here\n"
    assert one.does("run", "-s", "--keep-remote", "cat a").out == b"there\n"
    assert one.does("run", "-s", "--checksum", "cat a").out == b"here\n"
    refused = one.chisel("run", "--now", "cat", "a")
    assert refused.status == 2
    assert "--sync" in refused.err
