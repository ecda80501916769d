"""Hold the house together: who may import whom, where each package lives, what a start may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "chisel"

LAYERS = [
    {"errors", "events", "figures", "model"},
    {"paths", "config", "state"},
    {"cloud", "ssh", "node"},
    {"sync", "runner", "profile", "guard", "lifecycle"},
    {"client"},
    {"agent"},
    {"render"},
    {"cli"},
    {"entry"},
]
WITHIN_A_LAYER = {
    ("model", "errors"),
    ("events", "model"),
    ("events", "figures"),
    ("figures", "model"),
    ("config", "paths"),
    ("state", "paths"),
}
ENGINES_BELOW = {"lifecycle": {"guard"}, "profile": {"runner"}}
HOMES = {
    "pydo": {"cloud.digitalocean"},
    "azure": {"cloud.digitalocean"},
    "asyncssh": {"ssh", "sandbox"},
    "cryptography": {"ssh"},
    "rich": {"render"},
    "asyncclick": {"cli"},
    "orjson": {"state", "render.jsonl", "profile"},
    "backports": {"sync.codec"},
    "inotify_simple": {"sync.inotify"},
    "watchfiles": {"sync.polled"},
}
NODE_ABOVE = {
    "frames", "registry", "tree", "kept", "contents", "offer", "chrometrace", "formats", "names", "ranking", "spans",
    "table", "tally",
}  # fmt: skip


def modules() -> list[tuple[str, ast.Module]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        found.append((name, ast.parse(path.read_text(encoding="utf-8"))))
    return found


MODULES = modules()


def imports(name: str, tree: ast.Module, *, runtime_only: bool = False) -> set[str]:
    """Collect absolute names of what a module imports anywhere in its body."""
    skipped = {
        id(inner) for node in ast.walk(tree) if runtime_only and is_type_checking(node) for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{absolute(name, node)}.{alias.name}" for alias in node.names}
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def absolute(name: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parent = ("chisel." + name).split(".")[: -node.level]
    return ".".join([*parent, *([node.module] if node.module else [])])


def layer(top: str) -> int:
    return next(index for index, members in enumerate(LAYERS) if top in members)


def our_imports(name: str, tree: ast.Module) -> list[str]:
    return [target.removeprefix("chisel.") for target in imports(name, tree) if target.startswith("chisel.")]


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_imports_only_from_the_layers_below(name: str, tree: ast.Module) -> None:
    top = name.split(".")[0]
    if top in {"", "chisel", "__init__", "__main__"} or ("." not in name and top not in {m for s in LAYERS for m in s}):
        return
    if top == "sandbox":
        assert not [target for target in our_imports(name, tree) if not target.startswith("sandbox")]
        return
    for target in our_imports(name, tree):
        other = target.split(".")[0]
        if other in {top, "__version__"}:
            continue
        if other == "sandbox":
            assert name == "cli.sandbox", f"{name} imports the sandbox"
        elif other == "node" and top != "node":
            assert target.split(".")[1] in NODE_ABOVE, f"{name} imports {target}, which is not a pure module"
        elif layer(other) == layer(top):
            allowed = (top, other) in WITHIN_A_LAYER or other in ENGINES_BELOW.get(top, set())
            assert allowed, f"{name} imports {target} of its own layer"
        else:
            assert layer(other) < layer(top), f"{name} imports upwards: {target}"


@pytest.mark.parametrize(("name", "tree"), MODULES, ids=[name for name, _ in MODULES])
def test_each_package_has_one_home(name: str, tree: ast.Module) -> None:
    for target in imports(name, tree):
        homes = HOMES.get(target.split(".")[0])
        assert homes is None or any(name == home or name.startswith(home + ".") for home in homes), (
            f"{name} imports {target}"
        )


def test_node_imports_the_standard_library_only() -> None:
    for name, tree in MODULES:
        if name.split(".")[0] == "node":
            for target in imports(name, tree):
                top = target.split(".")[0]
                assert top in sys.stdlib_module_names or target.startswith("chisel.node"), f"{name} imports {target}"


def test_render_sees_events_and_model_only() -> None:
    for name, tree in MODULES:
        if name.split(".")[0] == "render":
            seen = {target.split(".")[0] for target in our_imports(name, tree)}
            assert seen <= {"events", "figures", "model", "errors", "render", "__version__"}, f"{name} sees {seen}"


def test_no_module_reads_the_environment_but_those_that_may() -> None:
    may = {"entry", "client", "cli", "sandbox", "node"}
    for name, tree in MODULES:
        if name.split(".")[0] in may:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in {"environ", "getenv"}, f"{name} reads the environment"


@pytest.mark.parametrize("start", ["import chisel", "from chisel.cli.app import run_command; run_command(['--help'])"])
def test_a_start_loads_nothing_heavy(start: str) -> None:
    code = (
        f"import sys\ntry:\n exec({start!r})\nexcept SystemExit: pass\n"
        "heavy = {'asyncssh', 'pydo', 'rich', 'azure', 'cryptography'}\n"
        "print('loaded:', *sorted({m.split('.')[0] for m in sys.modules} & heavy))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20)
    assert ended.stdout.splitlines()[-1] == "loaded:"
