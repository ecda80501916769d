"""Keep what is slow to make between commands: a background process of one user, and the thin client that calls it."""
