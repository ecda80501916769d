"""Write what lets a droplet destroy itself: the watchdog's files, its timers, and the closed metadata service. Pure.

All of it is in the user data of the create call, so that it works from the first boot on, whatever becomes of the
laptop. Unit files as systemd 249 (Ubuntu 22.04) and newer read them; cloud-init's order of modules as of 22.1:
`bootcmd` and `write_files` come before packages are installed, `runcmd` after that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chisel.model import Secret

DIRECTORY = "/opt/chisel"
CONFIG = "/etc/chisel/self-destruct.json"
CURL_CONFIG = "/etc/chisel/self-destruct.curl"
MODULES = ("__init__.py", "env.py", "idlerule.py", "activity.py", "watchdog.py")
"""The node program's modules that the watchdog consists of."""

SLOWEST_TICK_S = 60
_TICKS_PER_LIMIT = 4
_ARM_AFTER_S = 20

_ARM = """\
#!/bin/sh
# Written by chisel: starts what destroys this droplet when its time is over. Bears repeating.
systemctl daemon-reload
for unit in chisel-metadata.service chisel-watchdog.timer chisel-last-resort.timer; do
  systemctl enable --now --no-block "$unit"
done
"""

# Root may still ask: cloud-init needs it, and so does the watchdog, to know which droplet this is.
_CLOSE_METADATA = """\
#!/bin/sh
# Written by chisel: only root reads this droplet's user data, and no container that has a network of its own.
address=169.254.169.254
if command -v nft >/dev/null 2>&1; then
  nft delete table inet chisel 2>/dev/null
  nft -f - <<RULES && exit 0
table inet chisel {
  chain output { type filter hook output priority 0; policy accept; ip daddr $address meta skuid != 0 reject; }
  chain forward { type filter hook forward priority 0; policy accept; ip daddr $address reject; }
}
RULES
fi
iptables -w -C OUTPUT -d $address -m owner ! --uid-owner 0 -j REJECT 2>/dev/null ||
  iptables -w -I OUTPUT -d $address -m owner ! --uid-owner 0 -j REJECT || exit 1
iptables -w -C FORWARD -d $address -j REJECT 2>/dev/null || iptables -w -I FORWARD -d $address -j REJECT
"""

# The watchdog needs Python; this needs sh and curl. `memory.json` changes with every tick of the watchdog.
_LAST_RESORT = f"""\
#!/bin/sh
# Written by chisel: destroys this droplet when its watchdog has not ticked for an hour, and nothing runs.
root="${{CHISEL_DROPLET_ROOT:-}}"
seen="$root/run/chisel"
mkdir -p "$seen"
now=$(cksum <"$root/var/lib/chisel/memory.json" 2>/dev/null)
for lock in "$root"/root/.chisel/runs/*/lock; do
  inode=$(stat -c %i "$lock" 2>/dev/null)
  if [ -n "$inode" ] && grep -q ":$inode " /proc/locks; then now="busy $(date +%s)"; fi
done
for busy in "$root"/sys/class/drm/card*/device/gpu_busy_percent; do
  if [ "$(cat "$busy" 2>/dev/null || echo 0)" -gt 0 ]; then now="busy $(date +%s)"; fi
done
if [ "$now" != "$(cat "$seen/last" 2>/dev/null)" ] || [ ! -e "$seen/count" ]; then
  printf %s "$now" >"$seen/last"; echo 0 >"$seen/count"; exit 0
fi
count=$(($(cat "$seen/count") + 1))
echo "$count" >"$seen/count"
[ "$count" -ge 6 ] || exit 0
id=$(cat "$root/var/lib/cloud/data/instance-id")
case "$id" in "" | *[!0-9]*) exit 1 ;; esac
bound=$(sed -n 's/.*"droplet_id": \\([0-9]*\\).*/\\1/p' "$root/var/lib/chisel/memory.json" 2>/dev/null)
[ "${{bound:-0}}" = 0 ] || [ "$bound" = "$id" ] || exit 1
echo "the watchdog is dead: droplet $id destroys itself"
url=$(sed -n 's/^# url = //p' "$root{CURL_CONFIG}")
exec curl -fsS -q --noproxy '*' -m 60 -K "$root{CURL_CONFIG}" -X DELETE "$url/v2/droplets/$id"
"""


@dataclass(frozen=True, slots=True)
class SelfDestruct:
    """What a droplet gets to destroy itself.

    `token` can only delete droplets, at `api_url`. After `idle_s` without a request (0: never), or at the age `ttl_s`
    (0: never), it goes; a command that runs is ended only with `ends_busy`. `attempt` is its create request's.
    `program` is the text of each of `MODULES` by its name.
    """

    token: Secret
    api_url: str
    idle_s: int
    ttl_s: int
    attempt: str
    program: Mapping[str, str] = field(repr=False)
    ends_busy: bool = False

    @property
    def tick_s(self) -> int:
        """Return the seconds between two looks: a minute, or a quarter of a limit shorter than four."""
        limits = [limit for limit in (self.idle_s, self.ttl_s) if limit]
        return max(1, min(SLOWEST_TICK_S, *(limit // _TICKS_PER_LIMIT for limit in limits)))


def files(wanted: SelfDestruct) -> list[dict[str, str]]:
    """Return the entries of `write_files`; those with the token are for root alone."""
    config = {
        "api_url": wanted.api_url,
        "token": wanted.token.reveal(),
        "idle_s": wanted.idle_s,
        "ttl_s": wanted.ttl_s,
        "ends_busy": wanted.ends_busy,
        "attempt": wanted.attempt,
    }
    quoted = wanted.token.reveal().replace("\\", "\\\\").replace('"', '\\"')
    curl = f'# url = {wanted.api_url}\nheader = "Authorization: Bearer {quoted}"\n'
    modules = [
        _file(f"{DIRECTORY}/chisel_node/{name}", "" if name == "__init__.py" else wanted.program[name], "0644")
        for name in MODULES
    ]
    tick = f"/usr/bin/python3 -m chisel_node.watchdog tick\nWorkingDirectory={DIRECTORY}"
    return [
        _file(CONFIG, json.dumps(config) + "\n", "0600"),
        _file(CURL_CONFIG, curl, "0600"),
        *modules,
        _file(f"{DIRECTORY}/arm", _ARM, "0755"),
        _file(f"{DIRECTORY}/close-metadata", _CLOSE_METADATA, "0755"),
        _file(f"{DIRECTORY}/last-resort", _LAST_RESORT, "0755"),
        _unit("chisel-watchdog.service", _service("Destroy this droplet when its time is over", tick)),
        _unit("chisel-watchdog.timer", _timer(wanted.tick_s, wanted.tick_s)),
        _unit("chisel-last-resort.service", _service("Look after the watchdog", f"{DIRECTORY}/last-resort")),
        _unit("chisel-last-resort.timer", _timer(600, 600)),
        _unit("chisel-metadata.service", _metadata_service()),
    ]


def boot_commands() -> list[Any]:
    """Return `bootcmd`: it comes before the files are written, so something waits until they are and arms then.

    Not a transient timer: `systemd-run --on-active` waits for its job even with `--no-block`, that job for the basic
    system, and that for cloud-init (systemd 252: the boot hangs). cloud-init's service kills only its main process.
    """
    later = f"setsid -f sh -c 'sleep {_ARM_AFTER_S}; exec sh {DIRECTORY}/arm'"
    return [["sh", "-c", f"{later} </dev/null >/dev/null 2>&1 || true"]]


def run_commands() -> list[Any]:
    """Return the first of `runcmd`: the same once more, should the other not have worked."""
    return [["sh", "-c", f"{DIRECTORY}/arm || true"]]


def _file(path: str, content: str, permissions: str) -> dict[str, str]:
    return {"path": path, "content": content, "permissions": permissions, "owner": "root:root"}


def _unit(name: str, text: str) -> dict[str, str]:
    return _file(f"/etc/systemd/system/{name}", "# Written by chisel.\n" + text, "0644")


def _service(description: str, command: str) -> str:
    return f"[Unit]\nDescription={description}\n\n[Service]\nType=oneshot\nTimeoutStartSec=120\nExecStart={command}\n"


def _timer(first_s: int, every_s: int) -> str:
    """Return a timer of the monotonic kind, which no clock that is set disturbs."""
    return (
        f"[Unit]\nDescription=Run it every {every_s} s\n\n[Timer]\nOnActiveSec={first_s}\nOnUnitInactiveSec={every_s}\n"
        "AccuracySec=1s\n\n[Install]\nWantedBy=timers.target\n"
    )


def _metadata_service() -> str:
    return (
        "[Unit]\nDescription=Close the metadata service to all but root\nAfter=nftables.service ufw.service\n\n"
        f"[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart={DIRECTORY}/close-metadata\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
