"""Levenshtein networks: a text is edited by deletions, by counts of new places in each slot, and by filling those.

Paper: Gu, Wang, Zhao (2019), arXiv 1905.11006. Trained as there: counts and fills on targets with some tokens left
out, deletions on what the network itself filled in; labels are the fewest edits (`stages.edits`), and given tokens are
never deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import stages
from .network import UNSAID, Pass
from .sketch import Sketch
from .sketched import NEVER, Sketched, SketchedConfig, certain_laws

__all__ = ["HOLE", "Levenshtein", "LevenshteinConfig"]

HOLE = 1  # the mask token: a place to be filled


@dataclass(frozen=True, slots=True, kw_only=True)
class LevenshteinConfig(SketchedConfig):
    """Sizes of a Levenshtein network.

    Attributes:
        most: new places in a slot in one round.
    """

    most: int = 24


class Levenshtein(Sketched):
    """A network with three heads: whether each token goes, how many places each slot gets, what stands at each."""

    Config = LevenshteinConfig
    kind: ClassVar[str] = "levenshtein"

    def __init__(self, config: LevenshteinConfig) -> None:
        super().__init__(config)
        self.goes = nn.Linear(config.width, 1)
        self.counts = nn.Linear(2 * config.width, config.most + 1)

    def finish(self, run: Pass) -> list[Tensor]:
        """Return log-probabilities [B, L, V] of places, logits [B, L] of deletion, those of counts [B, L, most + 1].

        In training the first is empty: what stands at places is asked of other places.
        """
        hidden = self.decode(run)
        counts = self.counts(self.slots(hidden))
        closed = torch.full_like(counts[:1, :1], NEVER)
        closed[..., 0] = 0.0
        counts = torch.where(run.extra["is_open"][:, :, None], counts, closed)
        goes = self.goes(hidden)[..., 0].masked_fill(run.extra["is_given"], NEVER)
        if self.training:
            return [hidden[..., :0], goes, counts, *self.kept(run)]
        is_behind = F.pad(run.extra["is_given"][:, :-1], (1, 0))
        return [self.bordered(self.written(hidden), is_behind), goes, counts, *self.kept(run)]

    def trained(self, run: Pass) -> list[Sketch]:
        """Leave tokens out of each target by chance, none that was given; a share of all drawn for each."""
        sketches, missing = [], []
        told = self.told(run)
        for text, given, places in told:
            at = dict(zip(places, given.is_glued, strict=True))
            stays = (torch.rand(len(text)) < torch.rand(())).tolist()
            kept = [place for place in range(len(text)) if stays[place] or place in at]
            glued = [at.get(place, False) for place in kept]
            sketches.append(Sketch([text[place] for place in kept], [place in at for place in kept], glued))
            missing.append([[text[place] for place in span] for span in stages.spans(kept, len(text))])
        run.extra["texts"], run.extra["missing"], run.extra["state"] = [row[0] for row in told], missing, sketches
        return sketches

    def nll(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return the losses [B] of counts, of fills, of deletions of one's own fills, and of the plan."""
        missing, sketches, rows = run.extra["missing"], run.extra["state"], range(len(run.sources))
        # 1) How many places each slot gets.
        wanted = _padded([[min(len(span), self.config.most) for span in spans] for spans in missing], outputs[2])
        loss = self.plan_loss(run) + _entropy(outputs[2], wanted)
        # 2) What stands there.
        texts = [_fill(sketch, spans) for sketch, spans in zip(sketches, missing, strict=True)]
        part = self.laid(run, sketches, rows)
        is_hole = part.extra["tokens"] == HOLE
        laws = self.written(self.decode(part)[is_hole])
        wanted = _padded([[UNSAID, *text] for text in texts], is_hole)[is_hole]
        row_of = is_hole.nonzero()[:, 0]
        loss = loss.index_add(0, row_of, F.nll_loss(laws, wanted, reduction="none").to(loss.dtype))
        # 3) Which of one's own fills must go again.
        own, labels = iter(laws.argmax(-1).tolist()), []
        for sketch, text in zip(sketches, run.extra["texts"], strict=True):
            sketch.tokens = [next(own) if token == HOLE else token for token in sketch.tokens]
            labels.append([UNSAID, *_goes(sketch, text)])
        _, goes, *_ = self.finish(self.laid(run, sketches, rows))
        wanted = _padded(labels, goes)
        each = F.binary_cross_entropy_with_logits(goes.float(), wanted.clamp(min=0).float(), reduction="none")
        return loss + torch.where(wanted >= 0, each, 0.0).sum(1)

    def aligned(self, outputs: Sequence[Tensor], run: Pass) -> Tensor:
        """Return no symbol: what a place says depends on the holes of a later pass."""
        return torch.full_like(run.extra["tokens"], UNSAID)

    def laws(self, outputs: Sequence[Tensor], is_place: Tensor) -> list[Tensor]:
        """Return the given tokens as they stand: a text takes rounds of the rule `levenshtein`."""
        _, sketches = self.resume(outputs, is_place)
        return [certain_laws(sketch.tokens, self.config.vocab_size, outputs[0]) for sketch in sketches]


def _fill(sketch: Sketch, spans: Sequence[Sequence[int]]) -> list[int]:
    """Put holes where tokens are missing, and return the text with what belongs there."""
    text, before, is_open = list[int](), list(sketch.tokens), sketch.is_open
    for slot in range(len(before), -1, -1):
        tokens = list(spans[slot]) if is_open[slot] else []
        if tokens:
            sketch.insert(slot, [HOLE] * len(tokens))
        text = [*tokens, *before[slot : slot + 1], *text]
    return text


def _goes(sketch: Sketch, text: Sequence[int]) -> list[int]:
    """Return 1 for each token that the fewest edits delete, 0 for one that stays, UNSAID for a given one."""
    stays, _ = stages.edits(sketch.tokens, text, sketch.is_given)
    return [UNSAID if given else int(not stay) for given, stay in zip(sketch.is_given, stays, strict=True)]


def _padded(rows: Sequence[Sequence[int]], like: Tensor) -> Tensor:
    size = like.shape[1]
    return torch.tensor([[*row, *[UNSAID] * (size - len(row))] for row in rows], device=like.device)


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    each = F.cross_entropy(logits.float().transpose(1, 2), wanted, reduction="none", ignore_index=UNSAID)
    return each.sum(1)
