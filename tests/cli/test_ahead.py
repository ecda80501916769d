"""Guess the droplets that a command line is about from its words and the state, and never fail over it."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from chisel.cli.ahead import open_sockets


@pytest.fixture
def droplets() -> list[socket.socket]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    yield listeners
    for one in listeners:
        one.close()


def state_of(place: Path, pools: dict[str, list[socket.socket]], clouds: int = 1) -> dict[str, str]:
    def record(listener: socket.socket) -> dict[str, object]:
        address, port = listener.getsockname()
        return {"address": address, "port": port, "pipelines": True, "host_key": "ssh-ed25519 AAAA"}

    cloud = {
        "pools": {
            pool: {f"{pool}-{number}": record(one) for number, one in enumerate(listeners, 1)}
            for pool, listeners in pools.items()
        }
    }
    (place / "chisel").mkdir()
    clouds_by_url = {f"https://{number}": cloud for number in range(clouds)}
    (place / "chisel" / "state.json").write_text(json.dumps({"version": 1, "clouds": clouds_by_url}))
    return {"XDG_CACHE_HOME": str(place)}


def ports(words: str, environ: dict[str, str]) -> set[int]:
    opened = open_sockets(words.split(), environ)
    try:
        assert all(not one.getblocking() for one in opened.values())
        return {port for _, port in opened}
    finally:
        for one in opened.values():
            one.close()


def test_the_droplets_meant_are_reached_and_no_others(tmp_path: Path, droplets: list[socket.socket]) -> None:
    environ = state_of(tmp_path, {"bench": droplets})
    every = [one.getsockname()[1] for one in droplets]
    assert ports("run --all -- make", environ) == set(every)
    assert ports("sync --all", environ) == set(every)
    assert ports("run --on 2 make", environ) == {every[1]}
    assert ports("run --on=bench-1,3 make", environ) == {every[0], every[2]}
    assert ports("run make", environ) == set()  # which of them is not said: that is refused
    assert ports("run -- make --all", environ) == set()
    assert ports("run --pool bench --all make", environ) == set(every)
    assert ports("run --pool other --all make", environ) == set()
    assert ports("run --all --help", environ) == set()
    assert ports("status --all", environ) == set()
    assert ports("", environ) == set()


def test_one_of_several_pools_has_to_be_named(tmp_path: Path, droplets: list[socket.socket]) -> None:
    environ = state_of(tmp_path, {"a": droplets[:1], "b": droplets[1:2]})
    assert ports("run make", environ) == set()
    assert ports("run --pool b make", environ) == {droplets[1].getsockname()[1]}


def test_two_accounts_are_not_guessed_at(tmp_path: Path, droplets: list[socket.socket]) -> None:
    assert ports("run make", state_of(tmp_path, {"a": droplets[:1]}, clouds=2)) == set()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"clouds": {"x": {"pools": {"a": {"a-1": {}}}}}}', '{"clouds": 3}', '{"clouds": {"x": null}}',
     '{"clouds": {"x": {"pools": {"a": {"a-1": {"address": 3, "port": "x"}}}}}}'],
)  # fmt: skip
def test_a_strange_state_opens_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "chisel").mkdir()
    (tmp_path / "chisel" / "state.json").write_text(text)
    assert ports("run make", {"XDG_CACHE_HOME": str(tmp_path)}) == set()
    assert ports("run make", {"XDG_CACHE_HOME": str(tmp_path / "none")}) == set()
