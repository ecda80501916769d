"""User data: valid for cloud-init's own checker, harmless when sourced, nothing secret but the first host key."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from chisel.cloud.cloudinit import MAX_BYTES, PROFILE, user_data
from chisel.ssh.keys import generate_keypair

KEYS = generate_keypair("chisel")


def made(hostname: str = "bench-1") -> str:
    return user_data(host_private_key=KEYS.private_openssh, host_public_key=KEYS.public_openssh, hostname=hostname)


def profile() -> str:
    files = json.loads(made().partition("\n")[2])["write_files"]
    return next(str(file["content"]) for file in files if file["path"] == PROFILE)


def test_it_is_json_behind_the_line_that_cloud_init_wants() -> None:
    first, _, rest = made().partition("\n")
    assert first == "#cloud-config"
    document = json.loads(rest)
    assert document["ssh_keys"]["ed25519_private"] == KEYS.private_openssh.rstrip("\n") + "\n"
    assert document["ssh_keys"]["ed25519_public"] == KEYS.public_openssh.strip()
    assert document["ssh_deletekeys"] is True
    assert len(made()) < MAX_BYTES / 8


@pytest.mark.real_part("cloud-init")
def test_cloud_init_itself_finds_it_valid(tmp_path: Path) -> None:
    file = tmp_path / "user-data.yaml"
    file.write_text(made())
    checked = subprocess.run(
        ["cloud-init", "schema", "--config-file", str(file)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    file.write_text(made().replace('"ssh_pwauth": false', '"ssh_pwauth": [1]'))
    wrong = subprocess.run(["cloud-init", "schema", "--config-file", str(file)], capture_output=True, check=False)
    assert wrong.returncode != 0, "the checker does check"


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_profile_bears_being_sourced_often_and_keeps_what_is_set(tmp_path: Path, shell: str) -> None:
    (tmp_path / "opt/rocm/bin").mkdir(parents=True)
    file = tmp_path / "profile.sh"
    file.write_text(profile())
    line = f'set -eu; . "{file}"; . "{file}"; echo "$PATH"; echo "$CHISEL_GPU_ARCH $CCACHE_DIR"'
    clean = {"PATH": "/usr/bin:/bin", "CHISEL_DROPLET_ROOT": str(tmp_path), "HOME": "/h"}
    ran = subprocess.run([shell, "-c", line], env=clean, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [f"{tmp_path}/opt/rocm/bin:/usr/bin:/bin", "gfx942 /h/.cache/chisel/ccache"]
    mine = {**clean, "CHISEL_GPU_ARCH": "gfx950", "CCACHE_DIR": "/c"}
    ran = subprocess.run([shell, "-c", line], env=mine, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[1] == "gfx950 /c"


@pytest.mark.parametrize(
    "wrong",
    [
        {"hostname": "a b"},
        {"hostname": ""},
        {"hostname": "-a"},
        {"host_public_key": "ssh-rsa AAAA"},
        {"host_public_key": f"{KEYS.public_openssh.strip()}\nssh-ed25519 AAAA"},
        {"host_private_key": "-----BEGIN RSA PRIVATE KEY-----"},
    ],
)
def test_what_is_no_host_name_and_no_key_is_refused(wrong: dict[str, str]) -> None:
    right = {"host_private_key": KEYS.private_openssh, "host_public_key": KEYS.public_openssh, "hostname": "a"}
    with pytest.raises(ValueError, match=r"host|key"):
        user_data(**{**right, **wrong})
