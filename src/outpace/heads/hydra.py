"""Heads that know what was drafted before them: each reads the state and the embeddings of the path so far.

Paper: Ankner et al. (2024), arXiv 2402.05109, Hydra. Head k turns [h; e_1; ...; e_(k+1)], the state of the token before
the last one and the embeddings of the last token and of k drafted ones, into the law of the next (section 3). Hydra++
(section 4): more blocks per head, a decoder layer over the states of the whole text before the heads (`prefix`), and
the target's law as the teacher (`teacher`).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.layer import DecoderLayer, PrefixDrafter, RmsNorm, Sight, causal_sight
from outpace.heads.medusa import Block
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig, Lesson, shifted
from outpace.heads.slots import Options, SlotNet, slot_lesson
from outpace.types import Context

__all__ = ["HydraNet"]


class Joint(nn.Module):
    """R x + SiLU(W x + b), from several vectors side by side to one; begun as the first of them."""

    def __init__(self, parts: int, size: int) -> None:
        super().__init__()
        self.linear, self.res_connection = nn.Linear(parts * size, size), nn.Linear(parts * size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.res_connection.bias)
        with torch.no_grad():
            self.res_connection.weight.copy_(torch.eye(size, parts * size))

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., size] of [..., parts * size]."""
        found: Tensor = self.res_connection(x) + F.silu(self.linear(x))
        return found


class Prefix(nn.Module):
    """A decoder layer and a norm; the original files call it a model of one layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers, self.norm = nn.ModuleList([DecoderLayer(size)]), RmsNorm(size)


class HydraNet(SlotNet):
    """Settings: depth (heads), blocks (per head), prefix, teacher, own_output (an output matrix per head)."""

    kind: ClassVar[str] = "hydra"
    options: ClassVar[Options] = {
        "blocks": (1, 1),
        "prefix": (False, 0),
        "teacher": (False, 0),
        "own_output": (False, 0),
    }

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        # The original files number the parts of a head with dropouts between them.
        self.hydra_mlp = nn.ModuleList()
        for k in range(config.depth):
            more = [part for _ in range(self.option("blocks") - 1) for part in (nn.Dropout(0.0), Block(size))]
            self.hydra_mlp.append(nn.Sequential(nn.Dropout(0.0), Joint(k + 2, size), *more))
        if self.option("prefix"):
            self.prefix_embeding_layer = Prefix(size)
        if self.option("own_output"):
            outputs = [nn.Linear(size, config.draft_vocab or config.vocab_size) for _ in range(config.depth)]
            self.hydra_lm_head = nn.ModuleList([nn.Sequential(nn.Dropout(0.0), output) for output in outputs])

    def begin(self, frozen: Frozen) -> None:
        """Let output matrices of the heads' own begin as the target's, and the layer as one that changes nothing."""
        if self.option("prefix"):
            self.prefix_embeding_layer.layers[0].quieten()  # type: ignore[operator]
        with torch.no_grad():
            for head in self.hydra_lm_head if self.option("own_output") else ():
                head[1].weight.copy_(frozen.logits(torch.eye(self.config.hidden_size)).T)  # type: ignore[index]
                nn.init.zeros_(head[1].bias)  # type: ignore[index]

    def read(self, states: Tensor, embedded: Tensor, sight: Sight, buffers: Any = ()) -> Tensor:
        """Return the states after the layer, [B, T, hidden]."""
        del embedded
        x: Tensor = self.prefix_embeding_layer.norm(self.prefix_embeding_layer.layers[0](states, sight, buffers))
        return x

    def law(self, depth: int, x: Tensor, output: Any) -> Tensor:
        """Return the logits [..., K] of one head.

        Args:
            depth: which head.
            x: [..., (depth + 2) * hidden] state and embeddings.
            output: the target's output matrix, as a function.
        """
        x = self.hydra_mlp[depth](x)
        found: Tensor = self.hydra_lm_head[depth](x) if self.option("own_output") else output(x)
        return found

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K], after the text's own tokens."""
        x = batch.states
        parts = [self.read(x, x, causal_sight(batch.tokens)) if self.option("prefix") else x]
        logits = []
        for k in range(self.config.depth):
            parts.append(batch.frozen.embed(shifted(batch.tokens, k + 1)[0]))
            logits.append(self.law(k, torch.cat(parts, -1), batch.frozen.logits))
        return logits

    def loss(self, batch: Batch) -> Lesson:
        """Return the cross-entropy against the text, or against the target's law."""
        return slot_lesson(self.laws(batch), batch, has_teacher=bool(self.option("teacher")))

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter from laws of paths."""
        return (PrefixDrafter if self.option("prefix") else SlotDrafter).begin_with(model, context)

    def slots(self, model: HeadModel, states: Tensor, token: Tensor) -> Tensor:
        """Return the states [B, 1, hidden]; the heads wait for the path."""
        del model, token
        return states.unsqueeze(1)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K] of the head of each path's length."""
        embedded = model.embed(path.clamp(min=0))
        found = None
        for k in depth.unique().tolist():
            at = depth == k
            state = slots.expand(-1, path.shape[1], -1)[at]
            law = self.law(k, torch.cat([state, embedded[at][:, : k + 1].flatten(1)], -1), model.logits)
            found = law.new_zeros(*depth.shape, law.shape[-1]) if found is None else found
            found[at] = law
        assert found is not None
        return found
