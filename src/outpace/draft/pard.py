"""A small causal model that was taught to fill masks drafts several tokens in one forward.

Source: An et al. (2025), arXiv 2504.18583, PARD: behind the text stand as many masks as tokens are drafted, less one,
and each output speaks of the next place. Masks are forgotten at once; the text stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.draft.reading import Drafter
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up
from outpace.run.tree import TokenTree, ancestors
from outpace.types import Proposal, View

__all__ = ["ParallelDrafter"]

_PENDING = 64  # tokens of the text that are read in the forward that drafts; more are read before it


@dataclass
class ParallelDrafter(Drafter):
    """A causal model and its mask.

    Attributes:
        mask: the token that stands for one to be guessed.
        made: logits of the places ahead [B, D, V] in the step at hand.
        drafted: tokens of the running chains.
    """

    mask: int
    made: Tensor | None = field(default=None, init=False)
    drafted: int = field(default=0, init=False)

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Take in the texts and the masks behind them in one forward; return the logits of the first place, [B, V]."""
        cache, most = self.cache, max(reach)
        cache.truncate([len(text) - 1 for text in view.texts])
        rows = zip(view.texts, cache.lengths, reach, strict=True)
        texts = [text if ahead > 0 else text[:held] for text, held, ahead in rows]
        if any(len(text) - held > _PENDING for text, held in zip(texts, cache.lengths, strict=True)):
            for _ in catch_up(self.adapter, cache, texts):
                pass
        pending = [text[length:] for text, length in zip(texts, cache.lengths, strict=True)]
        masks = torch.full((len(texts), most - 1), self.mask, dtype=torch.int64, device=self.device)
        layout = lay_out(pending, cache.lengths, Proposal(masks, [max(0, ahead - 1) for ahead in reach]))
        scores = self.adapter.score(layout.tokens, layout.position, layout.visible, cache, layout.ask)
        cache.keep([range(len(tokens)) for tokens in pending])
        self.made, self.drafted = scores.logits, 0
        return scores.logits[:, 0]

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        """Return the logits of the places after some nodes of a tree, [B, F, V]; no forward is run."""
        del is_real
        assert self.made is not None  # texts came first
        depth = ancestors(tree.parent).sum(-1).gather(1, nodes).clamp(max=self.made.shape[1] - 1)
        return self.made.gather(1, depth.unsqueeze(-1).expand(-1, -1, self.made.shape[-1]))

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        """Return the logits of the next place, [B, V]; what was drafted there before plays no part."""
        del token, place, running
        assert self.made is not None  # texts came first
        self.drafted += 1
        return self.made[:, min(self.drafted, self.made.shape[1] - 1)]
