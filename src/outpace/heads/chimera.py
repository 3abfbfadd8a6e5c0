"""A bottom layer for the last three tokens, and attention over the target's states of all tokens before them.

Paper: Zeng et al. (2024), arXiv 2402.15758, Chimera (section 3). The trigram encoder turns the embeddings of three
neighbouring tokens, in two steps of two, into one vector, so that what it makes of a token does not depend on more than
two before it. One layer then lets the newest vector see the target's own states of the text, and the vectors of the
tokens that the target has not read yet. Here a path is drafted token by token, and the newest state of the target joins
what enters the layer, where the paper drafts with several output heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.heads.draft import HeadDrafter
from outpace.heads.layer import DecoderLayer, PrefixDrafter, RmsNorm, Sight, causal_sight
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig
from outpace.heads.slots import Options, SlotNet
from outpace.types import Context, View

__all__ = ["ChimeraDrafter", "ChimeraNet"]


class Pair(nn.Module):
    """y + W silu(U [x; y]): of two neighbours one vector."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2 * size, size), nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., P - 1, size] of [..., P, size]."""
        later = x[..., 1:, :]
        found: Tensor = later + self.down(F.silu(self.up(torch.cat([x[..., :-1, :], later], -1))))
        return found


class ChimeraNet(SlotNet):
    """Settings: depth, inner (width of the layer's mlp; 0 = 2.75 times the target's)."""

    kind: ClassVar[str] = "chimera"
    options: ClassVar[Options] = {"inner": (0, 0)}

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.trigram = nn.Sequential(Pair(size), Pair(size))
        self.fuse = nn.Linear(2 * size, size, bias=False)
        self.state_norm = RmsNorm(size)
        self.layer = DecoderLayer(size, self.option("inner"))

    def begin(self, frozen: Frozen) -> None:
        """Let the target's state be all that is heard at first, as in Medusa's heads."""
        del frozen
        self.layer.quieten()
        size = self.config.hidden_size
        with torch.no_grad():
            self.fuse.weight.copy_(torch.cat([torch.zeros(size, size), torch.eye(size)], 1))

    def read(self, states: Tensor, embedded: Tensor, sight: Sight, buffers: Sequence[Tensor] = ()) -> Tensor:
        """Keep the keys and values of the target's states, and return the states."""
        del embedded
        attention = self.layer.self_attn
        attention.stage(*attention.keys_values(self.state_norm(states), sight.position), sight, buffers)
        return states

    def encoded(self, embedded: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the trigram encoder makes of tokens, and their keys and values, [B, T, H] and [B, N, T, D].

        Args:
            embedded: [B, T, 3, hidden] embeddings of each token and of the two before it, in their order.
            position: [B, T] int64 of the tokens.
        """
        x = self.trigram(embedded).squeeze(-2)
        return x, *self.layer.self_attn.keys_values(self.layer.input_layernorm(x), position)

    def answer(self, x: Tensor, state: Tensor, position: Tensor, keys: Tensor, values: Tensor, sees: Tensor) -> Tensor:
        """Return what the target's output matrix reads, [B, T, hidden].

        Args:
            x: [B, T, hidden] of the newest tokens, from `encoded`.
            state: [B, T, hidden] the newest state of the target before each.
            position: [B, T] int64.
            keys, values: [B, N, S, D] of states and of tokens.
            sees: [B, T, S] bool.
        """
        layer = self.layer
        x = self.fuse(torch.cat([x, state], -1))
        x = x + layer.self_attn.look(layer.input_layernorm(x), position, keys, values, sees)
        found: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
        return found

    def laws(self, batch: Batch) -> list[Tensor]:
        """Return per depth logits [B, T, K], after the text's own tokens."""
        states, sight = batch.states, causal_sight(batch.tokens)
        place, causal = sight.position, sight.visible
        embedded = batch.frozen.embed(F.pad(batch.tokens, (2, 0))).unfold(1, 3, 1).transpose(-1, -2)
        x, *own = self.encoded(embedded, place)
        of_states = self.layer.self_attn.keys_values(self.state_norm(states), place)
        keys, values = (torch.cat(pair, 2) for pair in zip(of_states, own, strict=True))
        logits = []
        for k in range(self.config.depth):
            # The token k + 1 behind place t sees the states up to t, and the tokens from t + 1 to itself.
            newest = F.pad(x[:, k + 1 :], (0, 0, 0, min(k + 1, x.shape[1])))
            after = place.unsqueeze(-1) + k + 1 >= place.unsqueeze(-2)
            sees = torch.cat([causal, after & ~causal], -1)
            logits.append(batch.frozen.logits(self.answer(newest, states, place + k + 1, keys, values, sees)))
        return logits

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter from laws of paths, which reads the whole text."""
        return ChimeraDrafter.begin_with(model, context)

    def after(
        self, output: Callable[[Tensor], Tensor], drafter: ChimeraDrafter, embedded: Tensor, depth: Tensor
    ) -> Tensor:
        """Return logits [B, N, K] after paths.

        Args:
            output: the target's output matrix.
            drafter: who has read the text.
            embedded: [B, N, P + 2, hidden] of each path, the text's last token first, and of two tokens before it.
            depth: [B, N] int64, how many drafted tokens stand on a path.
        """
        rows, count, most = embedded.shape[0], embedded.shape[1], embedded.shape[2] - 2
        device, lengths = depth.device, torch.tensor(drafter.cache.lengths, device=depth.device)
        step = torch.arange(most, device=device)
        position = (lengths[:, None, None] + step).expand(rows, count, most)
        threes = embedded.unfold(2, 3, 1).transpose(-1, -2).flatten(1, 2)
        x, *own = self.encoded(threes, position.flatten(1))
        extent = max(drafter.cache.lengths)
        of_states = (buffer[:, :, :extent] for buffer in drafter.buffers)
        keys, values = (torch.cat(pair, 2) for pair in zip(of_states, own, strict=True))
        is_on = (step <= depth.unsqueeze(-1)).unsqueeze(2)  # [B, N, 1, P]
        same = torch.eye(count, dtype=torch.bool, device=device).view(1, count, count, 1)
        text = (torch.arange(extent, device=device) < lengths.unsqueeze(-1)).unsqueeze(1).expand(-1, count, -1)
        sees = torch.cat([text, (is_on & same).flatten(2)], -1)
        at = (torch.arange(count, device=device) * most + depth).unsqueeze(-1)
        newest = x.gather(1, at.expand(-1, -1, x.shape[-1]))
        state = drafter.last.unsqueeze(1).expand_as(newest)
        return output(self.answer(newest, state, lengths.unsqueeze(-1) + depth, keys, values, sees))


@dataclass
class ChimeraDrafter(PrefixDrafter):
    """Drafts from the text's states and the path.

    Attributes:
        before: [B, 2], the two tokens before each text's last one.
    """

    before: Tensor | None = field(default=None, init=False)

    def make(self, view: View, reach: Sequence[int], last: Tensor) -> Tensor:
        """Read the texts; the rest waits for the paths."""
        self.before = torch.tensor([[0, 0, *text[-3:]][-3:-1] for text in view.texts], device=last.device)
        return self.states(view, reach)

    def laws(self, depth: Tensor, path: Tensor) -> Tensor:
        """Return the logits after some paths, [B, N, K]."""
        assert self.before is not None  # texts came first
        net: ChimeraNet = self.adapter.net  # type: ignore[assignment]
        before = self.before.unsqueeze(1).expand(-1, path.shape[1], -1)
        embedded = self.adapter.embed(torch.cat([before, path.clamp(min=0)], -1))
        return net.after(self.adapter.logits, self, embedded, depth)
