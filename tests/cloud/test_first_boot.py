"""Let cloud-init itself execute the user data, on a throw-away copy of this machine's files, and look at what it did.

Root's own: namespaces of its own for mounts, host name, processes and network keep this machine as it was.
"""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chisel.cloud.cloudinit import PROFILE, user_data
from chisel.cloud.selfdestruct import MODULES, SelfDestruct
from chisel.model import Secret
from chisel.ssh.keys import generate_keypair
from chisel.ssh.program import read_modules

pytestmark = [pytest.mark.real_part("cloud-init", "root"), pytest.mark.timeout(180)]

KEYS = generate_keypair("chisel")
TOKEN = "dop_v1_second"
# The modules of Ubuntu's own cloud.cfg that read what chisel writes, in its order; packages need a network.
CLOUD_CFG = {
    "datasource_list": ["NoCloud"],
    "datasource": {"NoCloud": {"fs_label": None}},
    "network": {"config": "disabled"},
    "disable_root": False,
    "cloud_init_modules": ["bootcmd", "write_files", "update_hostname", "ssh"],
    "cloud_config_modules": ["runcmd"],
    "cloud_final_modules": ["scripts_user"],
    "system_info": {
        "distro": "debian",
        "paths": {"cloud_dir": "/var/lib/cloud", "templates_dir": "/etc/cloud/templates"},
    },
}
# What systemd would be asked is written down instead: there is none in there.
FAKE = '#!/bin/sh\necho "$(basename "$0") $*" >>/asked\n'
STAGES = (
    "cloud-init init --local && cloud-init init && cloud-init modules --mode=config && cloud-init modules --mode=final"
)


@dataclass
class Machine:
    """A copy of this machine's files, in an overlay that goes with the test; what changes there is in `changed`."""

    changed: Path
    directory: Path

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.changed / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        work, merged = self.directory / "work", self.directory / "merged"
        script = (
            f"mount -t overlay overlay -o lowerdir=/,upperdir={self.changed},workdir={work} {merged} && "
            f"mount -t proc proc {merged}/proc && mount -t tmpfs tmpfs {merged}/run && "
            f"mount -t devtmpfs dev {merged}/dev 2>/dev/null || mount --rbind /dev {merged}/dev; "
            f"exec chroot {merged} /bin/sh -c '{line}'"
        )
        return subprocess.run(
            ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--fork", "sh", "-c", script],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def read(self, path: str) -> str:
        return (self.changed / path.lstrip("/")).read_text()

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.changed / path.lstrip("/")).stat().st_mode)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    # An overlay cannot lie on an overlay, as a container's own root often is: a tmpfs holds what changes.
    directory = tmp_path / "machine"
    directory.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount")
    for name in ("changed", "work", "merged"):
        (directory / name).mkdir()
    found = Machine(directory / "changed", directory)
    try:
        if found.run("true").returncode != 0:
            pytest.skip("this machine lets nobody make namespaces with an overlay")
        yield found
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=False)
        shutil.rmtree(directory, ignore_errors=True)


def test_cloud_init_does_what_the_user_data_says(machine: Machine) -> None:
    armed = SelfDestruct(
        token=Secret(TOKEN), api_url="https://api.digitalocean.com", idle_s=900, ttl_s=0, attempt="ab" * 8,
        program=read_modules(MODULES),
    )  # fmt: skip
    text = user_data(
        host_private_key=KEYS.private_openssh,
        host_public_key=KEYS.public_openssh,
        hostname="bench-1",
        self_destruct=armed,
    )
    machine.put("/etc/cloud/cloud.cfg", json.dumps(CLOUD_CFG))
    machine.put("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: 512345678\nlocal-hostname: bench-1\n")
    machine.put("/var/lib/cloud/seed/nocloud/user-data", text)
    for name in ("systemctl", "setsid", "sysctl"):
        machine.put(f"/usr/local/sbin/{name}", FAKE, 0o755)
    ran = machine.run(f"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; {STAGES}; cat /asked")
    assert ran.returncode == 0, ran.stdout + ran.stderr

    assert machine.read("/etc/ssh/ssh_host_ed25519_key").strip() == KEYS.private_openssh.strip()
    assert machine.mode("/etc/ssh/ssh_host_ed25519_key") == 0o600
    assert machine.read("/etc/ssh/ssh_host_ed25519_key.pub").split()[:2] == KEYS.public_openssh.split()[:2]
    others = [path.name for path in (machine.changed / "etc/ssh").glob("ssh_host_*_key") if path.is_file()]
    assert others == ["ssh_host_ed25519_key"], "no other key is shown"
    assert "CHISEL_GPU_ARCH" in machine.read(PROFILE)
    assert machine.mode("/etc/chisel/self-destruct.json") == 0o600
    assert json.loads(machine.read("/etc/chisel/self-destruct.json"))["idle_s"] == 900
    assert machine.mode("/opt/chisel/arm") == 0o755
    assert "OnUnitInactiveSec=60" in machine.read("/etc/systemd/system/chisel-watchdog.timer")
    assert machine.read("/var/lib/cloud/data/instance-id").strip() == "512345678"

    asked = machine.read("/asked").splitlines()
    assert asked[0] == "setsid -f sh -c sleep 20; exec sh /opt/chisel/arm"
    assert asked.index("systemctl daemon-reload") < asked.index(
        "systemctl enable --now --no-block chisel-watchdog.timer"
    )
    assert any(line.startswith("sysctl -q -p") for line in asked)

    with_token = [
        path for path in machine.changed.rglob("*")
        if path.is_file() and not path.is_symlink() and TOKEN.encode() in path.read_bytes()
        and "seed" not in path.parts
    ]  # fmt: skip
    assert with_token
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in with_token} == {0}, with_token

    ticked = machine.run("cd /opt/chisel && python3 -m chisel_node.watchdog tick; cat /var/lib/chisel/state.json")
    assert json.loads(ticked.stdout)["state"] == "on", ticked.stdout + ticked.stderr
