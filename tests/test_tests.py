"""Where tests stand and what they share: they mirror factdpo/, and what two of them need lies in helpers/."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "factdpo"


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_imports_helpers_and_no_other_test(path: Path):
    others = [name for name in imported(path) if is_of_the_tests(name) and not name.startswith("tests.helpers.")]
    assert not others, f"{path.relative_to(TESTS)} imports {others}; move what both need into tests/helpers/"


def test_each_folder_of_tests_is_one_of_the_package():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("*.py")} - {Path("helpers"), Path("faults")}
    assert [str(folder) for folder in sorted(folders) if not (PACKAGE / folder / "__init__.py").is_file()] == []


def test_all_that_has_shapes_is_checked_for_them(pytestconfig: pytest.Config):
    *checked, _ = pytestconfig.getoption("jaxtyping_packages").split(",")
    modules = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")
               if any(name.startswith("jaxtyping.") for name in imported(path))]  # fmt: skip
    names = [".".join(module.parts) for module in modules]
    assert names and [name for name in names if not name.startswith(tuple(checked))] == []


def imported(path: Path) -> list[str]:
    """The dotted name of each import, also of those in functions; `from a import b` gives a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: relative import; write the module's full name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_of_the_tests(name: str) -> bool:
    return name.split(".")[0] in ("tests", "conftest") or name.startswith("test_")
