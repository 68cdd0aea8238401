"""The house stays as it is drawn: three storeys, imports that point down, no circle, no loose or crowded room.

Read from the source with `ast`, imports inside functions included; those for type checkers alone do not count.
"""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import lbgen

PACKAGE = Path(lbgen.__file__).parent
STAGES = (
    "alignment",
    "generation",
    "audit",
    "pretraining",
    "evaluation",
    "quickstart",
    "reproduction",
    "checkup",
    "exports",
)
SHARED = ("models", "datasets", "metrics", "microworld", "training", "report")
GROUND = ("vocabulary", "configuration", "runs", "errors")
STOREY = {room: storey for storey, rooms in enumerate((GROUND, SHARED, STAGES)) for room in rooms}
RUNNING = ("quickstart", "reproduction")
"""Stages that run all the others, by the package's public names."""
AT_THE_TOP = {"__init__.py", "__main__.py", "cli.py", "errors.py", "py.typed"}
LARGEST_ROOM = 12
"""Files besides __init__."""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere in it, relative to the package."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "lbgen":
            base = node.module.partition(".")[2]
            names = [f"{base}.{alias.name}".strip(".") for alias in node.names]
            found |= {name if name in MODULES else base for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("lbgen.")}
    return {name for name in found if name in MODULES} - {""}


def unread_imports(source: str) -> list[str]:
    """Imports that `imports_of` does not follow: relative ones, and the package itself, which names all stages."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] == "lbgen"]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append("." * node.level + (node.module or ""))
        elif isinstance(node, ast.ImportFrom) and node.module == "lbgen":
            found += [alias.name for alias in node.names if alias.name not in MODULES]
    return found


@cache
def imports() -> dict[str, set[str]]:
    """The modules that each module imports; read by the first test, not when tests are collected."""
    return {name: imports_of(path) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Every set of nodes that reach each other, by the definition: from each node to all that it reaches."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        waiting, seen = list(edges[start]), set()
        while waiting:
            if (node := waiting.pop()) not in seen:
                seen.add(node)
                waiting += edges.get(node, ())
        reached[start] = seen
    found = {frozenset(b for b in reached[a] if a in reached.get(b, ())) for a in edges if a in reached[a]}
    return sorted(sorted(circle) for circle in found)


def test_no_circle_of_modules():
    assert circles(imports()) == []


def test_no_circle_of_rooms():
    edges: dict[str, set[str]] = defaultdict(set)
    for module, targets in imports().items():
        edges[room(module)] |= {room(target) for target in targets} - {room(module)}
    assert circles(edges) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_imports_point_down():
    """`__init__`, `__main__` and `cli` stand above all storeys; `errors` and `__init__` are everybody's."""
    upward = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if room(module) in STOREY and STOREY.get(room(target), 3) > STOREY[room(module)]
    ]
    assert upward == []


def test_no_stage_imports_another():
    """But for the quickstart and the reproduction, which run them all."""
    across = [
        f"{module} -> {target}"
        for module, targets in imports().items()
        for target in targets
        if room(module) in STAGES and room(target) in STAGES and room(module) not in (room(target), *RUNNING)
    ]
    assert across == []


def test_only_what_runs_all_stages_imports_the_package_itself():
    unread = {
        module: found
        for module, path in MODULES.items()
        if room(module) in STOREY and room(module) not in RUNNING and (found := unread_imports(path.read_text()))
    }
    assert unread == {}


@pytest.mark.parametrize(
    "line",
    ["import lbgen", "import lbgen.audit.run", "from lbgen import generate", "from . import loop", "from ..x import y"],
)
def test_an_import_that_is_not_read_would_be_found(line):
    assert unread_imports(f"def late():\n    {line}\n") and not unread_imports("from lbgen.audit import run")


def test_rooms_are_those_of_the_plan():
    assert {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"} == AT_THE_TOP | set(STOREY) - {
        "errors"
    }


@pytest.mark.parametrize("folder", sorted({path.parent for path in MODULES.values()}), ids=lambda folder: folder.name)
def test_no_room_is_crowded(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= LARGEST_ROOM


def test_no_file_is_called_a_drawer():
    drawers = {"utils", "common", "helpers", "misc", "tools"}
    assert [name for name in MODULES if name.rpartition(".")[2] in drawers] == []


def test_no_two_test_files_have_one_name():
    """pytest imports them by their bare names."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
