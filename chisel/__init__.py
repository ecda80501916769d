"""Drive AMD GPU kernels on rented MI300X droplets."""

from __future__ import annotations

__version__ = "0.1.0"
