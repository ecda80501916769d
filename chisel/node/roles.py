"""Name the roles of the node program and the module each lives in."""

from __future__ import annotations

MODULES = {
    "supervise": "supervisor",
    "receive": "receiver",
    "send": "sender",
    "store": "store",
    "probe": "probe",
    "attach": "attach",
    "logs": "logs",
    "kill": "kill",
    "status": "status",
    "aggregate": "aggregate",
    "hostkey": "hostkey",
    "limits": "limits",
    "results": "results",
    "mend": "doctor",
    "telemetry": "telemetry",
}

# Looking at a droplet is no use of it: these do not push its idleness away.
PASSIVE = frozenset({"probe", "status", "hostkey", "results", "mend", "logs"})

# These read something ahead when they are started before they are asked (`prepare` of their module).
PREPARED = frozenset({"receive", "supervise"})
