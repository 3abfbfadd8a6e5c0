"""The notebook runs from top to bottom, its cells in order, as a kernel would run them."""

from __future__ import annotations

import ast
import asyncio
import json
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "examples" / "serve.ipynb"


async def _run(cells: list[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        code = compile(cell, f"cell {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        assert isinstance(code, CodeType)
        found = FunctionType(code, names)()
        if found is not None:  # the cell awaits something
            await found


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads(FILE.read_text(encoding="utf-8"))["cells"]
    shown = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in shown[:-1]), "run it before it is committed"
    asyncio.run(_run(["".join(cell["source"]) for cell in shown]))
    told = capsys.readouterr().out
    assert all(f"{method:<15}" in told for method in ("autoregressive", "prompt-lookup", "auto"))
