"""A new method from a template: one file that fulfils the contract as it is written, and its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from outpace.errors import ConfigError, StorageError

__all__ = ["write_method"]

METHOD = Template('''\
"""Draft the last token again. (Say in one sentence what the method does.)

Paper: none. (Authors, year, arXiv number, number of the algorithm.)
Guarantee: exact (sample and match).
Cost: at most 1 target forward per emitted token; no extra memory.
Differences: none. (What differs from the paper, each with its reason.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from outpace.methods.base import Method, chain
from outpace.setting import setting
from outpace.types import Needs, Proposal, View

__all__ = ["$kind"]


@dataclass(frozen=True)
class $kind(Method):
    """One line about the method.

    Attributes:
        draft_len: most tokens drafted per step.

    Raises:
        ConfigError: a setting outside its range.
    """

    draft_len: int = setting(4, least=1)

    name: ClassVar[str] = "$name"
    family: ClassVar[str] = "speculative"
    summary: ClassVar[str] = "Drafts the last token again."

    @property
    def needs(self) -> Needs:
        """A causal target that can drop staged entries; `outputs=Outputs(layers=(...))` asks for hidden states too."""
        return Needs(has_rollback=True, width=self.draft_len)

    def propose(self, view: View, state: Any) -> Proposal:
        """Draft a chain for each row, never more than may still be written."""
        del state
        rows = zip(view.texts, view.room, strict=True)
        drafts = [text[-1:] * max(0, min(self.draft_len, room - 1)) for text, room in rows]
        return chain(view, drafts, self.name)
''')

TEST = Template('''\
"""$kind fulfils the contract of every method."""

import pytest
from $module import $kind

from outpace.testing import check_method


def test_contract() -> None:
    check_method($kind())


def test_refuses_an_empty_draft() -> None:
    with pytest.raises(ValueError, match="draft_len"):
        $kind(draft_len=0)
''')


def write_method(name: str, directory: Path) -> list[Path]:
    """Write a method file and its test; both work unchanged.

    Args:
        name: lower-case words joined by hyphens, as in "prompt-lookup".
        directory: where the files go; made when it is missing.

    Returns:
        The paths written: the method, then the test.

    Raises:
        ConfigError: the name cannot be used, or one of the files exists already (neither is touched then).
        StorageError: the files cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(
            f"A method cannot be called {name!r}.", "Use lower-case words joined by hyphens, such as my-method."
        )
    module = name.replace("-", "_")
    words = {"name": name, "module": module, "kind": "".join(word.capitalize() for word in name.split("-"))}
    files = {
        directory / f"{module}.py": METHOD.substitute(words),
        directory / f"test_{module}.py": TEST.substitute(words),
    }
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists already.", "Choose another name or directory; nothing was written.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror}.", "Choose another directory.") from error
    return list(files)
