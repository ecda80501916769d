"""Remember droplets, intents and projects between commands: one JSON file, many processes at once.

The file is a cache: the cloud is the truth, and losing it costs time. It never holds a token. Everything of a cloud is
kept under its API's address, so that a sandbox and the real cloud never mix.
"""

from chisel.state.form import decode, encode
from chisel.state.records import VERSION, CloudState, DropletRecord, Intent, ProjectState, State, host_of
from chisel.state.store import StateStore

__all__ = [
    "VERSION",
    "CloudState",
    "DropletRecord",
    "Intent",
    "ProjectState",
    "State",
    "StateStore",
    "decode",
    "encode",
    "host_of",
]
