"""Reach droplets over SSH: keys, pinned host keys, warm connections, the node program, single files."""
