"""The files around the code agree with the code and with each other."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from outpace.methods import registry

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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


@pytest.mark.parametrize("name", registry.built_in_names())
def test_every_built_in_method_bears_its_name(name: str) -> None:
    method = registry.load_method(name)
    assert method.name == name
    assert method().to_dict().keys() <= {*method.__dataclass_fields__}
