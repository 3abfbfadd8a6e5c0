"""The rooms of the package: imports run from later rooms to earlier ones, and the loop knows no method."""

import ast
import re
from pathlib import Path

import pytest

import outpace
from outpace.methods.registry import method_names

SOURCE = Path(outpace.__file__).parent
# From the ground up: a room imports those before it, for annotations too.
ROOMS = """
errors failures store arguments setting plugins papers zoo tasks text constrain sampling cache types models kernels run
schedule accept draft retrieve heads canvas methods search laws api engine trace quantize train server doors testing
bench cli
""".split()
MODULES = sorted(path for path in SOURCE.rglob("*.py") if "children" not in path.parts and path.parent != SOURCE)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file names in an import, as dotted names below `outpace`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [alias.name for alias in node.names] if node.module == "outpace" else []
            found |= {f"outpace.{name}" for name in names} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("outpace.") for name in found if name.startswith("outpace.")}


def test_every_room_has_its_place() -> None:
    rooms = {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")}
    assert rooms == {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    for path in MODULES:
        if path.relative_to(SOURCE).parts[0] == room:
            up = {name for name in imported(path) if name.split(".")[0] in later}
            assert not up, f"{path.relative_to(SOURCE)} imports {up}"


@pytest.mark.parametrize("path", sorted((SOURCE / "run").glob("*.py")), ids=lambda path: path.stem)
def test_the_loop_knows_no_method(path: Path) -> None:
    source = path.read_text(encoding="utf-8").lower()
    for method in method_names():
        assert not re.search(rf"\b{method}\b|\b{method.replace('-', '_')}\b", source), method


def test_a_method_imports_no_other_method() -> None:
    homes = [name.removeprefix("outpace.") for name in (type_.__module__ for type_ in _classes())]
    for path in (SOURCE / "methods").rglob("*.py"):
        own = "methods." + ".".join(path.relative_to(SOURCE / "methods").with_suffix("").parts)
        assert not imported(path) & ({*homes} - {own}), path


def _classes() -> list[type]:
    from outpace.methods.registry import built_in_names, load_method

    return [load_method(name) for name in built_in_names()]
