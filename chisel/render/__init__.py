"""Turn events into text: live on a terminal, plain in a pipe, JSON lines for a program."""

from chisel.render.output import open_sink

__all__ = ["open_sink"]
