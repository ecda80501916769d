"""Make a droplet's working copy equal to a local tree, and bring artifacts back, over one SSH session each."""
