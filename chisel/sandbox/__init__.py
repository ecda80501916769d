"""Embed a cloud: DigitalOcean's HTTP API and SSH droplets on this machine, at no cost."""
