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


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("node") / "node.pyz"
    path.write_bytes(pack_node_program().data)
    return path


@pytest.fixture
def python() -> str:
    """Give the oldest Python that the node program must run on, where there is one: newer ones are easier."""
    return python310() or sys.executable


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def start(program: Path, home: Path, python: str) -> Callable[..., Any]:
    return partial(started, program, home=home, python=python)
