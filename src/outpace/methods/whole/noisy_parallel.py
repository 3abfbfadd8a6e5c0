"""Draw several fertilities, write the text of each in parallel, and let a teacher choose among the texts.

Paper: Gu et al. (2018), arXiv 1711.02281, section 4.2, noisy parallel decoding.
Guarantee: approximate: of the candidates, the one that the teacher finds likeliest.
Cost: one pass of the network, its decoder over `samples` rows a text; 1 forward of the teacher, of as many rows.
Differences: the teacher's log-probability is divided by the length to the power of `length_penalty`, for sums favour
    short texts; 0 = the paper's. Draws depend on the source and `seed` alone, so a row alone equals itself in a batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from outpace.draft.whole import text_scores
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.fertility import Fertility, copies
from outpace.models.nar.model import NarModel
from outpace.setting import setting
from outpace.types import Context, Needs

__all__ = ["NoisyParallel"]


@dataclass(frozen=True)
class NoisyParallel(WholeMethod):
    """Noisy parallel decoding.

    Attributes:
        teacher: the model that chooses: a zoo name, directory or hub id, which has to be named.
        samples: candidates of a text; the first is that of the likeliest fertilities.
        length_penalty: what the teacher's scores are divided by: the length to this power.
        seed: of the draws.
    """

    teacher: str = "auto"
    samples: int = setting(5, least=1)
    length_penalty: float = setting(1.0, least=0)
    seed: int = setting(0, least=0)

    name: ClassVar[str] = "noisy-parallel"
    summary: ClassVar[str] = "Writes a text for each of several drawn fertilities; a teacher chooses."
    kinds: ClassVar[tuple[str, ...]] = ("fertility",)
    runs_alone: ClassVar[bool] = True

    @property
    def needs(self) -> Needs:
        """A one-pass model, and a teacher of any vocabulary."""
        return replace(super().needs, models=("teacher",), has_text=True)

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Return the laws of each row's best candidate."""
        assert isinstance(model.net, Fertility) and context.cache is not None
        run = model.begin(context.sources)
        every = torch.arange(len(context.sources), device=model.device).repeat_interleave(self.samples)
        run.extra = {"law": run.extra["law"][every]}
        run.sources, run.is_real, run.states = (part[every] for part in (run.sources, run.is_real, run.states))
        fertilities = self._drawn(run.extra["law"], context.sources)
        run.inputs, run.is_place = copies(run.states, fertilities, run.is_real, model.net.config.max_positions)
        outputs = model.net.finish(run)
        context.cache.counter.add(run.is_place.numel(), 1)
        laws = [model.ended(law) for law in model.net.laws(outputs, run.is_place)]
        scores = text_scores(context, "teacher", [law.argmax(-1).tolist() for law in laws], self.length_penalty)
        return [laws[at] for at in _best(scores, self.samples)]

    def _drawn(self, law: Tensor, sources: Sequence[list[int]]) -> Tensor:
        """Return fertilities [B * samples, S], the likeliest ones first in each group."""
        found = law.argmax(-1)
        for row, source in enumerate(sources):
            noise = torch.Generator().manual_seed(zlib.crc32(repr((self.seed, source)).encode()))
            for at in range(row * self.samples + 1, (row + 1) * self.samples):
                probs = law[at, : len(source)].exp().cpu()
                found[at, : len(source)] = torch.multinomial(probs, 1, generator=noise)[:, 0].to(found.device)
        return found


def _best(scores: Tensor, samples: int) -> list[int]:
    groups = scores.view(-1, samples)
    return (groups.argmax(1) + samples * torch.arange(len(groups))).tolist()
