from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chisel.ssh.program import pack_node_program
from tests.conftest import python310
from tests.node.session import started

PYTHONS = [pytest.param("current", id="python"), pytest.param("3.10", marks=pytest.mark.real_part("python3.10"))]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("node") / "node.pyz"
    path.write_bytes(pack_node_program().data)
    return path


@pytest.fixture(params=PYTHONS)
def python(request: pytest.FixtureRequest) -> str:
    found = sys.executable if request.param == "current" else python310()
    assert found
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def start(program: Path, home: Path, python: str) -> Callable[..., Any]:
    return partial(started, program, home=home, python=python)
