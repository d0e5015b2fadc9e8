"""Who may import whom (DESIGN section 2), read from the source of every module."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "factdpo"
PLUGINS = PACKAGE.parent / "hydra_plugins"

# From the bottom up; a module imports from lower rows only, so siblings never import each other.
LAYERS = [
    {"config"},
    {"cache", "facts", "wandb_env", "display", "signals", "provenance", "nano", "wandb_file"},
    {"splits", "baselines", "tracker", "weights", "record"},  # record reads files, and never the training side
    {"wandb_tracker", "trackio_tracker"},
    {"overrides", "identity"},
    {"index"},
    {"results"},
    {"compare"},
    {"views", "trackers", "workspace"},
    {"logps", "dpo"},
    {"pairs", "model", "steps"},
    {"reference", "canaries", "packing", "state", "plan"},
    {"adapters", "checkpoints"},
    {"stack"},
    {"planner", "member"},
    {"train", "batched", "evaluate", "graph"},
    {"stages"},
    {"run"},
    {"warm"},
    {"attempt"},
    {"table"},
    {"job", "report", "explain"},
    {"sweep"},
    {"progress"},
    {"space"},
    {"search"},
    {"doctor", "report", "status", "clean", "sync"},
    {"dashboard"},
    {"__main__"},
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}
OWNERS = {
    "trl": {"train"},
    "peft": {"adapters", "stack", "member"},
    "wandb": {"wandb_tracker", "wandb_file"},
    "wandb_workspaces": {"workspace"},
    "trackio": {"trackio_tracker"},
    "transformers": {"model", "pairs", "train", "nano", "adapters", "stack"},
    "hydra": {"config", "__main__", "hydra_plugins"},
    "omegaconf": {"config", "__main__", "hydra_plugins"},
    "optuna": {"space", "search", "hydra_plugins"},
    "plotly": {"report", "graph", "dashboard"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
}
FILES = sorted([*PACKAGE.rglob("*.py"), *PLUGINS.glob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_imports_point_down(path: Path):
    module = module_of(path)
    if module in ("factdpo", "nano"):  # factdpo.load, and nothing else, is there for who asks
        assert not [name for name, lazy in project_imports(path) if name not in ("factdpo", "nano") and not lazy]
    elif module == "hydra_plugins":  # at its top it may not pull the project in: every start of Hydra scans it
        assert not [name for name, lazy in project_imports(path) if name != "factdpo" and not lazy]
    else:
        assert module in RANK, f"{module}.py has no place in LAYERS; give it one"
        others = [name for name, _ in project_imports(path) if name not in ("factdpo", module)]  # a package has its own
        above = [name for name in others if RANK[name] >= RANK[module]]
        assert not above, f"{module} imports {above}, which stand beside or above it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_each_framework_has_one_owner(path: Path):
    used = {name for name, _ in imports(path) if name.split(".")[0] in OWNERS}
    assert not [name for name in used if module_of(path) not in OWNERS[name.split(".")[0]]]


@pytest.mark.parametrize("module", ["logps", "dpo"])
def test_the_mathematics_knows_torch_and_nothing_of_the_project(module: str):
    path = PACKAGE / f"{module}.py"
    assert not list(project_imports(path))
    assert {name.split(".")[0] for name, _ in imports(path)} <= {
        "torch",
        "jaxtyping",
        "math",
        "enum",
        "typing",
        "collections",
    }


@pytest.mark.parametrize("module", ["config", "explain", "__main__", "job", "record", "facts", "splits", "weights"])
def test_what_answers_at_once_imports_nothing_heavy_at_its_top(module: str):
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "pandas", "scipy", "matplotlib", "wandb"}
    at_top = {name.split(".")[0] for name, lazy in imports(PACKAGE / f"{module}.py") if not lazy}
    assert not at_top & heavy


def test_plugins_can_be_scanned():
    assert not (PLUGINS / "__init__.py").exists(), "a namespace package: other plugins live under the same name"
    assert not [p.name for p in PLUGINS.glob("*.py") if "from __future__ import annotations" in code_of(p)]


def module_of(path: Path) -> str:
    """`factdpo/facts.py` -> facts; everything in factdpo/nano/ -> nano; in hydra_plugins/ -> hydra_plugins."""
    if path.parent != PACKAGE:
        return path.parent.name
    return "factdpo" if path.stem == "__init__" else path.stem


def project_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module of factdpo, is it lazy) for each import from the project; hydra_plugins is no module of factdpo."""
    for name, lazy in imports(path):
        parts = name.split(".")
        if parts[0] == "factdpo":
            known = len(parts) > 1 and ((PACKAGE / f"{parts[1]}.py").exists() or (PACKAGE / parts[1]).is_dir())
            yield (parts[1] if known else "factdpo"), lazy


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
