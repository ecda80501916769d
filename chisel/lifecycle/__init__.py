"""Bring droplets up, destroy them, account for every one."""

from chisel.lifecycle.engine import Lifecycle
from chisel.lifecycle.offer import Wish

__all__ = ["Lifecycle", "Wish"]
