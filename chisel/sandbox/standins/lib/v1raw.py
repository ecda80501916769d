"""Write the raw text that rocprof v1 leaves in its data directory, from which its results are made."""

from __future__ import annotations

import os

from .collection import Collected
from .v1ops import operations


def write_raw(directory: str, found: list[Collected], traces: set[str]) -> None:
    """Write `<pid>_hcc_ops_trace.txt` and its like: one line a record, in ns."""
    for one in found:
        pid = one.process.pid
        with open(os.path.join(directory, f"{pid}_begin_ts_file.txt"), "w", encoding="ascii") as file:
            file.write(f"{one.process.start_ns}\n")
        if traces & {"hip", "hsa"}:
            with open(os.path.join(directory, f"{pid}_hcc_ops_trace.txt"), "w", encoding="utf-8") as file:
                for op in operations(one):
                    span = f"{op.start_ns}:{op.end_ns} {op.gpu}:{op.queue}"
                    file.write(f"{span} {op.name.replace(':', ';')}:{op.correlation}:{pid}\n")
        for trace, kind in (("hip", "a"), ("hsa", "h")):
            if trace in traces:
                with open(os.path.join(directory, f"{pid}_{trace}_api_trace.txt"), "w", encoding="utf-8") as file:
                    for record in one.records(kind):
                        file.write(f"{record.start_ns}:{record.end_ns} {pid}:{pid} {record.what}( ) ")
                        file.write(f":{record.correlation}\n")
