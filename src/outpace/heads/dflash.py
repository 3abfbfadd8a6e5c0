"""Block drafters: one pass over places ahead, which see the target's states of the whole text.

Paper: Chen et al. (2026), arXiv 2602.06036, DFlash. Features c = hidden_norm(fc(states)) of the known tokens become
keys and values of every layer, at their tokens' positions, without the layers' own first norm. A block of places, the
text's last token (the anchor) and masks behind it, runs through the layers; its places see the features and each other.
With `anchor_drafts` place i speaks of the token i + 1 behind the anchor (DSpark's `sample_from_anchor`); without it a
mask speaks of its own token, and the anchor of none.

What the drafted path adds to a place's law is what its heads differ in: `dspark`, `domino` and `dflash2`. All read the
tokens before a place and leave the one pass as it is, so every chain and tree over the places is drafted from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.errors import ConfigError
from outpace.heads.block_layers import Layer, RMSNorm, rope_table
from outpace.heads.compiled import compile_body
from outpace.heads.context import ContextDrafter
from outpace.heads.draft import HeadDrafter
from outpace.heads.losses import as_labels, compare
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig, HeadNet, Lesson
from outpace.kernels.branches import Pairs
from outpace.types import Context

__all__ = ["DFlashNet", "JetSpecNet", "looked_up", "new_table"]

_SIZES = ("blocks", "heads", "kv_heads", "head_dim", "ffn", "rank", "conv_taps", "conv_group", "top", "anchors")


class DFlashNet(HeadNet):
    """The body, with laws that do not know the path.

    Settings:
        depth: tokens drafted in a pass.
        taps: the hidden states that are read, as numbers of layers that they *enter*, or how many, evenly spread.
        has_last: read the last hidden state as well.
        blocks, heads, kv_heads, head_dim, ffn: the body's layers; 0 = what suits the width of the target.
        window: nearest features that a place sees; 0 = all.
        is_causal: a place sees only the places before it and itself (JetSpec's form).
        anchor_drafts: the anchor's place speaks of the first token.
        adds_state: the feature of the token before the anchor is added to every place, which spares the one layer of a
            small drafter from having to carry it there.
        mask_id: the token whose embedding stands for a mask; -1 = a trained vector per place.
        qk_norm, bias: of the attention's matrices.
        theta: base of the rotary frequencies.
        anchors: blocks per text in a training step.
        decay: places after which a place's weight in the loss has fallen to 1/e.
        soft: share of the target's own law, beside the text, in what is learned.
    """

    kind: ClassVar[str] = "dflash"
    has_pairs: ClassVar[bool] = True
    own: ClassVar[dict[str, Any]] = {
        "blocks": 1,
        "heads": 0,
        "kv_heads": 0,
        "head_dim": 0,
        "ffn": 0,
        "window": 0,
        "is_causal": False,
        "anchor_drafts": True,
        "adds_state": True,
        "mask_id": -1,
        "qk_norm": True,
        "bias": False,
        "theta": 10000.0,
        "eps": 1e-6,
        "anchors": 48,
        "decay": 4.0,
        "soft": 0.5,
    }

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        own, size = config.settings, config.hidden_size
        self.fc = nn.Linear(config.states_size, size, bias=False)
        self.hidden_norm = RMSNorm(size, eps=own["eps"])
        self.layers = nn.ModuleList(Layer(size, own) for _ in range(own["blocks"]))
        self.norm = RMSNorm(size, eps=own["eps"])
        self.places = config.depth + (not own["anchor_drafts"])
        if own["mask_id"] < 0:
            self.mask_embedding = nn.Parameter(0.02 * torch.randn(self.places - 1, size))
        self._table, self._turns = torch.zeros(0), torch.zeros(0)

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings."""
        taps, has_last = settings.pop("taps", 2), bool(settings.pop("has_last", True))
        draft_vocab = int(settings.pop("draft_vocab", 0))
        own = {name: type(value)(settings.pop(name, value)) for name, value in cls.own.items()}
        own["head_dim"] = own["head_dim"] or (64 if hidden_size % 64 == 0 else max(2, hidden_size // 4 // 2 * 2))
        own["heads"] = own["heads"] or max(1, hidden_size // own["head_dim"])
        own["kv_heads"] = own["kv_heads"] or own["heads"]
        own["ffn"] = own["ffn"] or 2 * hidden_size
        if "conv_group" in own:
            own["conv_group"] = math.gcd(own["conv_group"], hidden_size)
        base = super().made_for(hidden_size, vocab_size, num_layers, target, **{"depth": 6, **settings})
        cls._check(own, base.depth)
        layers = (
            _spread_taps(taps, num_layers, has_last) if isinstance(taps, int) else tuple(int(layer) for layer in taps)
        )
        if not (layers or has_last) or any(not 0 <= layer < num_layers for layer in layers):
            raise ConfigError(f"taps is {layers}.", f"Name layers from 0 to {num_layers - 1}, or how many.")
        found = {"layers": layers, "has_last": has_last, "settings": own, "draft_vocab": draft_vocab}
        return HeadConfig(**{**base.to_dict(), **found})

    @classmethod
    def _check(cls, own: dict[str, Any], depth: int) -> None:
        for name in _SIZES:
            if name in own and own[name] < 1:
                raise ConfigError(f"{name} is {own[name]}.", "Use 1 or more.")
        if depth < 1 or own["window"] < 0 or not 0 <= own["soft"] <= 1 or own["decay"] <= 0:
            raise ConfigError("depth and decay are above 0, window is 0 or more, soft is a share.", "Change them.")
        if own["heads"] % own["kv_heads"] or own["head_dim"] % 2:
            raise ConfigError("heads is no multiple of kv_heads, or head_dim is odd.", "Change them.")

    def add(self, target: HeadModel | Frozen, hidden: Tensor, logits: Tensor, before: Tensor) -> Tensor:
        """Return laws [..., K] that know the token before their places, [...]; here they do not.

        Args:
            target: the target.
            hidden: [..., H].
            logits: [..., K].
            before: [...] int64.
        """
        del target, hidden, before
        return logits

    def teach(self, frozen: Frozen, hidden: Tensor, logits: Tensor, before: Tensor, is_taught: Tensor) -> Tensor:
        """Return the laws [N, K] of the taught places of blocks, the text being the path.

        Args:
            frozen: the target.
            hidden, logits: [N, H] and [N, K] of those places.
            before: [B, A, D] int64, the token before every place, the anchor first.
            is_taught: [B, A, D] bool, N of them.
        """
        return self.add(frozen, hidden, logits, before[is_taught])

    def follow(self, model: HeadModel, hidden: Tensor, logits: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return the laws after paths, [B, N, K], of the places' hidden states [B, N, H] and laws [B, N, K].

        Args:
            model: whose network it is.
            hidden, logits: as above.
            depth: [B, N] int64, drafted tokens on the path.
            path: [B, N, P] int64, the anchor and the path; -1 = none.
        """
        return self.add(model, hidden, logits, path.gather(-1, depth.unsqueeze(-1))[..., 0])

    def confidence(self, target: HeadModel | Frozen, hidden: Tensor, before: Tensor) -> Tensor | None:
        """Return logits [...] of the chance that a place's draft is kept if its path is; None = it cannot tell."""
        del target, hidden, before
        return None

    def features(self, states: Tensor) -> Tensor:
        """Return features [..., H] of states [..., F]."""
        found: Tensor = self.hidden_norm(self.fc(states))
        return found

    def block(self, model: HeadModel | Frozen, anchor: Tensor, feature: Tensor) -> Tensor:
        """Return what enters the layers, [..., S, H], of anchors [...] and the features [..., H] before them."""
        first, masks = model.embed(anchor).to(feature.dtype).unsqueeze(-2), self.masks(model).to(feature.dtype)
        x = torch.cat([first, masks.expand(*anchor.shape, *masks.shape)], -2)
        return x + feature.unsqueeze(-2) if self.config.settings["adds_state"] else x

    def masks(self, model: HeadModel | Frozen) -> Tensor:
        """Return what enters the layers behind the anchor, [S - 1, H]."""
        mask_id = self.config.settings["mask_id"]
        if mask_id < 0:
            return self.mask_embedding
        return model.embed(torch.full((1,), mask_id, device=self.fc.weight.device)).expand(self.places - 1, -1)

    def run(self, x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return hidden states [..., D, H] of the places that draft.

        Args:
            x: [..., S, H].
            attend: called as attend(layer, normed [..., S, H]) -> what its heads found, [..., S, heads x head_dim].
        """
        for index, layer in enumerate(self.layers):
            x = layer(x, lambda y, index=index: attend(index, y))
        return self.norm(x[..., self.places - self.config.depth :, :])  # type: ignore[no-any-return]

    def rope(self, positions: int) -> Tensor:
        """Return the rotary table [positions or more, 2, head_dim], in the network's dtype."""
        weight = self.fc.weight
        if len(self._table) < positions or self._table.dtype != weight.dtype or self._table.device != weight.device:
            length = max(512, 1 << (positions - 1).bit_length())
            own = self.config.settings
            self._table = rope_table(length, own["head_dim"], own["theta"], weight.device).to(weight.dtype)
        return self._table

    def turns(self, positions: int) -> Tensor:
        """Return cosines and sines as kernels read them, [positions or more, 2, head_dim / 2] float32."""
        if len(self._turns) < positions:
            own = self.config.settings
            table = rope_table(
                max(512, 1 << (positions - 1).bit_length()), own["head_dim"], own["theta"], torch.device("cpu")
            )
            self._turns = table[..., : own["head_dim"] // 2].contiguous()
        return self._turns

    def loss(self, batch: Batch) -> Lesson:
        """Cross-entropy of every place of random blocks against the text and the target's own law.

        A block sees the features before its anchor only; what the path adds is learned with the text as the path.
        """
        blocks = _Blocks.draw(batch, self.config.depth, self.config.settings["anchors"])
        feature = self.features(batch.states)
        hidden = self.run(
            self.block(batch.frozen, batch.tokens.gather(1, blocks.anchor), _at(feature, blocks.anchor - 1)),
            self._trainer(feature, blocks.anchor),
        )
        return self._lesson(batch, blocks, hidden)

    def _trainer(self, feature: Tensor, anchor: Tensor) -> Callable[[int, Tensor], Tensor]:
        """Return the attention of blocks [B, A, S, H] at anchors [B, A] over features [B, T, H]."""
        own, size, device = self.config.settings, feature.shape[1], feature.device
        table = self.rope(size + self.places).to(feature.dtype)
        position = anchor.unsqueeze(-1) + torch.arange(self.places, device=device)
        place = torch.arange(size, device=device)
        sees = (place < anchor.unsqueeze(-1)).unsqueeze(2).expand(-1, -1, self.places, -1)
        if own["window"]:
            sees = sees & (place > position.unsqueeze(-1) - own["window"])
        inside = torch.ones(self.places, self.places, dtype=torch.bool, device=device)
        inside = inside.tril() if own["is_causal"] else inside

        def attend(index: int, y: Tensor) -> Tensor:
            layer: Any = self.layers[index]
            return layer.self_attn.blocks(y, feature, table, position, sees, inside)  # type: ignore[no-any-return]

        return attend

    def _lesson(self, batch: Batch, blocks: _Blocks, hidden: Tensor) -> Lesson:
        own, frozen, taught = self.config.settings, batch.frozen, blocks.is_taught
        before = _at(batch.tokens.unsqueeze(-1), blocks.place - 1)[..., 0]
        hidden = hidden[taught]
        logits = self.teach(frozen, hidden, frozen.logits(hidden), before, taught)
        sure = self.confidence(frozen, hidden.detach(), before[taught])
        law = _laws(batch, (blocks.place - 1)[taught], taught) if own["soft"] or sure is not None else None
        label, is_known = as_labels(frozen, blocks.label[taught])
        found = compare(logits, label, law)
        weight = (-torch.arange(taught.shape[-1], device=hidden.device) / own["decay"]).exp().expand(taught.shape)
        weight = weight[taught] / weight[taught].sum().clamp(min=1e-6)
        loss = (weight * ((1 - own["soft"]) * is_known * found.hard + own["soft"] * found.soft)).sum()
        parts = {}
        if law is not None:
            parts["kept"] = float(found.kept.mean())
        if sure is not None:
            wrong = F.binary_cross_entropy_with_logits(sure.float(), found.kept, reduction="none")
            loss = loss + (weight * wrong).sum()
            parts["confidence"] = float(wrong.detach().mean())
        right = torch.zeros_like(taught).masked_scatter(taught, found.right & is_known)
        hits, counts, reached = (one.flatten(0, 1).sum(0).float() for one in (right, taught, right.cumprod(-1)))
        return Lesson(loss, hits, counts, reached, parts)

    served: ClassVar[tuple[str, ...]] = ("fc", "layers")

    def compile(self, model: HeadModel) -> Any:
        """Return the pass over a block in one call (`CompiledBlock`), or None."""
        return compile_body(self, model)

    def pairs(self, model: HeadModel) -> Pairs | None:
        """Return what a token adds to the laws after it, where that is all that a path changes; None = it is not."""
        del model
        return Pairs.none(self.config.draft_vocab or self.config.vocab_size) if self.has_pairs else None

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter with a cache of features."""
        return ContextDrafter.begin_with(model, context)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K] of the token after each path; see `outpace.heads.draft.Slots`."""
        found = slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1]))
        hidden, logits = found.split([self.config.hidden_size, found.shape[-1] - self.config.hidden_size], -1)
        return self.follow(model, hidden, logits, depth, path)


class JetSpecNet(DFlashNet):
    """DFlash's body, causal within the block: a place's law does not hang on how many places follow.

    Paper: Hu et al. (2026), arXiv 2606.18394, JetSpec. Settings as DFlash's.
    """

    kind: ClassVar[str] = "jetspec"
    own: ClassVar[dict[str, Any]] = {**DFlashNet.own, "is_causal": True}


def new_table(config: HeadConfig, rank: int, is_table: bool) -> nn.Module:
    """Return what makes short vectors of tokens: a table of the vocabulary, or a matrix on the target's embeddings."""
    if is_table:
        return nn.Embedding(config.vocab_size, rank)
    return nn.Linear(config.hidden_size, rank, bias=False)


def looked_up(table: nn.Module, target: HeadModel | Frozen, token: Tensor) -> Tensor:
    """Return the short vectors [..., rank] of tokens [...]; -1 = none, of which it means nothing."""
    token = token.clamp(min=0)
    found: Tensor = table(token if isinstance(table, nn.Embedding) else target.embed(token))
    return found


class _Blocks:
    """Blocks drawn for a training step.

    Attributes:
        anchor: [B, A] places of the anchors.
        place: [B, A, D] places of the drafted tokens, held to the text.
        label: [B, A, D] the tokens there.
        is_taught: [B, A, D] bool, which of them count.
    """

    def __init__(self, anchor: Tensor, is_real: Tensor, batch: Batch, depth: int) -> None:
        size = batch.tokens.shape[1]
        place = anchor.unsqueeze(-1) + 1 + torch.arange(depth, device=anchor.device)
        self.anchor, self.place = anchor, place.clamp(max=size - 1)
        flat = self.place.flatten(1)
        self.label = batch.tokens.gather(1, flat).view_as(place)
        is_text = batch.is_taught.gather(1, flat).view_as(place) & (place < size) & is_real.unsqueeze(-1)
        self.is_taught = is_text.cumprod(-1) > 0

    @classmethod
    def draw(cls, batch: Batch, depth: int, count: int) -> _Blocks:
        """Draw at most `count` anchors per text, whose next token the target wrote; the step is the seed."""
        device = batch.tokens.device
        can = torch.zeros_like(batch.is_taught)
        can[:, 1:-1] = batch.is_taught[:, 2:]
        draw = torch.rand(can.shape, generator=torch.Generator().manual_seed(batch.step)).to(device)
        count = max(1, min(count, int(can.sum(-1).max())))
        key, anchor = draw.masked_fill(~can, -1.0).topk(count, dim=-1)
        is_real = key >= 0
        return cls(torch.where(is_real, anchor, 1), is_real, batch, depth)


def _laws(batch: Batch, place: Tensor, is_taught: Tensor) -> Tensor:
    """Return the target's laws [N, K] after some places [N] of the texts, each made once."""
    row = is_taught.nonzero()[:, 0]
    is_needed = torch.zeros_like(batch.is_taught)
    is_needed[row, place] = True
    with torch.no_grad():
        laws = batch.frozen.logits(batch.last[is_needed]).softmax(-1)
    number = (is_needed.flatten().cumsum(0) - 1).view_as(is_needed)
    return laws[number[row, place]]


def _at(values: Tensor, place: Tensor) -> Tensor:
    """Return values [B, T, X] at places [B, ...], [B, ..., X]."""
    rows = torch.arange(len(values), device=values.device).view(-1, *[1] * (place.dim() - 1))
    return values[rows, place]


def _spread_taps(count: int, num_layers: int, has_last: bool) -> tuple[int, ...]:
    """Return `count` layers entered, as DFlash's files spread those left: round(linspace(1, L - 3, n)), L // 2 for one.

    Where the last state is read too, it stands for the topmost of one more.
    """
    if count <= 0:
        return ()
    total, last = count + has_last, max(1, num_layers - 3)
    left = [num_layers // 2] if total == 1 else [round(1 + i * (last - 1) / (total - 1)) for i in range(count)]
    return tuple(sorted({min(layer + 1, num_layers - 1) for layer in left}))
