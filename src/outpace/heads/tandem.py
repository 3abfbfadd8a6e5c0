"""A small model with layers of its own that attends to the target's states of all tokens but those of its block.

Paper: Nair et al. (2024), arXiv 2402.08644, Tandem Transformers. The target reads text in blocks; the small model sees
its states, projected to each of its own layers, in place of its own keys and values, and its own only for the tokens of
the running block: those drafted since the target last looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.heads.decoder import Layer, Masked, Norm, Sight, Unrolled
from outpace.heads.feature import FeatureNet, Scorer
from outpace.heads.net import Batch, HeadConfig, Lesson
from outpace.heads.unroll import Tally, soft_loss

__all__ = ["TandemNet"]


class TandemNet(FeatureNet):
    """Tandem. Settings: those of `FeatureNet`, and those below.

    layers: the target's states that are read, beside the last hidden state.
    has_states: False = a small model of the same size that sees nothing of the target, to compare with.
    """

    kind: ClassVar[str] = "tandem"
    extra: ClassVar[dict[str, Any]] = {"has_states": True}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([Layer(self.shape, index) for index in range(self.own_layers)])
        self.norm = Norm(self.width, self.shape.eps)
        self.tail = int(bool(config.settings["has_states"]))
        if self.tail:
            count, width, eps = self.own_layers, self.width, self.shape.eps
            self.project = nn.ModuleList([nn.Linear(config.states_size, width, bias=False) for _ in range(count)])
            self.project_norm = nn.ModuleList([Norm(width, eps) for _ in range(count)])

    @classmethod
    def taps(cls, num_layers: int, chosen: Sequence[int] | None) -> tuple[tuple[int, ...], bool]:
        """Return the middle layer, or those chosen; the last hidden state is always read."""
        return (num_layers // 2,) if chosen is None else tuple(int(layer) for layer in chosen), True

    def fuse(self, states: Tensor) -> Tensor:
        """Return the states as they are: each layer projects them for itself."""
        return states

    def run(self, embeds: Tensor, features: Tensor, sight: Sight) -> Tensor:
        """Return [B, T, hidden], after the last norm; where `sight.is_text` it means nothing, but for its entries."""
        x, turns = embeds, self.rotation.at(sight.position, embeds)
        for index, layer in enumerate(self.layers):
            told = self.project_norm[index](self.project[index](features)) if self.tail else None
            x = layer(x, self.rotation, turns, sight, told=told)
        return self.norm(x)  # type: ignore[no-any-return]

    def feedback(self, out: Tensor) -> Tensor:
        """Return zeros: drafted tokens have no states of the target's."""
        return out.new_zeros(*out.shape[:-1], self.config.states_size)

    def tail_entries(self, scorer: Scorer, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text's last token, whose states nobody knows: it begins the running block."""
        embeds = self.embed(scorer, last.unsqueeze(1))
        return embeds, embeds.new_zeros(len(last), 1, self.config.states_size)

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy against the target's laws, in blocks as long as the drafts."""
        frozen = batch.frozen
        if not self.tail:
            return self._plain_loss(batch)
        rows, size = batch.tokens.shape
        block, place = self.config.depth, torch.arange(size, device=batch.tokens.device)
        offset = 1 + (batch.step % block if self.training else 0)
        number = torch.div(place - offset, block, rounding_mode="floor")
        own = (number.unsqueeze(1) == number) & (place.unsqueeze(1) >= place)
        text = number.unsqueeze(1) > number
        # The text's entries stand before the block's own; what they see does not matter.
        visible = torch.cat([torch.eye(2 * size, dtype=torch.bool)[:size].to(own.device), torch.cat([text, own], 1)])
        is_text = (torch.arange(2 * size, device=own.device) < size).expand(rows, -1)
        embeds = self.embed(frozen, batch.tokens)
        sight = Masked(torch.cat([place, place]).expand(rows, -1), visible, is_text)
        out = self.run(torch.cat([embeds, embeds], 1), torch.cat([batch.states, batch.states], 1), sight)[:, size:-1]
        tally, logits = Tally(batch, 0), frozen.logits(out)
        with torch.no_grad():
            law = frozen.logits(batch.last[:, :-1]).softmax(-1)
        tally.add(soft_loss(logits, law, tally.weight(offset)))
        tally.count_blocks(0, logits, block, offset)
        return tally.lesson()

    def _plain_loss(self, batch: Batch) -> Lesson:
        embeds = self.embed(batch.frozen, batch.tokens[:, 1:])
        sight, tally = Unrolled(len(embeds), embeds.shape[1], embeds.device), Tally(batch)
        sight.advance()
        logits = batch.frozen.logits(self.run(embeds, batch.states[:, :-1], sight))
        with torch.no_grad():
            law = batch.frozen.logits(batch.last[:, 1:]).softmax(-1)
        tally.add(soft_loss(logits, law, tally.weight(0)))
        for step in range(self.config.depth):
            tally.count(step, logits)
        return tally.lesson()

    def laws(self, scorer: Scorer, out: Tensor, ahead: Tensor) -> Tensor:
        """Return logits [..., K] of the next token."""
        del ahead
        return scorer.logits(out[..., -1, :])
