"""Molecules as pairs: the atoms of a SMILES string in alphabetical order, and the string."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from outpace.train.pairs import Pair, PairSource
from outpace.train.sources import open_text

__all__ = ["MOLECULES", "atoms"]


def atoms(molecule: str) -> str:
    """Return the letters of a SMILES string, sorted."""
    return "".join(sorted(letter for letter in molecule if letter.isalpha()))


def _read(paths: Sequence[Path]) -> list[Pair]:
    molecules = [line for path in paths for line in open_text(path).split()]
    return [(atoms(one), one) for one in molecules[: 400 if "valid" in paths[0].name else 30_000]]


MOLECULES = PairSource(
    name="molecules",
    splits={"train": ("molecules/qm9_smiles_train.txt.gz",), "valid": ("molecules/qm9_smiles_valid.txt.gz",)},
    origin="github.com/aspuru-guzik-group/selfies, the QM9 set",
    licence="Apache-2.0",
    note="SMILES strings of small molecules, of which the atoms are given",
    read=_read,
    languages=("atoms", "smiles"),
)
