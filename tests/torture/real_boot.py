"""Boot real machines with chisel's user data: cloud-init, sshd and systemd's own timers, until the DELETE arrives.

    python -m tests.torture.real_boot --root DIRECTORY [--boots 20]

Needs root, `debootstrap` and `systemd-container`; DIRECTORY gets a Debian of 0.6 GB, made once. The machine shares this
one's network, without the right to change it: closing the metadata service is not tried here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from chisel.cloud.cloudinit import user_data
from chisel.cloud.selfdestruct import MODULES, SelfDestruct
from chisel.model import Secret
from chisel.ssh.keys import KeyPair, generate_keypair
from chisel.ssh.program import read_modules

PACKAGES = "systemd,systemd-sysv,dbus,cloud-init,python3-cffi-backend,openssh-server,python3,curl,nftables,locales"
PORT = 22990
IDLE_S = 12
FIRST_ID = 512_345_678
BOOT_DEADLINE_S = 120.0
CGROUPS = Path("/sys/fs/cgroup/systemd")


def build(root: Path) -> None:
    """Make the machine's files, once."""
    if not (root / "usr/bin/cloud-init").exists():
        subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)], check=True)
    (root / "etc/cloud/cloud.cfg.d/99-chisel.cfg").write_text(
        "datasource_list: [NoCloud]\nnetwork: {config: disabled}\n"
    )
    place = root / "etc/ssh/sshd_config.d"
    place.mkdir(exist_ok=True)
    (place / "port.conf").write_text(f"Port {PORT}\nListenAddress 127.0.0.1\n")


@contextmanager
def an_api(came: list[tuple[str, str | None]]) -> Iterator[str]:
    """Take DELETEs on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            came.append((self.path, self.headers.get("Authorization")))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)  # noqa: TID251 - a blocking server
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


def seed(root: Path, number: int, url: str, keys: KeyPair) -> None:
    """Put a new instance's user data where cloud-init looks for it; packages need a network, so none are asked for."""
    for name in ("var/lib/cloud", "opt/chisel", "etc/chisel", "var/lib/chisel"):
        shutil.rmtree(root / name, ignore_errors=True)
    for left in [*(root / "etc/systemd/system").rglob("chisel-*"), *(root / "etc/ssh").glob("ssh_host_*")]:
        left.unlink()
    place = root / "var/lib/cloud/seed/nocloud"
    place.mkdir(parents=True)
    (place / "meta-data").write_text(f"instance-id: {FIRST_ID + number}\n")
    armed = SelfDestruct(
        Secret("dop_v1_second"), url, idle_s=IDLE_S, ttl_s=0, attempt=f"{number:016x}", program=read_modules(MODULES)
    )
    text = user_data(
        host_private_key=keys.private_openssh,
        host_public_key=keys.public_openssh,
        hostname="bench-1",
        self_destruct=armed,
    )
    document = {key: value for key, value in json.loads(text.partition("\n")[2]).items() if key != "packages"}
    (place / "user-data").write_text("#cloud-config\n" + json.dumps(document))


@contextmanager
def booted(root: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = ["systemd-nspawn", "-q", "--register=no", "--keep-unit", "--boot", "-D", str(root), "--console=pipe"]
    environ = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0"}
    with log.open("wb") as out:
        machine = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environ)
    try:
        yield machine
    finally:
        for pid in [*descendants(machine.pid), machine.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        machine.wait()
        ends_at = time.monotonic() + 10
        while shown_key() and time.monotonic() < ends_at:
            time.sleep(0.1)  # noqa: TID251 - the kernel ends its processes


def descendants(pid: int) -> list[int]:
    """Return a process's children, theirs first: the machine's init is the child of one of them."""
    children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*(one for child in children for one in descendants(child)), *children]


def shown_key() -> str:
    """Return the host key that answers, empty before one does."""
    scanned = subprocess.run(
        ["ssh-keyscan", "-T", "2", "-p", str(PORT), "-t", "ed25519", "127.0.0.1"],
        capture_output=True,
        text=True,
        check=False,
    )
    return next((line.split()[2] for line in scanned.stdout.splitlines() if not line.startswith("#")), "")


def boot(root: Path, number: int) -> str:
    """Boot once; return what happened in words, raising AssertionError when it is not what must happen."""
    came: list[tuple[str, str | None]] = []
    keys = generate_keypair("chisel")
    with an_api(came) as url:
        seed(root, number, url, keys)
        began, contact_s = time.monotonic(), None
        with booted(root, root.with_name(f"{root.name}.log")) as machine:
            while not came and time.monotonic() - began < BOOT_DEADLINE_S:
                assert machine.poll() is None, "the machine ended"
                key = "" if contact_s else shown_key()
                if key:
                    assert key == keys.public_openssh.split()[1], "another host key answered first"
                    contact_s = time.monotonic() - began
                time.sleep(0.2)  # noqa: TID251 - a machine that boots sends no event
    assert came[:1] == [(f"/v2/droplets/{FIRST_ID + number}", "Bearer dop_v1_second")], came
    assert contact_s is not None, "nobody answered"
    return f"our host key after {contact_s:.1f} s, the DELETE after {time.monotonic() - began:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--boots", type=int, default=20)
    chosen = parser.parse_args()
    build(chosen.root)
    if not CGROUPS.is_mount():
        CGROUPS.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "cgroup", "-o", "none,name=systemd", "cgroup", str(CGROUPS)], check=True)
    for number in range(chosen.boots):
        print(f"boot {number + 1}: {boot(chosen.root, number)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
