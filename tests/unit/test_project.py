"""The files around the code agree with the code and with each other."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from outpace import registry

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
METHODS = PROJECT["entry-points"]["outpace.methods"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {plain(name): version for name, version in pairs}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    texts = [*PROJECT["dependencies"], *(text for group in extras for text in group)]
    return [Requirement(text) for text in texts if not text.startswith("outpace[")]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_inside_its_range(requirement: Requirement) -> None:
    assert pins()[plain(requirement.name)] in requirement.specifier


def test_constraints_hold_exact_public_versions_and_nothing_else() -> None:
    assert pins()["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins().values())


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_point_is_a_method_of_that_name(name: str) -> None:
    module, kind = METHODS[name].split(":")
    method = getattr(importlib.import_module(module), kind)
    assert method.name == name
    assert method().to_dict().keys() <= {*method.__dataclass_fields__}


def test_the_registry_and_the_entry_points_name_the_same_methods() -> None:
    assert registry._BUILT_IN == METHODS


# Imports go one way: a package may import those to its left, and `outpace.types` and `outpace.errors` are free to all.
LAYERS = ["cache", "sampling", "schedule", "draft", "accept", "methods"]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    later = LAYERS[LAYERS.index(layer) + 1 :]
    forbidden = {f"outpace.{name}" for name in [*later, "models", "cli", "bench", "train", "server", "loop"]}
    for path in (ROOT / "src/outpace" / layer).rglob("*.py"):
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert not any(module == name or module.startswith(f"{name}.") for name in forbidden), (path, module)


def test_no_method_imports_another() -> None:
    folder = ROOT / "src/outpace/methods"
    names = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("base")} - {"__init__"}
    for path in folder.glob("*.py"):
        modules = imported(ast.parse(path.read_text(encoding="utf-8")))
        assert not {module.removeprefix("outpace.methods.") for module in modules} & names, path


def imported(tree: ast.Module) -> set[str]:
    """Modules that are imported when the file runs; imports for annotations alone do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found
