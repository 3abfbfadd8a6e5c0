"""Which texts a one-pass network learns from: raw ones, targets that a teacher writes, sources that another one writes.

A teacher from source to target makes targets plain, and loses their rare words. A teacher from target to source keeps
the targets as people wrote them, and makes the sources plain: rare target words then have sources that point to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from outpace.errors import ConfigError
from outpace.papers import Paper
from outpace.train.pairs import Pair
from outpace.train.translation.network import PairNetwork

__all__ = ["Mixture", "Teacher"]

PAPERS = (
    Paper(
        "Rejuvenating Low-Frequency Words: Making the Most of Parallel Data in Non-Autoregressive Translation",
        "Ding et al.",
        2021,
        "2106.00903",
        161,
        "",
        "outpace train nar-ctc-bidirectional",
    ),
)
Teacher = tuple[PairNetwork, Tokenizer, Path]  # its network, its tokenizer, where its texts are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The texts of a recipe, from those of its source.

    Paper: Ding et al. (2021), arXiv 2106.00903, section 3: pre-training on raw texts is a recipe of its own, the parent
    of one with both distilled ones.

    Attributes:
        forward: recipe of the teacher that writes targets; "" = none.
        reverse: recipe of the teacher that writes sources; "" = none.
        is_raw: the texts as they are come too.
    """

    forward: str = ""
    reverse: str = ""
    is_raw: bool = False

    def __post_init__(self) -> None:
        """Refuse a mixture of nothing."""
        if not (self.forward or self.reverse or self.is_raw):
            raise ConfigError("A mixture names no texts.", "Give a teacher, or the raw texts.")

    def pairs(
        self, raw: Sequence[Pair], open_teacher: Callable[[str], Teacher], name: str, device: torch.device
    ) -> list[Pair]:
        """Return the pairs to train on.

        Args:
            raw: as people wrote them.
            open_teacher: opens the teacher of a recipe.
            name: of the raw texts and their direction; what a teacher writes is kept under it.
            device: where teachers run.
        """
        # Both are opened before either writes: one that is missing is told at once.
        teachers = {teacher: open_teacher(teacher) for teacher in (self.forward, self.reverse) if teacher}
        found = list(raw) if self.is_raw else []
        if self.forward:
            found += _written(teachers[self.forward], raw, f"{name}.jsonl", device)
        if self.reverse:
            swapped = [(target, source) for source, target in raw]
            written = _written(teachers[self.reverse], swapped, f"{name}-reverse.jsonl", device)
            found += [(source, target) for target, source in written]
        return found


def _written(teacher: Teacher, pairs: Sequence[Pair], name: str, device: torch.device) -> list[Pair]:
    from outpace.train.translation.written import written_pairs  # it imports the trainer's parts

    network, tokenizer, store = teacher
    return written_pairs(network.to(device), tokenizer, pairs, store / name, device)
