"""Run on a droplet: supervisor, receiver, sender, probe, registry, aggregator. Standard library only, Python 3.10."""
