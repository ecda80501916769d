"""Hold what the stand-in scripts do; lies beside their `bin` both in the package and on a sandbox droplet."""
