"""Write several places behind one full pass, one by one, each drawn from what a small layer says after the last.

Paper: "Enabling Approximate Joint Sampling in Diffusion LMs" (2025), arXiv 2509.22738. The model's pass gives laws and
    last states; a trained layer reads the states and the tokens written since, and corrects the laws of the rest.
Guarantee: approximate. per_pass=1 is masked-diffusion, token for token.
Cost: one forward per `per_pass` tokens, over what the cache does not hold, and `per_pass` - 1 passes of the layer.
Differences: the layer sees the places that the pass asked, whose states know the text around them, not the whole text;
    sampler=none draws from the pass's own laws: marginals, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from outpace.canvas import ORDERS, Advance, Copy, Parts, Ranked, Reading, Rule, read
from outpace.canvas.advance import keep, write
from outpace.canvas.row import CanvasRow
from outpace.errors import CapabilityError
from outpace.methods.base import Paper
from outpace.methods.diffusion.base import CanvasBatch, CanvasMethod, ReadCopy
from outpace.models.sampler_layer import SamplerLayer, corrected, read_sampler
from outpace.setting import setting
from outpace.types import Context, Needs, Outputs, Scores, View

__all__ = ["JointSampler"]


@dataclass
class _Read:
    """What this forward says of a row, and the states that the layer reads; `CanvasMethod.readers` gives `reader`."""

    reader: ReadCopy
    last: Tensor | None
    layer: SamplerLayer | None
    target: Any

    def __call__(self, copy: Copy) -> Reading:
        return self.reader(copy)


@dataclass(frozen=True)
class JointSampler(CanvasMethod):
    """Approximate joint sampling.

    Attributes:
        per_pass: places written behind one full pass.
        order: what is written first, as in `masked-diffusion`.
        sampler: directory of a layer that `outpace train stories-mask-joint` wrote; "none" = marginals.

    Raises:
        ConfigError: a setting outside its range.
    """

    per_pass: int = setting(2, least=1)
    order: str = setting("confidence", among=ORDERS)
    sampler: str = "none"

    name: ClassVar[str] = "joint-sampler"
    family: ClassVar[str] = "diffusion"
    summary: ClassVar[str] = (
        "Writes several positions per full pass, each known to a small layer that corrects the rest."
    )
    paper: ClassVar[Paper] = Paper(
        "Enabling Approximate Joint Sampling in Diffusion LMs",
        "Bansal, Sanghavi",
        2025,
        "2509.22738",
        166,
        "MAUVE, and its 7B models.",
        "outpace train stories-mask-joint",
    )

    @property
    def rule(self) -> Rule:
        """The best-ranked place."""
        return Ranked(self.order, 1)

    @property
    def needs(self) -> Needs:
        """A masked model; its last states where a layer reads them."""
        return replace(super().needs, outputs=Outputs(has_last=self.sampler != "none"))

    def start(self, context: Context) -> CanvasBatch:
        """Return the rows' canvases, and the layer.

        Raises:
            ModelError: there is no such layer.
            CapabilityError: it was trained on another model.
        """
        batch = super().start(context)
        return batch if self.sampler == "none" else replace(batch, extra=_fitting(self.sampler, context.target))

    def readers(self, scores: Scores, view: View, state: CanvasBatch) -> list[ReadCopy]:
        """Return, per row, what reads it, and what its correction needs."""
        last = [None] * len(state.canvases) if scores.last is None else list(scores.last)
        found = zip(super().readers(scores, view, state), last, strict=True)
        return [_Read(reader, states, state.extra, state.target) for reader, states in found]

    def take(self, copies: Sequence[Copy], reader: ReadCopy, parts: Parts) -> Advance | None:
        """Write place after place of the block; None = a law is none."""
        assert isinstance(reader, _Read)
        before = row = copies[0].row
        reading = reader(copies[0])
        first = reading
        for number in range(self.per_pass):
            if reading.is_broken:
                return None
            after = write(row, reading, parts)
            is_same = after.visit == row.visit
            row = after
            if number + 1 == self.per_pass or is_same or after.base > before.base:
                break
            reading = _after(first, reader, row, parts)
        return keep(before, row, copies[0].window, parts)


def _after(first: Reading, reader: _Read, row: CanvasRow, parts: Parts) -> Reading:
    """Return what is known of the places still open, drawn as the row is now."""
    mask, tokens = parts.canvas.mask_id, torch.from_numpy(row.tokens[first.places])
    is_open = (tokens == mask) & torch.from_numpy(first.places < row.live())
    logits = first.logits
    if reader.layer is not None and reader.last is not None:
        device, places = logits.device, torch.from_numpy(first.places)
        said = torch.where(tokens == mask, -1, tokens).to(device)
        with torch.no_grad():
            states = reader.last[None, : len(places)]
            found = corrected(reader.layer, reader.target, states, said[None], places[None].to(device))[0]
        logits = found.to(logits).masked_fill(logits.isneginf(), float("-inf"))
    return read(
        logits[is_open.to(logits.device)], first.places[is_open.numpy()], row, parts.canvas, first.sampler, None
    )


def _fitting(name: str, target: Any) -> SamplerLayer:
    layer = _opened(str(Path(name).resolve()), target.device)
    vocab = target.capabilities.vocab_size
    if layer.config.vocab != vocab:
        raise CapabilityError(
            f"The sampler layer {name} was trained with {layer.config.vocab} tokens, the model has {vocab}.",
            "Train one on this model.",
        )
    return layer


@lru_cache(maxsize=4)
def _opened(directory: str, device: torch.device) -> SamplerLayer:
    return read_sampler(Path(directory)).to(device)
