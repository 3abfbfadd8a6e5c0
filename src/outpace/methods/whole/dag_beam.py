"""Search a graph by a beam over beginnings of texts, whose paths are summed, with an n-gram model beside it.

Paper: Huang et al. (2022), arXiv 2205.07459, beam search.
Guarantee: approximate: another text than that of the likeliest links.
Cost: 1 pass of the network; in Python, `beam` beginnings times `candidates` tokens at each place; the n-gram model is
    counted once.
Differences: a score is divided by the length to the power of the penalty while it grows as well, so that beginnings of
    several lengths can be compared at one place; the authors keep a number of them per length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.language import Language, read_language
from outpace.models.nar.lattice import best_paths
from outpace.models.nar.model import NarModel, outputs_of
from outpace.models.nar.paths import beam_texts, no_path
from outpace.setting import setting
from outpace.types import Context

__all__ = ["DagBeam"]


@dataclass(frozen=True)
class DagBeam(WholeMethod):
    """Beam search in a graph.

    Attributes:
        beam: beginnings of texts kept at each place.
        candidates: tokens tried at each place.
        language: a text file, one sentence a line, that an n-gram model is counted on; "" = none.
        weight: of the n-gram model.
        length_penalty: what the score is divided by: the length to this power.
    """

    beam: int = setting(20, least=1)
    candidates: int = setting(5, least=1)
    language: str = ""
    weight: float = setting(0.1, least=0)
    length_penalty: float = setting(1.0, least=0)

    name: ClassVar[str] = "dag-beam"
    summary: ClassVar[str] = "Searches a graph by a beam, with an n-gram model beside it."
    kinds: ClassVar[tuple[str, ...]] = ("dag",)

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Return the laws of each row's best text, at the places where it likeliest stands."""
        assert context.cache is not None
        is_place, (said, links, *_) = outputs_of(context.cache)
        scorer, found = self._scorer(model, context), []
        for row, size in enumerate(is_place.sum(1).tolist()):
            given = said[row, :size], links[row, :size], self.beam, self.candidates
            texts = beam_texts(*given, scorer, self.weight, self.length_penalty)
            if not texts:
                raise no_path(row)
            found.append(model.ended(_laws(said[row, :size], links[row, :size], texts[0][1])))
        return found

    def _scorer(self, model: NarModel, context: Context) -> Language | None:
        if not self.language:
            return None
        if (tokenizer := context.tokenizers.get("target")) is None:
            raise ConfigError("The model has no tokenizer to read a text with.", "Leave `language` out.")
        return read_language(self.language, tokenizer, model.capabilities.vocab_size, model.end)


def _laws(said: Tensor, links: Tensor, text: tuple[int, ...]) -> Tensor:
    """Return what the places of a text's likeliest path say, its tokens on top: each takes the place of the top."""
    tokens = torch.tensor(text, dtype=torch.int64, device=said.device)
    sizes = (torch.tensor([count], device=said.device) for count in (len(said), len(text)))
    (path,), _ = best_paths(said[:, tokens].T[None], links[None], *sizes)
    laws, at = said[path].clone(), torch.arange(len(tokens), device=said.device)
    tops = laws.argmax(-1)
    laws[at, tops], laws[at, tokens] = laws[at, tokens].clone(), laws[at, tops].clone()
    return laws
