"""Imports run one way: launch to everything, serving to models and data, models to distributed to native."""

import ast
import importlib.util
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ALLOWED = {
    "data_shards": {"data_shards"},
    "native": {"native"},
    "distributed": {"distributed", "native"},
    "models": {"models", "distributed", "native"},
    "serving": {"serving", "models", "data_shards"},
    "api": {"serving"},
    "launch": {"launch", "serving", "models", "distributed", "data_shards"},
}
FILES = sorted(path for folder in ALLOWED for path in (REPOSITORY / folder).glob("*.py"))


def imports_of(path: Path) -> list[tuple[int, int, str]]:
    """(line, level, dotted name) of every import of a file, those inside functions included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, 0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # `from longplay import models` names its folder last, `from longplay.models import x` does not.
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "longplay" else [base]
            found += [(node.lineno, node.level, name) for name in names]
    return found


def test_every_folder_is_covered() -> None:
    assert {path.parent.name for path in FILES} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_run_one_way_and_are_absolute(path: Path) -> None:
    for line, level, name in imports_of(path):
        place = f"{path.relative_to(REPOSITORY)}:{line}: imports {name}"
        assert level == 0, f"{place} relatively"
        top, _, rest = name.partition(".")
        assert top not in ALLOWED, f"{place} without the prefix longplay"
        if top == "longplay":
            assert rest.partition(".")[0] in ALLOWED[path.parent.name], place


def test_no_script_hides_an_importable_module() -> None:
    """`python launch/x.py` puts launch/ first on the path, so launch/profile.py would stand for `profile`."""
    for path in (REPOSITORY / "launch").glob("*.py"):
        if path.stem != "__init__":
            assert importlib.util.find_spec(path.stem) is None, path.name
