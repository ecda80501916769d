"""The watchdog as a process, against an API on loopback: what it sends, when, and what it never does."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chisel.cloud.cloudinit import MAX_BYTES, user_data
from chisel.cloud.selfdestruct import MODULES, SelfDestruct
from chisel.model import Secret
from chisel.ssh.keys import generate_keypair
from chisel.ssh.program import read_modules
from tests.support import until

KEYS = generate_keypair("chisel")
TOKEN = 'dop_v1_can"only\\delete'
ID = 512345678


@dataclass
class Api:
    """Answer DELETEs with what a test wants; keep what came."""

    url: str = ""
    status: int = 204
    location: str | None = None
    hangs: bool = False
    came: list[tuple[str, str, str | None]] = field(default_factory=list)


@contextmanager
def an_api() -> Iterator[Api]:
    api, over = Api(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            api.came.append((self.command, self.path, self.headers.get("Authorization")))
            if api.hangs:
                over.wait(60)
                return
            self.send_response(api.status)
            if api.location:
                self.send_header("Location", api.location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)  # noqa: TID251 - a blocking server of a sync test
    thread.start()
    yield api
    over.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def api() -> Iterator[Api]:
    with an_api() as api:
        yield api


def made(api_url: str, **changed: object) -> SelfDestruct:
    given = {"idle_s": 40, "ttl_s": 0, "attempt": "ab" * 8, "program": read_modules(MODULES), **changed}
    return SelfDestruct(token=Secret(TOKEN), api_url=api_url, **given)  # type: ignore[arg-type]


@dataclass
class Droplet:
    """A directory with all that user data writes; its watchdog ticks when it is told to."""

    root: Path
    python: str = sys.executable

    @property
    def home(self) -> Path:
        return self.root / "home" / "root"

    def boot(self, wanted: SelfDestruct) -> None:
        for entry in document(wanted)["write_files"]:
            path = self.root / entry["path"].lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(entry["content"])
            path.chmod(int(entry["permissions"], 8))
        (self.home / ".chisel").mkdir(parents=True, exist_ok=True)
        self.is_droplet(ID)

    def is_droplet(self, id: int) -> None:
        place = self.root / "var/lib/cloud/data"
        place.mkdir(parents=True, exist_ok=True)
        (place / "instance-id").write_text(f"{id}\n")

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": "/usr/bin:/bin", "HOME": str(self.home), "CHISEL_DROPLET_ROOT": str(self.root),
            "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9",
        }  # fmt: skip

    def tick(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, "-m", "chisel_node.watchdog", "tick"], cwd=self.root / "opt/chisel", env=self.environ,
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def last_resort(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", str(self.root / "opt/chisel/last-resort")],
            env=self.environ, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip

    def age(self, seconds: float) -> None:
        """Let the machine have been on for longer, as far as the watchdog remembers."""
        file = self.root / "var/lib/chisel/memory.json"
        memory = json.loads(file.read_text())
        file.write_text(json.dumps({**memory, "on_s": memory["on_s"] - seconds}))

    @property
    def state(self) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.root / "var/lib/chisel/state.json").read_text())
        return found

    def use(self) -> None:
        file = self.home / ".chisel" / "activity"
        file.touch()
        now = file.stat().st_mtime_ns
        os.utime(file, ns=(now + 1, now + 1))


def document(wanted: SelfDestruct) -> dict[str, list[dict[str, str]]]:
    text = user_data(
        host_private_key=KEYS.private_openssh, host_public_key=KEYS.public_openssh, hostname="a", self_destruct=wanted
    )
    assert len(text) < MAX_BYTES / 2
    found: dict[str, list[dict[str, str]]] = json.loads(text.partition("\n")[2])
    return found


@pytest.fixture
def droplet(tmp_path: Path, api: Api) -> Droplet:
    found = Droplet(tmp_path / "root")
    found.boot(made(api.url))
    return found


def test_an_idle_droplet_sends_one_delete_for_itself(droplet: Droplet, api: Api) -> None:
    assert droplet.tick().returncode == 0
    assert (api.came, droplet.state["state"]) == ([], "on")
    droplet.age(30)
    droplet.tick()
    assert api.came == []
    droplet.age(50)
    ended = droplet.tick()
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "destroys itself: nothing was asked of it for" in ended.stdout
    assert api.came == [("DELETE", f"/v2/droplets/{ID}", f"Bearer {TOKEN}")]


@pytest.mark.real_part("python3.10")
def test_it_runs_on_the_python_of_ubuntu_22_04(droplet: Droplet, api: Api) -> None:
    droplet.python = os.environ["CHISEL_TEST_PYTHON310"]
    droplet.tick()
    droplet.age(90)
    assert droplet.tick().returncode == 0
    assert len(api.came) == 1


def test_a_request_starts_the_time_anew(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    droplet.age(100)
    droplet.use()
    droplet.tick()
    assert api.came == []
    assert droplet.state["idle_s"] == 0.0


def test_a_run_that_holds_its_lock_is_a_use_however_long(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    run = droplet.home / ".chisel/runs/r-1"
    run.mkdir(parents=True)
    with (run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(3):
            droplet.age(1000)
            droplet.tick()
            assert (api.came, droplet.state["reason"]) == ([], "the command of run r-1 runs")
    droplet.age(30)
    droplet.tick()
    assert api.came == []
    droplet.age(90)
    droplet.tick()
    assert len(api.came) == 1


@pytest.mark.parametrize(
    ("status", "words"), [(500, "answered 500"), (403, "may not delete"), (401, "not valid"), (404, "does not see it")]
)
def test_an_api_that_refuses_is_asked_again_and_the_droplet_says_so(
    droplet: Droplet, api: Api, status: int, words: str
) -> None:
    droplet.tick()
    droplet.age(90)
    api.status = status
    for _ in range(3):
        assert droplet.tick().returncode == 1
        assert droplet.state["state"] == "failing"
        assert words in str(droplet.state["error"])
    api.status = 204
    assert droplet.tick().returncode == 0
    assert len(api.came) == 4


def test_the_token_is_not_carried_to_where_a_redirect_points(droplet: Droplet, api: Api) -> None:
    with an_api() as elsewhere:
        droplet.tick()
        droplet.age(90)
        api.status, api.location = 307, f"{elsewhere.url}/v2/droplets/{ID}"
        assert droplet.tick().returncode == 1
        assert elsewhere.came == []


def test_an_api_that_is_down_is_tried_again(droplet: Droplet, tmp_path: Path) -> None:
    droplet.boot(made("http://127.0.0.1:9"))
    droplet.tick()
    droplet.age(90)
    assert droplet.tick().returncode == 1
    assert "does not answer" in str(droplet.state["error"])


def test_a_droplet_made_from_its_snapshot_destroys_nothing(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    droplet.is_droplet(ID + 1)
    droplet.age(1000)
    assert droplet.tick().returncode == 0
    assert (api.came, droplet.state["state"]) == ([], "disarmed")


def test_a_droplet_that_chisel_made_from_a_snapshot_starts_anew(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    droplet.boot(made(api.url, attempt="cd" * 8))
    droplet.is_droplet(ID + 1)
    droplet.tick()
    assert droplet.state["state"] == "on"
    droplet.age(90)
    droplet.tick()
    assert [path for _, path, _ in api.came] == [f"/v2/droplets/{ID + 1}"]


@pytest.mark.parametrize("torn", ["", "{", "[]", '{"attempt": 3}'])
def test_a_torn_memory_starts_anew(droplet: Droplet, api: Api, torn: str) -> None:
    droplet.tick()
    (droplet.root / "var/lib/chisel/memory.json").write_text(torn)
    assert droplet.tick().returncode == 0
    assert api.came == []
    droplet.age(90)
    droplet.tick()
    assert len(api.came) == 1


def test_without_its_files_it_does_nothing(droplet: Droplet, api: Api) -> None:
    (droplet.root / "etc/chisel/self-destruct.json").unlink()
    assert droplet.tick().returncode == 0
    assert not (droplet.root / "var/lib/chisel/memory.json").exists()


def test_a_tick_that_hangs_does_not_keep_the_next_one(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    droplet.age(90)
    api.hangs = True
    hanging = subprocess.Popen(
        [sys.executable, "-m", "chisel_node.watchdog", "tick"],
        cwd=droplet.root / "opt/chisel",
        env=droplet.environ,
        stdout=subprocess.PIPE,
    )
    with hanging:
        until(lambda: api.came, what="the DELETE")
        assert droplet.tick().returncode == 0, "only one at a time"
        assert len(api.came) == 1
        hanging.kill()
    api.hangs = False
    assert droplet.tick().returncode == 0
    assert len(api.came) == 2


def test_what_holds_the_token_is_for_root_alone(droplet: Droplet) -> None:
    with_token = [
        path for path in droplet.root.rglob("*") if path.is_file() and "dop_v1" in path.read_text(errors="replace")
    ]
    assert sorted(path.name for path in with_token) == ["self-destruct.curl", "self-destruct.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in with_token} == {0o600}
    assert "dop_v1" not in repr(made("http://127.0.0.1:1"))


@pytest.mark.real_part("curl")
def test_the_last_resort_waits_for_a_run_that_holds_its_lock(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    run = droplet.root / "root/.chisel/runs/r-1"  # where a real droplet's runs are
    run.mkdir(parents=True)
    with (run / "lock").open("w") as lock, (droplet.home / "unrelated").open("w") as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX)
        for _ in range(8):
            droplet.last_resort()
            (droplet.root / "run/chisel/last").write_text("another second")
        assert api.came == []
        fcntl.flock(lock, fcntl.LOCK_UN)
        for _ in range(8):
            droplet.last_resort()
    assert len(api.came) >= 1, "another's lock is no run of chisel"


@pytest.mark.real_part("curl")
def test_the_last_resort_acts_when_the_watchdog_is_dead_for_an_hour(droplet: Droplet, api: Api) -> None:
    droplet.tick()
    for _ in range(6):
        assert droplet.last_resort().returncode == 0
    assert api.came == []
    droplet.tick()  # it lives again
    for _ in range(6):
        droplet.last_resort()
    assert api.came == []
    ended = droplet.last_resort()
    assert api.came == [("DELETE", f"/v2/droplets/{ID}", f"Bearer {TOKEN}")], ended.stderr
    droplet.is_droplet(ID + 1)
    assert droplet.last_resort().returncode == 1
    assert len(api.came) == 1


def test_cloud_init_and_systemd_take_what_is_written(tmp_path: Path, api: Api) -> None:
    wanted = made(api.url, idle_s=900)
    assert wanted.tick_s == 60
    units = {
        entry["path"].rpartition("/")[2]: entry["content"]
        for entry in document(wanted)["write_files"]
        if entry["path"].startswith("/etc/systemd/system/")
    }
    assert units.keys() >= {"chisel-watchdog.timer", "chisel-watchdog.service", "chisel-last-resort.timer"}
    for name in [name for name in units if name.endswith(".timer")]:
        assert name.replace(".timer", ".service") in units
        assert "OnUnitInactiveSec=" in units[name]
    for script in ("arm", "close-metadata", "last-resort"):
        text = next(e["content"] for e in document(wanted)["write_files"] if e["path"] == f"/opt/chisel/{script}")
        assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0


@pytest.mark.real_part("cloud-init")
def test_cloud_init_itself_finds_it_valid(tmp_path: Path, api: Api) -> None:
    file = tmp_path / "user-data.yaml"
    file.write_text("#cloud-config\n" + json.dumps(document(made(api.url))))
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
