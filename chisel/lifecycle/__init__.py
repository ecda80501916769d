"""Bring droplets up, destroy them, account for every one."""

from chisel.lifecycle.engine import Lifecycle
from chisel.lifecycle.offer import Wish
from chisel.lifecycle.records import host_of

__all__ = ["Lifecycle", "Wish", "host_of"]
