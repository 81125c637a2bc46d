"""Imports run one way between folders and between sub-folders; only distributed/zero imports DeepSpeed."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SETUPTOOLS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
# What the modules of each top-level folder may import from Longplay.
ALLOWED = {
    "common": {"common"},
    "native": {"native", "common"},
    "data_shards": {"data_shards", "native", "common"},
    "models": {"models", "native", "common"},
    "distributed": {"distributed", "models", "native", "common"},
    "serving": {"serving", "models", "data_shards", "native", "common"},
    "api": {"serving"},
    "launch": {"launch", "serving", "models", "distributed", "data_shards", "common"},
}
NOT_PACKAGES = {"tests", "benchmarks", "slurm", "docs", "examples"}


def folder_of(package: str) -> Path:
    """Return the folder that pyproject.toml's package-dir gives `package`."""
    parts = package.split(".")
    for cut in range(len(parts), 0, -1):
        base = SETUPTOOLS["package-dir"].get(".".join(parts[:cut]))
        if base is not None:
            return Path(base, *parts[cut:])
    raise AssertionError(f"pyproject.toml: {package} has no folder in package-dir")


FOLDERS = {package: folder_of(package) for package in SETUPTOOLS["packages"]}
FILES = {
    path: package
    for package, folder in FOLDERS.items()
    for path in sorted((REPOSITORY / folder).glob("*.py"))
}


def imports_of(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (line, level, dotted module) of every import of a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, node.level, f"{node.module}.{alias.name}" if node.module else alias.name


def ignored(top: str) -> bool:
    """Return whether a top-level folder holds no part of the package."""
    return top in NOT_PACKAGES or top.startswith(".")


def package_of(module: str) -> str:
    """Return the longest package of pyproject.toml that a dotted name starts with."""
    parts = module.split(".")
    names = (".".join(parts[:cut]) for cut in range(len(parts), 0, -1))
    return next(name for name in names if name in FOLDERS)


def test_pyproject_lists_every_folder_of_code() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    folders = {Path(name).parent for name in listed if not ignored(Path(name).parts[0])}
    assert folders == set(FOLDERS.values())


def test_every_top_level_folder_has_its_arrows() -> None:
    assert {folder.parts[0] for folder in FOLDERS.values()} == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_are_absolute_and_follow_the_arrows(path: Path) -> None:
    top_folder = FOLDERS[FILES[path]].parts[0]
    for line, level, name in imports_of(path):
        place = f"{path.relative_to(REPOSITORY)}:{line}: imports {name}"
        assert level == 0, f"{place} relatively"
        top = name.partition(".")[0]
        assert top not in ALLOWED, f"{place} without the prefix longplay"
        if top == "longplay":
            assert FOLDERS[package_of(name)].parts[0] in ALLOWED[top_folder], place
        if top == "deepspeed":
            assert FOLDERS[FILES[path]] == Path("distributed/zero"), f"{place} outside distributed/zero"


def test_no_two_sub_folders_import_each_other() -> None:
    graph: dict[str, set[str]] = {package: set() for package in FOLDERS}
    for path, package in FILES.items():
        names = [name for _, _, name in imports_of(path) if name.startswith("longplay.")]
        graph[package] |= {package_of(name) for name in names} - {package}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_no_script_hides_an_importable_module() -> None:
    """`python launch/x.py` puts launch/ first on the path, so launch/profile.py would stand for `profile`."""
    names = [path.stem for path in (REPOSITORY / "launch").rglob("*.py") if path.stem != "__init__"]
    names += [path.name for path in (REPOSITORY / "launch").iterdir() if path.is_dir()]
    names = sorted(set(names) - {"__pycache__"})
    code = "import importlib.util, sys; print([n for n in sys.argv[1:] if importlib.util.find_spec(n)])"
    found = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=REPOSITORY / "docs",
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"
