"""Drive AMD GPU kernels on rented MI300X droplets: the public async API.

Names resolve on first use, so that `import chisel` loads neither asyncssh nor pydo nor rich.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it for true; to import `typing` takes as long as half a Python start
if TYPE_CHECKING:
    from typing import Any

    from chisel.client import Client, Pool, open
    from chisel.errors import (
        ChiselError,
        CloudError,
        ConfigError,
        GuardrailError,
        HostUnreachable,
        StateError,
        UsageError,
    )
    from chisel.figures import ProfileReport
    from chisel.model import PullResult, PushResult, RunResult, SyncResult

__version__ = "0.1.0"

__all__ = [
    "ChiselError",
    "Client",
    "CloudError",
    "ConfigError",
    "GuardrailError",
    "HostUnreachable",
    "Pool",
    "ProfileReport",
    "PullResult",
    "PushResult",
    "RunResult",
    "StateError",
    "SyncResult",
    "UsageError",
    "__version__",
    "open",
]

_HOMES = {
    "Client": "client",
    "Pool": "client",
    "open": "client",
    "ChiselError": "errors",
    "CloudError": "errors",
    "ConfigError": "errors",
    "GuardrailError": "errors",
    "HostUnreachable": "errors",
    "StateError": "errors",
    "UsageError": "errors",
    "ProfileReport": "figures",
    "PullResult": "model",
    "PushResult": "model",
    "RunResult": "model",
    "SyncResult": "model",
}


def __getattr__(name: str) -> Any:
    """Import the module a public name lives in, the first time the name is used."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"chisel.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'chisel' has no attribute {name!r}")
