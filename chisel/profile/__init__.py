"""Run commands under a droplet's profiler, rank their kernels, bring the files."""
