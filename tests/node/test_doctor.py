"""What keeps kernels from being built, found and mended: with a compiler and an apt that a test writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chisel.lifecycle.readiness import missing_parts, parts_to_install
from chisel.node import doctor

FACTS = {"gpu": ["MI300X"], "profiler": {"rocprofv3": "/x"}, "hipcc": "/x", "zstd": "/x", "compile_error": None}


def program(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text("#!/bin/sh\n" + text)
    (directory / name).chmod(0o755)


def environment(directory: Path) -> dict[str, str]:
    return {"PATH": f"{directory}:/usr/bin:/bin", "HOME": str(directory)}


def test_a_compiler_is_believed_when_it_compiles(tmp_path: Path) -> None:
    program(tmp_path, "hipcc", 'echo "$@" >>"$HOME/asked"; grep -q hip_runtime "$3" && : >"$5"\n')
    assert doctor.compiles(environment(tmp_path)) is None
    assert "--offload-arch=gfx942 -c" in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [("echo no headers >&2; exit 1", "no headers"), ("exit 3", "status 3"), (None, "there is no hipcc")],
)
def test_a_compiler_that_does_not_says_why(tmp_path: Path, text: str | None, words: str) -> None:
    if text:
        program(tmp_path, "hipcc", text)
    found = doctor.compiles({"PATH": str(tmp_path), "HOME": str(tmp_path)})
    assert found is not None
    assert words in found


MEND = (
    "import sys; from chisel.node import doctor\n"
    "class Channel:\n"
    "    def send_json(self, kind, reply): print(reply)\n"
    "doctor.main(Channel(), {'parts': ['hipcc', 'profiler', 'nonsense']})\n"
)


def mended(directory: Path) -> str:
    environ = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "HOME": str(directory)}
    environ.pop("CHISEL_DROPLET_ROOT", None)
    return subprocess.run(
        [sys.executable, "-c", MEND], env=environ, capture_output=True, text=True, check=True, timeout=30
    ).stdout


def test_apt_installs_what_it_has(tmp_path: Path) -> None:
    program(tmp_path, "apt-get", 'echo "$DEBIAN_FRONTEND $@" >>"$HOME/asked"\n')
    program(
        tmp_path,
        "apt-cache",
        'case "$2" in hip-dev|rocprofiler-sdk) echo "  Candidate: 1";; *) echo "  Candidate: (none)";; esac\n',
    )  # fmt: skip
    assert mended(tmp_path).strip() == "{'installed': ['hip-dev', 'rocprofiler-sdk'], 'error': None}"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [
        "noninteractive -q -o DPkg::Lock::Timeout=300 update",
        "noninteractive -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends hip-dev rocprofiler-sdk",
    ]


def test_an_apt_that_fails_is_told(tmp_path: Path) -> None:
    program(tmp_path, "apt-get", 'case "$*" in *install*) echo "E: broken" >&2; exit 100;; esac\n')
    program(tmp_path, "apt-cache", 'echo "  Candidate: 1"\n')
    assert "'installed': [], 'error': 'E: broken'" in mended(tmp_path)


def test_what_is_missing_has_a_name() -> None:
    assert missing_parts(FACTS) == []
    assert parts_to_install(FACTS) == []
    broken = {**FACTS, "compile_error": "no headers", "profiler": {}, "zstd": None}
    assert missing_parts(broken) == ["a profiler (rocprofv3)", "a compiler that compiles a kernel"]
    assert parts_to_install(broken) == ["hipcc", "profiler", "zstd"]
