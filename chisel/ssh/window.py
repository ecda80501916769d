"""Keep asyncssh's receive window honest: room is given back for what was delivered, not for what merely arrived.

asyncssh 2.24.1 opens the whole window again whenever it delivers a piece and less than half of the window is left, even
while megabytes that arrived before still wait for a paused reader: each pause and resume lets another window in, and
memory grows without end (`SSHChannel._deliver_data`; https://github.com/ronf/asyncssh/issues/664). Pinned to the
versions it was read in; to be dropped when upstream counts what is delivered.
"""

from __future__ import annotations

from typing import Any

import asyncssh
from asyncssh.constants import MSG_CHANNEL_WINDOW_ADJUST
from asyncssh.packet import UInt32

CORRECTED = frozenset({"2.24.1"})


def correct(channel: asyncssh.SSHClientChannel[bytes]) -> bool:
    """Count deliveries on this channel from now on; False, and nothing done, for a version that was not read."""
    if asyncssh.__version__ not in CORRECTED:
        return False
    inner: Any = channel
    delivered = 0

    def deliver(data: bytes, datatype: asyncssh.DataType) -> None:
        nonlocal delivered
        delivered += len(data)
        if delivered >= inner._init_recv_window // 2 and inner._send_state not in {"close_pending", "closed"}:
            inner.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(delivered))
            inner._recv_window += delivered
            delivered = 0
        if inner._session is not None:
            inner._session.data_received(data, datatype)

    inner._deliver_data = deliver
    return True


def widen(channel: asyncssh.SSHClientChannel[bytes], window: int) -> None:
    """Make the receive window of an open channel larger, where this version was read."""
    inner: Any = channel
    more = window - inner._init_recv_window if asyncssh.__version__ in CORRECTED else 0
    if more > 0:
        inner.send_packet(MSG_CHANNEL_WINDOW_ADJUST, UInt32(more))
        inner._recv_window += more
        inner._init_recv_window = window
