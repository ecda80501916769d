from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from chisel.agent import wire
from chisel.sandbox.pytest import Sandbox, sandbox
from tests.e2e.test_run import kind_of_droplet
from tests.support import User, until

_ANSWER_S = 20.0


@dataclass
class WarmUser(User):
    """Somebody whose commands the agent runs."""

    def environ(self, **changed: str) -> dict[str, str]:
        return super().environ(**{"CHISEL_AGENT": "on", **changed})

    @property
    def place(self) -> tuple[Path, Path]:
        """Return the agent's directory and socket."""
        directory, path = wire.place_of(encoded(self.environ()))
        return Path(os.fsdecode(directory)), Path(os.fsdecode(path))

    def facts(self) -> dict[str, object] | None:
        """Ask the agent about itself."""
        greeted = wire.greeted(encoded(self.environ()), _ANSWER_S)
        if greeted is None:
            return None
        connection, _ = greeted
        try:
            connection.sendall(wire.frame(wire.STATUS))
            found = wire.receive(connection)
        except OSError:
            return None
        finally:
            connection.close()
        return json.loads(found[1]) if found is not None else None

    def is_warm(self) -> bool:
        facts = self.facts()
        return facts is not None and bool(facts["connected"])

    @property
    def pid(self) -> int:
        facts = self.facts()
        assert facts is not None, "there is no agent"
        return int(str(facts["pid"]))

    @property
    def served(self) -> int:
        facts = self.facts()
        return int(str(facts["served"])) if facts is not None else 0

    def warm_up(self) -> None:
        if not self.is_warm():
            self.does("run", "--on", "1", "true")
            until(self.is_warm, what="the agent", deadline_s=30)

    def end_agent(self) -> None:
        facts = self.facts()
        if facts is not None:
            with suppress(ProcessLookupError):
                os.kill(int(str(facts["pid"])), signal.SIGKILL)


def encoded(environ: dict[str, str]) -> dict[bytes, bytes]:
    return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}


@pytest.fixture(scope="package")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    place = tmp_path_factory.mktemp("agents")
    with sandbox(place, droplets=kind_of_droplet(), per_minute=10**6, per_hour=10**6) as running:
        yield running


@pytest.fixture(scope="package")
def someone(cloud: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmUser]:
    """Give a user of two droplets."""
    place = tmp_path_factory.mktemp("warm")
    for name in ("home", "work"):
        (place / name).mkdir()
    user = WarmUser(home=place / "home", cwd=place / "work", cloud=cloud.environ)
    user.does("up", "-n", "2", "--idle", "0", CHISEL_AGENT="off")
    yield user
    user.end_agent()


@pytest.fixture
def user(someone: WarmUser) -> WarmUser:
    """Give that user with an agent that is warm."""
    someone.warm_up()
    return someone


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection
