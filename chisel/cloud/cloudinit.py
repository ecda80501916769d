"""Write the user data that a new droplet's first boot executes (cloud-init). Pure.

Whatever runs on a droplet as root can read its user data for as long as it lives: nothing secret goes in but the host
key of the first boot, which is worth nothing once it has been replaced over the verified connection, and, where it is
wanted, the token that can only delete droplets.
"""

from __future__ import annotations

import json
import re
from typing import Any

from chisel.cloud.selfdestruct import SelfDestruct, boot_commands, files, run_commands

MAX_BYTES = 64 * 1024 - 1
PROFILE = "/etc/profile.d/chisel.sh"
SYSCTL = "/etc/sysctl.d/60-chisel.conf"
DEFAULT_GPU_ARCH = "gfx942"
APT_LOCK_TIMEOUT_S = 300
_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PUBLIC_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]+=*(?: [\x20-\x7e]*)?")

# Sourced by every command's environment, often, by sh, bash and zsh: each line must bear repeating.
# CHISEL_DROPLET_ROOT is what stands for `/` where a droplet is only a directory; a real droplet has none.
_PROFILE_TEXT = f"""\
# Written by chisel. What is set already stays as it is.
chisel_dir="${{CHISEL_DROPLET_ROOT:-}}/opt/rocm/bin"
case ":${{PATH:-}}:" in
  *":$chisel_dir:"*) ;;
  *) if [ -d "$chisel_dir" ]; then PATH="$chisel_dir${{PATH:+:$PATH}}"; fi ;;
esac
unset chisel_dir
export PATH
export CHISEL_GPU_ARCH="${{CHISEL_GPU_ARCH:-{DEFAULT_GPU_ARCH}}}"
# Caches live outside the working copy, which a sync makes equal to the local tree.
export CCACHE_DIR="${{CCACHE_DIR:-${{HOME:-/root}}/.cache/chisel/ccache}}"
export TRITON_CACHE_DIR="${{TRITON_CACHE_DIR:-${{HOME:-/root}}/.cache/chisel/triton}}"
export TORCH_EXTENSIONS_DIR="${{TORCH_EXTENSIONS_DIR:-${{HOME:-/root}}/.cache/chisel/torch-extensions}}"
export TORCHINDUCTOR_CACHE_DIR="${{TORCHINDUCTOR_CACHE_DIR:-${{HOME:-/root}}/.cache/chisel/torch-inductor}}"
"""
# 1 + 2: TCP fast open for clients and servers; 512 + 1024: without cookies, for every listener.
_SYSCTL_TEXT = "# Written by chisel.\nnet.ipv4.tcp_fastopen = 1539\n"


def user_data(
    *, host_private_key: str, host_public_key: str, hostname: str, self_destruct: SelfDestruct | None = None
) -> str:
    """Return the cloud-config of a droplet: JSON, which is valid YAML, after cloud-init's first line.

    The keys are one ed25519 pair in OpenSSH's forms; the droplet shows that host key and no other. With
    `self_destruct` it destroys itself when its time is over. Raises ValueError for anything else, and for a text beyond
    DigitalOcean's 64 KiB.
    """
    if not _HOSTNAME.fullmatch(hostname):
        raise ValueError(f"`{hostname}` is no host name")
    if not _PUBLIC_KEY.fullmatch(host_public_key.strip()):
        raise ValueError("the public host key is not an ed25519 key in OpenSSH's form")
    if not host_private_key.startswith("-----BEGIN OPENSSH PRIVATE KEY-----") or not host_private_key.isascii():
        raise ValueError("the private host key is not in OpenSSH's form")
    document = _document(host_private_key, host_public_key, hostname)
    if self_destruct is not None:
        document["write_files"] += files(self_destruct)
        document["bootcmd"] = boot_commands()
        document["runcmd"] = run_commands() + document["runcmd"]
    text = "#cloud-config\n" + json.dumps(document, indent=1) + "\n"
    if len(text) > MAX_BYTES:
        raise ValueError(f"user data of {len(text)} bytes is more than DigitalOcean takes ({MAX_BYTES})")
    return text


def _document(host_private_key: str, host_public_key: str, hostname: str) -> dict[str, Any]:
    return {
        "hostname": hostname,
        "disable_root": False,
        "ssh_pwauth": False,
        "ssh_deletekeys": True,
        "ssh_keys": {
            "ed25519_private": host_private_key.rstrip("\n") + "\n",
            "ed25519_public": host_public_key.strip(),
        },
        "apt": {"conf": f'DPkg::Lock::Timeout "{APT_LOCK_TIMEOUT_S}";\n'},
        "package_update": False,
        "packages": ["zstd", "build-essential"],
        "write_files": [
            {"path": PROFILE, "content": _PROFILE_TEXT, "permissions": "0644", "owner": "root:root"},
            {"path": SYSCTL, "content": _SYSCTL_TEXT, "permissions": "0644", "owner": "root:root"},
        ],
        "runcmd": [
            # An empty `ssh_genkeytypes` is not valid, so other host keys may have been made.
            ["sh", "-c", "rm -f /etc/ssh/ssh_host_rsa_key* /etc/ssh/ssh_host_ecdsa_key* /etc/ssh/ssh_host_dsa_key*"],
            ["sh", "-c", f"sysctl -q -p {SYSCTL} || true"],
        ],
    }
