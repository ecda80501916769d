"""Speak to the cloud that rents the droplets: its API, its cloud-init, its prices."""
