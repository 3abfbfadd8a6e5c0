"""Edit a text around given tokens in rounds: delete, make places, fill them, all at once each.

Paper: Gu, Wang, Zhao (2019), arXiv 1905.11006 (Levenshtein Transformer), section 3.2.
Guarantee: approximate; every given token stands in the text, in order, phrases in one piece, whatever the network says.
Cost: three passes of the decoder a round, one less in the first (there is nothing to delete) and where nothing is made.
Differences: as in constrained decoding with it (Susanto et al., 2020, arXiv 2004.12681), given tokens are kept. A slot
    gets the median of the counts, not the likeliest one, which is nothing where many are possible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.whole.sketched import Growing, SketchMethod
from outpace.models.nar.levenshtein import HOLE
from outpace.setting import setting

__all__ = ["Levenshtein"]


@dataclass(frozen=True)
class Levenshtein(SketchMethod):
    """Levenshtein refinement.

    Attributes:
        rounds: most rounds.

    Raises:
        ConfigError: no rounds.
    """

    rounds: int = setting(10, least=1, note="without a round nothing is written")

    name: ClassVar[str] = "levenshtein"
    summary: ClassVar[str] = "Completes given words by rounds of deletion, new places, and filling those."
    kinds: ClassVar[tuple[str, ...]] = ("levenshtein",)

    def complete(self, growing: Growing) -> None:
        """Do rounds until nothing changes."""
        rows = list(range(len(growing.sketches)))
        for turn in range(self.rounds):
            gone = self._delete(growing, rows) if turn else set[int]()
            made = self._make_places(growing, rows)
            if made:
                self._fill(growing, made)
            rows = [row for row in rows if row in gone or row in made]
            if not rows:
                return

    def _delete(self, growing: Growing, rows: list[int]) -> set[int]:
        goes, found = growing.look(rows)[1], set[int]()
        for place, row in enumerate(rows):
            sketch = growing.sketches[row]
            leaves = (goes[place, 1 : len(sketch.tokens) + 1] > 0).tolist()
            for at in range(len(leaves) - 1, -1, -1):
                if leaves[at] and not sketch.is_given[at]:
                    growing.delete(row, at)
                    found.add(row)
            for at in range(len(sketch.tokens) - 1, 0, -1):  # what goes on with a given word that it stood apart from
                while at < len(sketch.tokens) and growing.is_joined(row, at):
                    growing.delete(row, at)
        return found

    def _make_places(self, growing: Growing, rows: list[int]) -> list[int]:
        counts, made = growing.look(rows)[2], []
        medians = (counts.softmax(-1).cumsum(-1) < 0.5).sum(-1).tolist()
        for place, row in enumerate(rows):
            is_open = growing.sketches[row].is_open
            wanted = [medians[place][slot] * is_open[slot] for slot in range(len(is_open))]
            for slot in range(len(wanted) - 1, -1, -1):
                num = min(wanted[slot], growing.left(row))
                if num:
                    growing.insert(row, slot, [HOLE] * num, [counts[0, 0]] * num)
                    made.append(row)
        return sorted(set(made))

    def _fill(self, growing: Growing, rows: list[int]) -> None:
        laws = growing.look(rows)[0]
        for place, row in enumerate(rows):
            for at, token in enumerate(growing.sketches[row].tokens):
                if token == HOLE:
                    growing.put(row, at, int(laws[place, at + 1].argmax()), laws[place, at + 1])
