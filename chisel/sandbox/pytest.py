"""Give a test a cloud of its own: `pytest_plugins = ["chisel.sandbox.pytest"]` in a conftest.py.

The fixture `chisel_sandbox` starts an embedded cloud in a process of its own and points chisel at it: it sets
CHISEL_DO_API_URL, CHISEL_DO_TOKEN, XDG_CONFIG_HOME and XDG_CACHE_HOME, and CHISEL_AGENT=off, so that no process stays.

    @pytest.mark.chisel_sandbox(faults=["create-then-504"], list_lag_s=3)
    def test_my_sweep_survives_a_bad_gateway(chisel_sandbox):
        subprocess.run([sys.executable, "sweep.py"], check=True)
        assert chisel_sandbox.alive == []
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 20.0
_LOOK_AGAIN_S = 0.02
_ANSWER_TIMEOUT_S = 10.0
_MARK = "chisel_sandbox(droplets='asyncssh', faults=(), seed=0, **knobs): how the cloud of `chisel_sandbox` behaves"


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A running cloud, governed over HTTP; see `chisel.sandbox.control` for what the calls mean."""

    url: str
    token: str

    @property
    def environ(self) -> dict[str, str]:
        """Return what points chisel at this cloud."""
        return {"CHISEL_DO_API_URL": self.url, "CHISEL_DO_TOKEN": self.token}

    @property
    def droplets(self) -> list[dict[str, Any]]:
        """Return every droplet there ever was: id, name, tags, region, size, is_alive, usd."""
        found: list[dict[str, Any]] = self._call("GET", "droplets")["droplets"]
        return found

    @property
    def alive(self) -> list[str]:
        """Return the names of the droplets that exist and bill, in order."""
        return sorted(str(one["name"]) for one in self.droplets if one["is_alive"])

    @property
    def usd(self) -> Decimal:
        """Return what everything has cost so far, exactly."""
        return Decimal(self._call("GET", "bill")["usd_exactly"])

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Return every request of the API so far: method and path."""
        return [(method, path) for method, path in self._call("GET", "requests")["requests"]]

    def turn(self, **knobs: Any) -> None:
        """Turn knobs (see `chisel.sandbox.cloud.Knobs`)."""
        self._call("POST", "knobs", knobs)

    def fault(self, *faults: str) -> None:
        """Let requests fail from now on (see `chisel.sandbox.faults`)."""
        self._call("POST", "faults", {"add": faults})

    def behave(self) -> None:
        """End all faults."""
        self._call("POST", "faults", {"clear": True})

    def advance(self, seconds: float) -> None:
        """Move the cloud's clock, and its bill, forward."""
        self._call("POST", "clock", {"advance_s": seconds})

    def make_token(self, *scopes: str) -> str:
        """Return a new token that may do no more than these scopes."""
        return str(self._call("POST", "tokens", {"scopes": scopes})["token"])

    def revoke(self, token: str) -> None:
        """Let a token open nothing from now on."""
        self._call("POST", "tokens", {"revoke": token})

    def _call(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        request = Request(f"{self.url}/sandbox/{name}", data, headers, method=method)
        with build_opener(ProxyHandler({})).open(request, timeout=_ANSWER_TIMEOUT_S) as answer:
            return json.loads(answer.read())


@contextmanager
def sandbox(
    directory: Path, *, droplets: str = "asyncssh", faults: Sequence[str] = (), seed: int = 0, **knobs: Any
) -> Iterator[Sandbox]:
    """Run a cloud in a process of its own, its droplets below `directory`, until the block ends.

    Raises RuntimeError with the server's own words when it does not start.
    """
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "chisel.sandbox", "serve", "--directory", str(directory), "--droplets", droplets]
    command += [f"--fault={fault}" for fault in faults]
    command += [f"--knob={name}={json.dumps(value)}" for name, value in knobs.items()]
    log = directory / "log"
    with log.open("wb") as out:
        server = subprocess.Popen([*command, f"--seed={seed}"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield _endpoint(directory / "endpoint.json", server, log)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _endpoint(file: Path, server: subprocess.Popen[bytes], log: Path) -> Sandbox:
    """Wait until the server says where it is: it renames the file into place."""
    ends_at = time.monotonic() + START_DEADLINE_S
    while not file.exists():
        if server.poll() is not None or time.monotonic() > ends_at:
            raise RuntimeError(f"the sandbox did not start: {log.read_text(errors='replace')}")
        time.sleep(_LOOK_AGAIN_S)
    found = json.loads(file.read_bytes())
    return Sandbox(url=found["url"], token=found["token"])


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _MARK)


@pytest.fixture
def chisel_sandbox(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Sandbox]:
    """Give the test an embedded cloud and point chisel at it; the marker `chisel_sandbox` says how it behaves."""
    mark = request.node.get_closest_marker("chisel_sandbox")
    with sandbox(tmp_path / "chisel-sandbox", **(mark.kwargs if mark else {})) as running:
        for name, value in running.environ.items():
            monkeypatch.setenv(name, value)
        for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            monkeypatch.setenv(name, str(tmp_path / name.lower()))
        monkeypatch.setenv("CHISEL_AGENT", "off")
        yield running
