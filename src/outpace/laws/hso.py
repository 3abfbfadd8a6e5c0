"""The prompt's cached states are moved so that the prompt itself is likelier, before the text is written behind them.

Paper: Yoshida, Gimpel (2021), Reconsidering the Past: Optimizing Hidden States in Language Models, arXiv 2112.08653
    (chapter of Yoshida's thesis, arXiv 2408.16241): the prompt is read in windows; the gradient of each window's loss
    with respect to the keys and values of what came before moves these, and no weight.
Guarantee: none against the model's own texts; the law depends on the prompt alone, so that drafts obey it. `steps=0` is
    plain decoding, token for token.
Cost: per window and step a forward and a backward pass of the prompt; none per token written. No shared prefixes.
Differences: plain gradient steps, where the paper's are Adam's; the window's own entries are read anew behind a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.cache import Cache, Counter
from outpace.errors import CapabilityError
from outpace.laws.base import Control, Site
from outpace.laws.beside import Around
from outpace.models.transformer import Transformer
from outpace.papers import Paper
from outpace.setting import setting
from outpace.types import NO_OUTPUTS, Adapter, Outputs, Scores

__all__ = ["HiddenStates", "Optimised"]

PAPERS = (
    Paper(
        "Reconsidering the Past: Optimizing Hidden States in Language Models",
        "Yoshida, Gimpel",
        2021,
        "2112.08653",
        None,
        "Few-shot classification with models of billions of parameters was not run.",
        command="python -m outpace.bench.past",
    ),
)


class Optimised(Around):
    """A target whose prompts' entries are moved by gradient steps.

    Args:
        target: a causal decoder on the torch path.
        law: the settings.

    Raises:
        CapabilityError: the target has no gradient.
    """

    def __init__(self, target: Adapter, law: HiddenStates) -> None:
        super().__init__(target)
        if not isinstance(target, Transformer) or target.path != "torch":
            raise CapabilityError(
                f"The {target.path} path of this model has no gradient.",
                "Load it with dtype=float64 (--dtype float64).",
            )
        if target.capabilities.attention != "causal" or target.capabilities.is_encoder_decoder:
            raise CapabilityError("The past is optimised for causal decoders.", "Use one.")
        self.own, self.law = target, law
        self.reads_at_once = target.capabilities.max_positions  # windows do not depend on how a prompt is cut

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache of the target that knows how long the rows' prompts are."""
        cache = self.target.new_cache(rows, capacity, counter)
        cache.extra = [torch.zeros(rows, 1, dtype=torch.int64, device=cache.device)]
        return cache

    def note_prompts(self, cache: Cache, prompts: Sequence[int]) -> None:
        """Note how long prompts are."""
        cache.extra = [torch.tensor([[size] for size in prompts], dtype=torch.int64, device=cache.device)]

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run one forward; prompts that it reads are read again behind a past that was moved."""
        self.check(outputs, skip)
        scores = self.target.score(tokens, position, visible, cache, ask, outputs, inputs)
        logits = scores.logits
        for row, (length, (prompt,)) in enumerate(zip(cache.lengths, cache.extra[-1].tolist(), strict=True)):
            text = tokens[row, : int((position[row] >= 0).sum())]
            count = min(prompt - 1, len(text))  # the prompt's last token may come by itself, and is read plainly
            if length or count <= self.law.window:
                continue
            entries, told = self.read(text, count)
            cache.write(row, 0, entries.read(0, range(len(text))))
            if outputs.has_logits:
                asked = torch.arange(tokens.shape[1], device=tokens.device) if ask is None else ask[row]
                behind = told[(asked - count).clamp(0, len(told) - 1)]
                logits = logits.clone()
                logits[row] = torch.where((asked >= count)[:, None], behind, logits[row])
        return replace(scores, logits=logits)

    def read(self, text: Tensor, count: int) -> tuple[Cache, Tensor]:
        """Return a cache with a text's entries, the first `count` in windows and optimised, and the others' logits.

        Args:
            text: [T] token ids.
            count: tokens of the prompt.
        """
        cache = self.target.new_cache(1, len(text) + 1)
        for first in range(0, count, self.law.window):
            part = text[first : min(first + self.law.window, count)]
            for _ in range(self.law.steps if first and len(part) > 1 else 0):
                self._move(cache, part)
            self._read(cache, part)
        rest = text[count:]
        return cache, self._read(cache, rest) if len(rest) else torch.zeros(1, 1, dtype=self.dtype)

    def _read(self, cache: Cache, part: Tensor) -> Tensor:
        place = torch.arange(cache.lengths[0], cache.lengths[0] + len(part), device=part.device)
        logits = self.target.score(part[None], place[None], None, cache).logits[0]
        cache.keep([range(len(part))])
        return logits

    def _move(self, cache: Cache, part: Tensor) -> None:
        """Move the entries before a window by a step down its loss, summed over the tokens that it predicts itself."""
        first = cache.lengths[0]
        cache.reserve(first + len(part))
        place = torch.arange(first, first + len(part), device=part.device)
        with torch.enable_grad():
            past = [buffer.detach().clone().requires_grad_() for buffer in cache.buffers]
            logits = self.own.differentiable(part[None], place[None], cache, past)[0]
            loss = F.cross_entropy(logits[:-1], part[1:], reduction="sum")
            slopes = torch.autograd.grad(loss, past)
        least = max(0, first - self.law.reach) if self.law.reach else 0
        for buffer, slope in zip(cache.buffers, slopes, strict=True):
            buffer[:, :, least:first] -= self.law.rate * slope[:, :, least:first]


@dataclass(frozen=True)
class HiddenStates(Control):
    """Gradient steps on the prompt's past."""

    name: ClassVar[str] = "hso"
    summary: ClassVar[str] = "the prompt's cached states take gradient steps towards the prompt itself"
    is_model: ClassVar[bool] = True

    steps: int = setting(1, least=0, most=16)
    rate: float = setting(0.1, least=0, is_finite=True)
    window: int = setting(16, least=2)
    reach: int = setting(0, least=0, note="0 = all entries before the window")

    def target(self, site: Site) -> Adapter:
        """Return the target with a moved past."""
        return site.target if self.steps == 0 else Optimised(site.target, self)
