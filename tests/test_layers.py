"""Who may import whom (docs/design.md, section "The house"), read from the source of every module."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

from tests.helpers.floors import FLOOR, FLOORS

ROOT = Path(__file__).parents[1]
PACKAGE, PLUGINS = ROOT / "factdpo", ROOT / "hydra_plugins"

# Each framework has one owner: folders, or modules where a folder would be too wide.
OWNERS = {
    "trl": ["training"],
    "peft": ["training"],
    "wandb": ["tracking"],
    "wandb_workspaces": ["sweep.wandb_workspace"],
    "trackio": ["tracking"],
    "transformers": ["models", "training", "nano"],
    "hydra": ["config", "sweep", "commands", "hydra_plugins"],
    "omegaconf": ["config", "sweep", "commands", "hydra_plugins"],
    "optuna": ["sweep"],
    "plotly": ["report", "dashboard"],
    "jinja2": ["report", "evaluation.belief_graph", "data.chat"],
    "markupsafe": ["report"],
    "submitit": ["sweep.executors"],
    "ray": ["sweep.ray_driver"],
}
HEAVY = {
    "torch", "transformers", "trl", "peft", "datasets", "pandas", "scipy", "networkx", "matplotlib", "wandb", "pyarrow",
}  # fmt: skip
# What answers at once: a refusal, a stored result, a command's help.
LIGHT = [
    "config/*.py", "commands/main.py", "commands/refusals.py", "runs/answer.py", "runs/identity.py", "runs/session.py",
    "store/*.py", "data/facts.py", "data/splits.py", "data/tokens.py", "data/encoder.py", "models/weights.py",
    "models/encoder.py", "sweep/grid.py", "sweep/compose.py",
]  # fmt: skip
FILES = sorted([*PACKAGE.rglob("*.py"), *PLUGINS.glob("*.py")])


def test_every_folder_stands_on_exactly_one_floor():
    named = list(chain.from_iterable(FLOORS))
    assert len(named) == len(set(named)), "a folder stands on two floors"
    assert set(named) == {folder_of(path) for path in FILES} - {"factdpo"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: module_of(p))
def test_imports_point_down(path: Path):
    folder = folder_of(path)
    if folder == "hydra_plugins":  # at its top it may not pull the project in: every start of Hydra scans it
        assert not [name for name, lazy in project_imports(path) if not lazy and name != "factdpo"]
    if folder == "factdpo":  # factdpo.load, and nothing else, is there for who asks
        assert not [name for name, lazy in project_imports(path) if not lazy]
        return
    others = {top_of(name) for name, _ in project_imports(path)} - {folder, "factdpo"}
    above = [other for other in others if FLOOR[other] > FLOOR[folder]]
    beside = [other for other in others if FLOOR[other] == FLOOR[folder] and FLOOR[folder] > 0]
    assert not above + beside, f"{module_of(path)} imports {above + beside}, which stand beside or above it"


def test_no_module_imports_itself_in_a_circle():
    """Lazy imports count: two modules that need each other are one, or a third is missing."""
    graph = {module_of(p): {name for name, _ in project_imports(p)} - {"factdpo", module_of(p)} for p in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("path", FILES, ids=lambda p: module_of(p))
def test_each_framework_has_one_owner(path: Path):
    module = module_of(path)
    for used in {name.split(".")[0] for name, _ in imports(path)} & OWNERS.keys():
        homes = OWNERS[used]
        assert any(module == home or module.startswith(home + ".") for home in homes), f"{module} imports {used}"


@pytest.mark.parametrize("module", ["models/logps", "training/losses"])
def test_the_mathematics_knows_torch_and_nothing_of_the_project(module: str):
    path = PACKAGE / f"{module}.py"
    assert not list(project_imports(path))
    used = {name.split(".")[0] for name, _ in imports(path)}
    assert used <= {"torch", "jaxtyping", "math", "enum", "typing", "collections"}


@pytest.mark.parametrize("pattern", LIGHT)
def test_what_answers_at_once_imports_nothing_heavy_at_its_top(pattern: str):
    paths = sorted(PACKAGE.glob(pattern))
    assert paths, f"{pattern} names no file"
    for path in paths:
        at_top = {name.split(".")[0] for name, lazy in imports(path) if not lazy}
        assert not at_top & HEAVY, module_of(path)


def test_plugins_can_be_scanned():
    assert not (PLUGINS / "__init__.py").exists(), "a namespace package: other plugins live under the same name"
    assert not [p.name for p in PLUGINS.glob("*.py") if "from __future__ import annotations" in code_of(p)]


def module_of(path: Path) -> str:
    """`factdpo/data/facts.py` -> data.facts; `factdpo/data/__init__.py` -> data; plugins keep their package's name."""
    parts = path.relative_to(ROOT if path.is_relative_to(PLUGINS) else PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "factdpo"


def top_of(module: str) -> str:
    return module.split(".")[0]


def folder_of(path: Path) -> str:
    return top_of(module_of(path))


MODULES = {module_of(path) for path in FILES}


def project_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module of the project, is it lazy) for each import from the project."""
    for name, lazy in imports(path):
        parts = name.split(".")
        if parts[0] not in ("factdpo", "hydra_plugins"):
            continue
        parts = parts[parts[0] == "factdpo" :]
        known = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
        yield next((module for module in known if module in MODULES), "factdpo"), lazy


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(dotted name, is it in a function) of each import; `from a import b` gives a.b; TYPE_CHECKING is left out."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import; write the module's full name"
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(path.read_text(encoding="utf-8")), False)


def code_of(path: Path) -> str:
    """The source without docstrings and comments."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\n".join(ast.unparse(node) for node in tree.body if not isinstance(node, ast.Expr))
