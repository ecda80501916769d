"""Compile the example's kernels for real GPUs: no GPU is needed for that, only Debian's HIP headers and a clang."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "vector_add" / "vector_add.hip"
FLAGS = ["-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror"]
DEBIAN_BITCODE = (Path("/usr/lib/x86_64-linux-gnu/amdgcn/bitcode"), Path("/usr/share/amdgcn/bitcode"))
LLVM_19 = Path("/usr/lib/llvm-19/bin")


def compile_with(words: list[str], **extra: str) -> None:
    ended = subprocess.run(words, env={**os.environ, **extra}, capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr


def bitcode_for_gfx942(target: Path) -> Path:
    """Copy Debian's device libraries and add gfx942, which is younger than they are, as its sibling gfx940."""
    source = next((directory for directory in DEBIAN_BITCODE if directory.is_dir()), None)
    if source is None:
        pytest.fail("Debian's rocm-device-libs are not installed")
    shutil.copytree(source, target)
    shutil.copyfile(target / "oclc_isa_version_940.bc", target / "oclc_isa_version_942.bc")
    return target


@pytest.mark.real_part("hipcc")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("block_size", [100, 256])
def test_debians_hipcc_compiles_it_for_gfx90a(tmp_path: Path, block_size: int) -> None:
    program = tmp_path / "vector_add"
    compile_with(
        ["hipcc", "--offload-arch=gfx90a", *FLAGS, f"-DBLOCK_SIZE={block_size}", str(SOURCE), "-o", str(program)],
        HIP_PLATFORM="amd",
    )
    assert b"amdgcn-amd-amdhsa--gfx90a" in program.read_bytes()


@pytest.mark.real_part("hipcc", "clang++-19")
@pytest.mark.timeout(120)
def test_it_compiles_to_a_code_object_for_an_mi300x(tmp_path: Path) -> None:
    program = tmp_path / "vector_add"
    bitcode = bitcode_for_gfx942(tmp_path / "bitcode")
    places = ["--rocm-path=/usr", f"--rocm-device-lib-path={bitcode}"]
    compile_with(
        [
            "clang++-19",
            "-x",
            "hip",
            "--offload-arch=gfx942",
            *places,
            *FLAGS,
            str(SOURCE),
            "-lamdhip64",
            "-o",
            str(program),
        ],
        PATH=f"{LLVM_19}:{os.environ['PATH']}",
    )
    built = program.read_bytes()
    assert b"amdgcn-amd-amdhsa--gfx942" in built
    for kernel in (b"_Z10vector_addPKfS0_Pfm.kd", b"_Z5saxpyfPKfS0_Pfm.kd", b"_Z3sumPKfPdm.kd"):
        assert kernel in built


@pytest.mark.real_part("hipcc")
@pytest.mark.timeout(120)
def test_a_block_size_no_gpu_has_is_refused_at_compile_time(tmp_path: Path) -> None:
    words = ["hipcc", "--offload-arch=gfx90a", "-DBLOCK_SIZE=2048", "-c", str(SOURCE), "-o", str(tmp_path / "x.o")]
    ended = subprocess.run(
        words, env={**os.environ, "HIP_PLATFORM": "amd"}, capture_output=True, text=True, timeout=110, check=False
    )
    assert ended.returncode != 0
    assert "a block holds 1 to 1024 threads" in ended.stderr
