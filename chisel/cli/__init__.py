"""Read the command line, call the client, leave with the right status."""
