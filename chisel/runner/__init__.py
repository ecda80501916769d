"""Run commands on droplets: live output as events, exact exit statuses, verified ends, nothing ever lost."""

from chisel.runner.logs import end_run, runs_of, show_logs
from chisel.runner.order import Control, Order, Resumption, Terminal
from chisel.runner.pool import Limits, Source, belongs, run_one, run_pool
from chisel.runner.run import Run, describe, new_run_id
from chisel.runner.watch import CAPTURE_LIMIT_BYTES

__all__ = [
    "CAPTURE_LIMIT_BYTES",
    "Control",
    "Limits",
    "Order",
    "Resumption",
    "Run",
    "Source",
    "Terminal",
    "belongs",
    "describe",
    "end_run",
    "new_run_id",
    "run_one",
    "run_pool",
    "runs_of",
    "show_logs",
]
