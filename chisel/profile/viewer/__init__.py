"""Show a trace in the browser: a page on loopback that hands it to the Perfetto UI."""

from chisel.profile.viewer.server import View, serving
from chisel.profile.viewer.ui import Ui, find_ui

__all__ = ["Ui", "View", "find_ui", "serving"]
