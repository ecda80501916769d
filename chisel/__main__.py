"""Make `python -m chisel` the same as `chisel`."""

from chisel.entry import main

main()
