from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from chisel.events import Event
from tests.cloud.api import Api, running_api


@pytest.fixture
def api() -> Iterator[Api]:
    with running_api() as api:
        yield api


@pytest.fixture
def contract(shared: Path, tmp_path: Path) -> Any:
    """A transport that checks every request and every answer against DigitalOcean's own specification."""
    spec = importlib.util.spec_from_file_location("contract_transport", shared / "contract" / "contract_transport.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        loaded = module.load(str(_specification(shared, tmp_path)))

    class Decoded(module._Req):  # type: ignore[name-defined, misc]
        """A request with its path decoded, as servers see it: pydo sends a fingerprint's colons as `%3A`."""

        def __init__(self, method: str, url: str, headers: Any, body: Any) -> None:
            super().__init__(method, url, headers, body)
            self.path = unquote(self.path)

    module._Req = Decoded
    return module.ContractTransport(loaded, use_env_settings=False)


def _specification(shared: Path, tmp_path: Path) -> Path:
    """Return DigitalOcean's specification, less one mark: a key's id and fingerprint are `readOnly` there, which
    openapi-core takes for a ban on either in a request's path."""
    specification = json.loads((shared / "contract" / "do-openapi.json").read_text())
    for name in ("ssh_key_id", "ssh_key_fingerprint"):
        del specification["components"]["schemas"][name]["readOnly"]
    file = tmp_path / "specification.json"
    file.write_text(json.dumps(specification))
    return file


class Recorder:
    """A sink that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def emit(self, event: Event) -> None:
        self.events.append(event)

    async def drain(self) -> None:
        return


@pytest.fixture
def sink() -> Recorder:
    return Recorder()
