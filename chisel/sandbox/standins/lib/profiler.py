"""Play `rocprofv3`: run the application for real, collect what stand-in programs made up, write its file formats.

The command line is that of rocprofv3 1.1.0 (ROCm 7.2) or 0.6.0 (ROCm 6.4), read in ROCm/rocprofiler-sdk and
ROCm/rocm-systems (source/bin/rocprofv3.py, October 2024 and 2026).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from .collection import Collected, Process, collected
from .counters import Filter, counter_names
from .faults import Delivery, fault, spoiled
from .identity import (
    GENERATION,
    NOTICE,
    PROFILER_VERSION,
    ROCM_VERSION,
    die_like,
    leave_note,
    note,
    say,
)  # fmt: skip
from .motions import COLLECT
from .perfetto import write_process
from .rocpd import write_database
from .tracecsv import write_csv_files
from .tracejson import write_config, write_json

_HAS_ROCPD = GENERATION == "7.2"
_FORMATS = ("csv", "json", "pftrace", "otf2", *(("rocpd",) if _HAS_ROCPD else ()))
_TRACES = {
    "kernel_trace": {"kernel"},
    "memory_copy_trace": {"memory_copy"},
    "hip_trace": {"hip"},
    "hip_runtime_trace": {"hip"},
    "hsa_trace": {"hsa"},
    "hsa_core_trace": {"hsa"},
    "marker_trace": {"marker"},
    "runtime_trace": {"kernel", "memory_copy", "hip", "marker"},
    "sys_trace": {"kernel", "memory_copy", "hip", "hsa", "marker"},
}
_SILENT = (
    "hip_compiler_trace", "hsa_amd_trace", "hsa_image_trace", "hsa_finalizer_trace",
    "rccl_trace", "rocdecode_trace", "rocjpeg_trace", "scratch_memory_trace", "memory_allocation_trace",
    "kokkos_trace", "summary", "summary_per_domain", "mangled_kernels", "truncate_kernels", "kernel_rename",
    "disable_signal_handlers", "group_by_queue", "process_sync", "suppress_marker_preload", "output_config",
)  # fmt: skip
_SHORT = {"runtime_trace": "-r", "sys_trace": "-s", "summary": "-S", "mangled_kernels": "-M", "truncate_kernels": "-T"}
_TAKE_WORDS = (
    "summary_groups", "summary_output_file", "summary_units", "kernel_iteration_range", "perfetto_backend",
    "perfetto_buffer_size", "perfetto_buffer_fill_policy", "perfetto_shmem_size_hint", "preload", "collection_period",
    "collection_period_unit", "agent_index", "minimum_output_data", "extra_counters", "log_level",
)  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Profile what stands after `--`; exits as the application did, 2 for a wrong command line."""
    note("rocprofv3", NOTICE)
    own, application = _split(argv[1:])
    options = _parser().parse_args(own)
    if options.version:
        return _version()
    if not application:
        _parser().error("no application: rocprofv3 [options] -- application [arguments]")
    try:
        problem = _problem(options)
    except ValueError as error:
        problem = str(error)
    if problem:
        note("rocprofv3", f"Fatal error: {problem}")
        return 1
    return _profile(options, application)


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return list(words), []
    cut = list(words).index("--")
    return list(words[:cut]), list(words[cut + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("rocprofv3", description=f"Profile an application: {NOTICE}.", allow_abbrev=False)
    if _HAS_ROCPD:
        parser.add_argument("-v", "--version", action="store_true", help="print versions")
    parser.set_defaults(version=False)
    default = ["rocpd"] if _HAS_ROCPD else ["csv"]
    parser.add_argument("-f", "--output-format", nargs="+", choices=_FORMATS, type=str.lower, default=default)
    parser.add_argument("-d", "--output-directory", default=None, help="where files go (keys such as %%pid%% allowed)")
    parser.add_argument("-o", "--output-file", default=None, help="what file names begin with (keys allowed)")
    parser.add_argument("-i", "--input", default=None, help="accepted, and not read by the stand-in")
    parser.add_argument("--pmc", nargs="+", default=[], help="hardware counters, made up")
    parser.add_argument("--kernel-include-regex", default=None, help="whose counters are collected")
    parser.add_argument("--kernel-exclude-regex", default=None, help="whose counters are not")
    for name in _TAKE_WORDS:
        parser.add_argument("--" + name.replace("_", "-"), nargs="*", default=[])
    parser.add_argument("--stats", nargs="?", const=True, default=False, type=_boolean)
    for name in (*_TRACES, *_SILENT):
        names = [_SHORT[name]] if name in _SHORT else []
        flag = "--" + name.replace("_", "-")
        parser.add_argument(*names, flag, nargs="?", const=True, default=False, type=_boolean)
    return parser


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "on", "true", "yes", "y", "t"):
        return True
    if text.lower() in ("0", "off", "false", "no", "n", "f"):
        return False
    raise argparse.ArgumentTypeError(f"invalid truth value {text}")


def _version() -> int:
    system = platform.uname()
    rows = {
        "version": PROFILER_VERSION,
        "git_revision": f"none ({NOTICE})",
        "library_arch": f"{system.machine}-linux-gnu",
        "system_name": system.system,
        "system_processor": system.machine,
        "rocm_version": ROCM_VERSION,
    }
    for name, value in rows.items():
        say(f"{name:>22}: {value}")
    return 0


def _problem(options: argparse.Namespace) -> str | None:
    fault()
    counter_names(options.pmc)
    for expression in (options.kernel_include_regex, options.kernel_exclude_regex):
        try:
            re.compile(expression or "")
        except re.error as error:
            return f"bad regular expression: {error}"
    if options.stats and not _wanted(options):
        return "No tracing options were enabled for --stats option"
    return "the stand-in writes no otf2" if "otf2" in options.output_format else None


def _wanted(options: argparse.Namespace) -> set[str]:
    wanted: set[str] = set()
    for name, domains in _TRACES.items():
        if getattr(options, name):
            wanted |= domains
    return wanted | {name for name in _SILENT if name.endswith("_trace") and getattr(options, name)}


def _profile(options: argparse.Namespace, application: list[str]) -> int:
    base = os.path.join(os.environ.get("ROCPROF_TMPDIR") or os.getcwd(), ".rocprofv3")
    os.makedirs(base, exist_ok=True)
    directory = tempfile.mkdtemp(prefix=f"{os.getppid()}-{os.getpid()}-", dir=base)
    delivery = Delivery(fault())
    try:
        began_ns = time.monotonic_ns()
        pid, status = _run(application, _environment(options, directory), delivery)
        if pid is not None and delivery.name != "no-files":
            for found in collected(directory) or [_empty(pid, application, began_ns)]:
                _write(options, spoiled(found, delivery.name), directory, delivery)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        _remove_if_empty(base)
    return status if status >= 0 else die_like(-status)


def _remove_if_empty(directory: str) -> None:
    try:
        os.rmdir(directory)
    except OSError:
        return


def _environment(options: argparse.Namespace, directory: str) -> dict[str, str]:
    chosen = {"ROCPROF_" + name.upper(): "1" for name in (*_TRACES, *_SILENT, "stats") if getattr(options, name)}
    formats = ",".join(options.output_format)
    return {**os.environ, **chosen, "ROCPROF_OUTPUT_FORMAT": formats, COLLECT: directory}


def _run(application: list[str], environment: dict[str, str], delivery: Delivery) -> tuple[int | None, int]:
    """Run the application and wait; returns its pid and status, negative for the signal that ended it.

    SIGINT and SIGTERM go on to it and are its to answer: the results are written when it has ended.
    """
    handled = {n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN}
    # Blocked until the child is known: a signal before that would be lost, or end the profiler without its results.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    try:
        process = subprocess.Popen(
            application, env=environment, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before)
        )
    except OSError as error:
        note("rocprofv3", f"{application[0]}: {error.strerror}")
        return None, 1
    pass_on = _passing_on(process, delivery)
    for number in handled:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process.pid, process.wait()


def _passing_on(process: subprocess.Popen[bytes], delivery: Delivery) -> Callable[[int, object], None]:
    def pass_on(number: int, _frame: object) -> None:
        delivery.was_interrupted = True
        process.send_signal(number)

    return pass_on


def _empty(pid: int, application: list[str], began_ns: int) -> Collected:
    environment = dict(os.environ)
    return Collected(Process(pid, os.getpid(), application, environment, began_ns, time.monotonic_ns()))


def _write(options: argparse.Namespace, found: Collected, directory: str, delivery: Delivery) -> None:
    """Write one process's files in the temporary directory, then bring them to where they belong."""
    place, name = os.path.split(_prefix(options, found.process))
    staged = os.path.join(directory, f"staged-{found.process.pid}")
    os.makedirs(staged)
    leave_note(staged, "rocprofv3")
    prefix = os.path.join(staged, name)
    wanted, counters = _wanted(options), counter_names(options.pmc)
    takes = Filter(options.kernel_include_regex, options.kernel_exclude_regex)
    if "rocpd" in options.output_format:
        write_database(f"{prefix}_results.db", found, wanted, counters, takes)
        note("rocprofv3", f"Opened result file: {os.path.join(place, name)}_results.db ({NOTICE})")
    if "csv" in options.output_format:
        write_csv_files(prefix, found, traces=wanted, has_stats=options.stats, counters=counters, takes=takes)
    if "json" in options.output_format:
        write_json(f"{prefix}_results.json", found, wanted, counters, takes)
    if "pftrace" in options.output_format:
        write_process(f"{prefix}_results.pftrace", found, wanted)
    if options.output_config:
        write_config(f"{prefix}_config.json", found)
    delivery.bring(staged, place)


def _prefix(options: argparse.Namespace, process: Process) -> str:
    """Compute where a process's files go: `-o` drops the default's host name level, `-d` alone keeps it."""
    name = options.output_file or os.path.join("%hostname%", "%pid%")
    path = os.path.join(options.output_directory or "%cwd%", name)
    keys = {
        "pid": str(process.pid),
        "ppid": str(process.ppid),
        "hostname": platform.node(),
        "cwd": os.getcwd(),
        "nid": "0",
        "rank": process.environment.get("OMPI_COMM_WORLD_RANK", "0"),
        "size": process.environment.get("OMPI_COMM_WORLD_SIZE", "1"),
        "argt": os.path.basename(process.command[0]),
    }
    path = re.sub(r"%env\{(\w+)\}%|\$ENV\{(\w+)\}", lambda m: process.environment.get(m[1] or m[2], ""), path)
    return os.path.abspath(re.sub(r"%(\w+)%", lambda match: keys.get(match[1], match[0]), path))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
