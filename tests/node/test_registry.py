"""What a droplet answers when it is asked how idle it is, of what is not chisel's own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chisel.node import activity, env, frames, status

Ask = Callable[..., dict[str, Any]]


class Listener:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def send_json(self, kind: int, obj: Any) -> None:
        assert kind == frames.Kind.REPLY
        self.heard.append(json.loads(json.dumps(obj)))


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask a droplet that nobody has used for an hour, except as a test says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(env.ROOT_VARIABLE, raising=False)
    monkeypatch.setattr(status, "_last_activity_at", lambda: time.time() - 3600)

    def answer(*, marks: dict[str, str] | None = None, terminals: tuple[str, ...] = (), **request: Any) -> Any:
        monkeypatch.setattr(activity, "marks", lambda: marks or {})
        monkeypatch.setattr(activity, "session_commands", lambda: list(terminals))
        monkeypatch.setattr(activity, "gpu_use", lambda: ["GPU card0 works"])
        listener = Listener()
        assert status.main(listener, request) == 0  # type: ignore[arg-type]
        return listener.heard[0]

    return answer


def test_nothing_is_idleness(ask: Ask) -> None:
    answer = ask()
    assert answer["idle_s"] == pytest.approx(3600, abs=5)
    assert (answer["busy"], answer["runs"]) == ([], [])


def test_what_was_typed_into_a_terminal_is_activity(ask: Ask) -> None:
    typed = {"/dev/pts/0": str(int((time.time() - 60) * 1e9)), "wtmp": str(int((time.time() - 500) * 1e9))}
    assert ask(marks=typed)["idle_s"] == pytest.approx(60, abs=5)


def test_a_command_in_a_terminal_is_use(ask: Ask) -> None:
    answer = ask(terminals=("`python3` runs in a terminal",))
    assert (answer["idle_s"], answer["busy"]) == (0.0, ["`python3` runs in a terminal"])


def test_gpus_are_looked_at_when_asked_for(ask: Ask) -> None:
    assert ask(looks_at_gpus=True)["busy"] == ["GPU card0 works"]
    assert ask(looks_at_gpus=True)["idle_s"] == 0.0
