"""Give every test the anyio back end, a check for a blocked event loop, and real parts where they are."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

pytest_plugins = ["chisel.sandbox.pytest"]

PROJECT = Path(__file__).resolve().parent.parent
SHARED = PROJECT.parent / "shared"
LONGEST_FIRST = (
    *("e2e/test_loop.py", "e2e/test_sync.py", "e2e/test_run.py", "agent/test_reaper.py", "agent/test_warm.py"),
    *("lifecycle/test_worst_days.py", "node/test_visitors.py", "e2e/test_self_destruct.py", "readme/test_readme.py"),
    *("lifecycle/test_crash_walk.py", "profile/test_engine.py", "e2e/test_profile.py", "profile/test_compare.py"),
    *("sync/test_pull_changes.py", "e2e/test_transfers.py", "cli/test_cli.py", "agent/test_life.py"),
    *("node/test_telemetry.py", "node/test_supervisor.py", "sync/test_relay.py", "e2e/test_tokens.py"),
    *("sync/test_sync.py", "lifecycle/test_up_and_down.py", "e2e/test_relay.py", "agent/test_clocks.py"),
    *("profile/test_viewer_in_chromium.py", "sync/test_push.py", "e2e/test_broken_transfers.py"),
    *("sync/test_upload_relay.py", "e2e/test_projects.py", "sync/test_torture.py", "e2e/test_cuts.py"),
    *("agent/test_kills.py", "ssh/test_connector.py", "node/test_watchdog.py", "e2e/test_smoke.py"),
)
"""The files that take 20 s and more of a worker's time."""
MUST_HAVE_REAL_PARTS = os.environ.get("CHISEL_TEST_REAL_PARTS") == "required"


def pytest_configure() -> None:
    """Take SIGINT even when started as a shell's background job, which ignores it, and all children with it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture
def anyio_backend() -> str:
    """Choose asyncio; its debug mode, which takes as much time again, is a variable's: PYTHONASYNCIODEBUG=1."""
    return "asyncio"


@pytest.fixture(autouse=True)
def no_blocked_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which chisel itself blocks the event loop (disk reads of imports and state included)."""
    if request.node.get_closest_marker("blocking_allowed") or "anyio_backend" not in request.fixturenames:
        yield
        return
    with blockbuster_ctx("chisel", excluded_modules=["chisel.sandbox"]) as guard:
        _permit_what_is_not_ours(guard)
        yield


def _permit_what_is_not_ours(guard: BlockBuster) -> None:
    """Let asyncssh read its key files and the import system its modules: neither is a wait on a peer."""
    for function in guard.functions.values():
        function.can_block_in(
            "<frozen importlib._bootstrap_external>", {"get_data", "path_stats", "_path_stat", "_fill_cache"}
        )
        function.can_block_in("asyncssh", {"read_file", "import_known_hosts"})


def _missing(part: str) -> str | None:
    """Say why a real part is not here, None when it is."""
    if part == "shared":
        return None if SHARED.is_dir() else "the shared folder is not beside the project"
    if part == "root":
        return None if os.geteuid() == 0 else "needs root"
    if part == "git":
        return None if shutil.which("git") else "git is not installed"
    if part == "python3.10":
        return None if python310() else "no Python 3.10 on this machine"
    path = shutil.which(part) or shutil.which(part, path="/usr/sbin:/sbin:/usr/local/sbin")
    return None if path else f"{part} is not installed"


def python310() -> str | None:
    """Find the oldest Python that the node program must run on."""
    found = os.environ.get("CHISEL_TEST_PYTHON310") or shutil.which("python3.10")
    if sys.version_info[:2] == (3, 10):
        return sys.executable
    starts = found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0
    return found if starts else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: with several workers the last ones to end decide."""
    ranks = {str(PROJECT / "tests" / name): rank for rank, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: ranks.get(str(item.path), len(ranks)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("real_part"):
        for part in marker.args:
            reason = _missing(part)
            optional = bool(marker.kwargs.get("optional"))
            if reason and MUST_HAVE_REAL_PARTS and not optional:
                pytest.fail(f"CI must have this part: {reason}", pytrace=False)
            elif reason:
                pytest.skip(reason)


@pytest.fixture
def shared() -> Path:
    return SHARED
