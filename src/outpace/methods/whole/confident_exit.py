"""Each token of a text is taken from the first layer that is confident of it; the layers above leave it alone.

Paper: Li et al. (2022), arXiv 2210.13304 (ELMER), section 3.2.
Guarantee: approximate; with `threshold` 1 the text after all layers, bit for bit.
Cost: one pass of the network, each place up to its layer; a result notes their mean over its tokens.
Differences: confident is who gives the likeliest token a probability above `threshold`; the paper compares entropies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from outpace.methods.base import Paper
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.elmer import Elmer
from outpace.models.nar.model import NarModel
from outpace.setting import setting
from outpace.types import Context

__all__ = ["ConfidentExit"]


@dataclass(frozen=True)
class ConfidentExit(WholeMethod):
    """Early exit per token.

    Attributes:
        threshold: probability of the likeliest token above which a place stops; 1 = no place stops early.
    """

    threshold: float = setting(0.9, least=0, most=1)

    name: ClassVar[str] = "confident-exit"
    summary: ClassVar[str] = "Takes each token of an ELMER from the first layer that is confident of it."
    kinds: ClassVar[tuple[str, ...]] = ("elmer",)
    runs_alone: ClassVar[bool] = True
    paper: ClassVar[Paper] = Paper(
        "ELMER: A Non-Autoregressive Pre-trained Language Model for Efficient and Effective Text Generation",
        "Li et al.",
        2022,
        "2210.13304",
        45,
        "Pre-training at its size, and its tasks of summarising, asking and chatting.",
        "outpace train nar-elmer-base && outpace train nar-elmer && python -m outpace.bench.exits runs/nar-elmer",
    )

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Return the laws of each place's layer, and note how many layers the texts took."""
        assert isinstance(model.net, Elmer) and context.cache is not None
        run = model.begin(context.sources)
        found, depth = model.net.exit(run, self.threshold)
        context.cache.counter.add(run.is_place.numel(), int(depth.max()))
        laws = [model.ended(law) for law in model.net.laws([found], run.is_place)]
        for notes, law, layers in zip(context.notes, laws, depth, strict=False):
            mean = layers[layers > 0][: len(law)].double().mean()
            notes.append(f"Layers of a token: {mean:.2f} of {len(model.net.decoder)} on average.")
        return laws
