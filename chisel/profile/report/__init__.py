"""Draw a profile as one HTML file that needs nothing else."""

from chisel.profile.report.page import report_html

__all__ = ["report_html"]
