"""Drafts from soft tokens that ride along in the target's own forward, and are never written.

Behind a node hangs a *group* of them: first prompt tokens, then masks, one level per place ahead. Level j of a group
behind a node says what stands j + 2 places after that node (the target itself says what comes next). A group is a
branch of the token tree, so real nodes never see it, and nothing of it stays in the cache. What the groups of the last
accepted node said in one step is drafted from in the next.

A target that was taught blocks in both directions (`Adapter.own_mask`) needs groups that see all of themselves, and
says a mask's place at the mask: the prompt token is then the mask of the place that the target itself says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from outpace.draft.features import Features
from outpace.errors import CapabilityError, ConfigError
from outpace.heads.draft import HeadDrafter, SlotDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, Frozen, HeadConfig, HeadNet, Lesson
from outpace.run.tree import ancestors
from outpace.types import Context, Outcome, Proposal, Sampled, Scores, View

__all__ = ["Hung", "ProbeDrafter", "ProbeNet", "Sown", "drafts_only", "probe_lesson", "sow"]

Plan = Sequence[tuple[int, int]]  # of a row: nodes (-1 = the root), and how many levels hang behind each


class ProbeNet(HeadNet):
    """Base of kinds whose drafts come from soft tokens in the target's forward.

    Settings: depth (levels of a group), prompts (soft tokens before them), ensemble (masks per level, whose laws are
    averaged: each sees those of its own number on the levels above).
    """

    is_shared: ClassVar[bool] = False
    """One mask serves all levels."""
    anchors: ClassVar[int] = 64
    """Places of a text that are taught per step."""
    is_block: bool = False
    """A group sees all of itself."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.num_prompts = int(config.settings.get("prompts", 0))
        self.ensemble = int(config.settings.get("ensemble", 1))
        self.masks = nn.Embedding(1 if self.is_shared else config.depth * self.ensemble, config.hidden_size)
        self.prompts = nn.Embedding(self.num_prompts, config.hidden_size) if self.num_prompts else None

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings."""
        own: dict[str, Any] = {name: int(settings.pop(name)) for name in ("prompts", "ensemble") if name in settings}
        for name, least in (("prompts", 0), ("ensemble", 1)):
            if own.get(name, least) < least:
                raise ConfigError(f"{name} is {own[name]}.", f"Use {least} or more.")
        settings.setdefault("depth", 3)
        base = super().made_for(hidden_size, vocab_size, num_layers, target, **settings)
        return replace(base, has_last=False, settings=own)

    def begin(self, frozen: Frozen) -> None:
        """Let soft tokens begin near the middle of the embeddings, apart by a tenth of their spread."""
        with torch.no_grad():
            known = frozen.embed(torch.arange(self.config.vocab_size))
            for table in (self.masks, self.prompts):
                if table is not None:
                    noise = torch.randn_like(table.weight) * known.std(0) * 0.1
                    table.weight.copy_(known.mean(0) + noise)

    @property
    def size(self) -> int:
        """Soft tokens of a whole group."""
        return self.num_prompts + self.config.depth * self.ensemble

    def soft(self) -> Tensor:
        """Return what enters the target for a whole group, [size, hidden], level by level."""
        masks = self.masks.weight
        if self.is_shared:
            masks = masks.expand(self.config.depth * self.ensemble, -1)
        return masks if self.prompts is None else torch.cat([self.prompts.weight, masks])

    def parents(self, levels: int | None = None) -> list[int]:
        """Return the parent of each soft token of a group's first levels, -1 = the node it hangs behind."""
        prompts, each = self.num_prompts, self.ensemble
        found = list(range(-1, prompts - 1))
        for level in range(self.config.depth if levels is None else levels):
            found += [prompts + (level - 1) * each + e if level else prompts - 1 for e in range(each)]
        return found

    def read(self, scores: Scores, index: Sequence[int], row: int) -> Tensor:
        """Return what is kept of a group for drafting, [levels, K or hidden].

        Args:
            scores: of the forward.
            index: where its soft tokens stand among the asked places.
            row: whose.
        """
        masks = list(index)[self.num_prompts :]
        laws = scores.logits[row, masks].view(-1, self.ensemble, scores.logits.shape[-1])
        return laws[:, 0] if self.ensemble == 1 else laws.mean(1)

    def after(self, model: HeadModel, slots: Tensor, depth: Tensor, path: Tensor) -> Tensor:
        """Return logits [B, N, K]: the levels' own, whatever the path."""
        del path
        found = slots.gather(1, depth.unsqueeze(-1).expand(-1, -1, slots.shape[-1]))
        return found if model.ids is None else found[..., model.ids]

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Refuse: what asks a drafter apart from the target's forward gets nothing from this one."""
        raise CapabilityError(
            f"A drafter of the kind {self.kind!r} drafts inside the target's own forward.",
            f"Use the method {self.kind}.",
        )

    def new_probe(self, model: HeadModel, context: Context) -> ProbeDrafter:
        """Return what drafts for the joining rows."""
        rows = len(context.texts)
        features = Features.begin(self.config.outputs, rows, 0, model.dtype, model.device)
        cache = model.new_cache(rows, 1, context.counters["draft"])
        return ProbeDrafter(model, cache, features, [None] * rows, [0] * rows)

    def hook(self, is_soft: Tensor) -> Any:
        """Return what changes the target's matrices at soft tokens [B, T, 1] in training (`Frozen.forward`)."""
        del is_soft

    def loss(self, batch: Batch) -> Lesson:
        """Return how far the levels' laws are from the target's own, those of level j weighted by 0.8 to the j."""
        sown = sow(self, batch)
        hidden, _ = batch.frozen.forward(sown.inputs, sown.position, sown.visible, hook=self.hook(sown.is_soft))
        logits = batch.frozen.logits(sown.masks(hidden)).mean(-2)
        return probe_lesson([logits[..., k, :] for k in range(self.config.depth)], sown, batch)


@dataclass(slots=True)
class Hung:
    """What hangs where in a proposal of `ProbeDrafter.hang`.

    Attributes:
        groups: per row and node that bears a group (-1 = the root), the group's nodes.
        is_chain: the drafts are a chain.
        law: that the drafts were drawn from, or None.
    """

    groups: list[dict[int, range]]
    is_chain: bool
    law: Sampled | None = None


@dataclass
class ProbeDrafter(SlotDrafter):
    """Drafts from what the groups behind the last accepted node said.

    Attributes:
        told: per row, what was read of its group, or None.
        ends: per row, the length of the text that it speaks of.
    """

    told: list[Tensor | None] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    @property
    def probe(self) -> ProbeNet:
        """The network whose groups these are."""
        assert isinstance(self.adapter.net, ProbeNet)  # which made this
        return self.adapter.net

    def is_ready(self, view: View) -> list[bool]:
        """Return which rows have something to draft from."""
        rows = zip(self.told, self.ends, view.lengths, strict=True)
        return [told is not None and end == length for told, end, length in rows]

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft: as many as its group had levels."""
        reach = super().reach(view, most)
        return [min(n, 0 if told is None else len(told)) for n, told in zip(reach, self.told, strict=True)]

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Lay out what was told, and return the first level, [B, V]; no forward is run."""
        known = next(told for told, ahead in zip(self.told, reach, strict=True) if told is not None and ahead)
        self.made = known.new_zeros(len(reach), self.adapter.net.config.depth, known.shape[-1])
        for row, told in enumerate(self.told):
            if told is not None and reach[row]:
                self.made[row, : len(told)] = told
        self.chain = torch.tensor([text[-1:] for text in view.texts], device=self.device)
        first = torch.zeros_like(self.chain)
        return self.adapter.spread(self._net.after(self.adapter, self.made, first, self.chain.unsqueeze(1)))[:, 0]

    def observe(self, outcome: Outcome, view: View) -> None:
        """Read the groups behind the last accepted nodes."""
        proposal, scores = outcome.proposal, outcome.scores
        if proposal is None or scores is None or not isinstance(proposal.carry, Hung):
            return
        for row, (hung, path) in enumerate(zip(proposal.carry.groups, outcome.path, strict=True)):
            if not path:
                continue
            index = [at for at in hung.get(max(path), range(0)) if at < proposal.length[row]]
            levels = max(0, len(index) - self.probe.num_prompts) // self.probe.ensemble
            index = [at + 1 for at in index[: self.probe.num_prompts + levels * self.probe.ensemble]]
            self.told[row] = self.probe.read(scores, index, row).clone() if levels else None
            self.ends[row] = len(view.texts[row])

    def hang(self, own: Proposal, plans: Sequence[Plan], lengths: Sequence[int]) -> Proposal:
        """Return the drafts with groups behind some of their nodes.

        Args:
            own: a chain or a tree, perhaps of no nodes.
            plans: per row, which nodes bear groups, and of how many levels.
            lengths: of the rows' texts.
        """
        soft, width = self.probe.soft(), own.tokens.shape[1]
        parents = [list(range(-1, n - 1)) for n in own.length] if own.parent is None else own.parent.tolist()
        groups: list[dict[int, range]] = []
        rows: list[list[int]] = []  # parents of a row's nodes, the soft ones behind its own
        which: list[list[int]] = []  # of each of them, the soft token; -1 = a draft
        for count, parent, plan in zip(own.length, parents, plans, strict=True):
            nodes, kinds, found = list(parent[:count]), [-1] * count, {}
            for node, levels in plan:
                chain, first = self.probe.parents(levels), len(nodes)
                nodes += [first + at if at >= 0 else node for at in chain]
                kinds += range(len(chain))
                found[node] = range(first, len(nodes))
            groups.append(found)
            rows.append(nodes)
            which.append(kinds)
        length = [len(nodes) for nodes in rows]
        if not max(length):
            return own
        table = torch.tensor(
            [[values + [-1] * (max(length) - len(values)) for values in part] for part in (rows, which)],
            dtype=torch.int64,
            device=own.tokens.device,
        )
        tokens = torch.nn.functional.pad(own.tokens, (0, max(0, max(length) - width)))[:, : max(length)]
        is_soft = table[1] >= 0
        inputs = soft[table[1].clamp(min=0)].to(self.adapter.dtype)
        carry = Hung(groups, own.parent is None, own.law)
        visible = position = None
        if self.probe.is_block:
            visible = ancestors(table[0])
            position = visible.sum(-1) + torch.tensor(lengths, device=visible.device).unsqueeze(1) - 1
            for row, found in enumerate(groups):
                for group in found.values():
                    visible[row, group.start : group.stop, group.start : group.stop] = True
        return Proposal(
            tokens.masked_fill(is_soft, 0),
            length,
            table[0],
            position,
            visible,
            inputs=inputs,
            is_soft=is_soft,
            drafts=list(own.length),
            origin=own.origin,
            carry=carry,
        )


def drafts_only(proposal: Proposal, scores: Scores) -> tuple[Proposal, Scores]:
    """Return the part of a proposal of `ProbeDrafter.hang` that may be written, with its scores."""
    hung, counts = proposal.carry, proposal.drafts
    if not isinstance(hung, Hung) or counts is None:
        return proposal, scores
    width = max(counts)
    assert proposal.parent is not None  # groups hang in a tree
    law = None if hung.law is None else replace(hung.law, probs=hung.law.probs[:, :width])
    parent = None if hung.is_chain else proposal.parent[:, :width]
    part = Proposal(proposal.tokens[:, :width], list(counts), parent, law=law, origin=proposal.origin)
    return part, scores.part(range(len(counts)), 1 + width)


@dataclass(slots=True)
class Sown:
    """A batch of texts with groups behind some of their tokens, as the target reads it in training.

    Attributes:
        inputs: [B, T + A X, hidden], the texts' embeddings, then the groups' soft tokens.
        position: [B, T + A X] int64.
        visible: [B, T + A X, T + A X] bool.
        is_soft: [B, T + A X, 1] float, 1 at soft tokens.
        place: [B, A] int64, the tokens that bear groups.
        net: whose groups.
    """

    inputs: Tensor
    position: Tensor
    visible: Tensor
    is_soft: Tensor
    place: Tensor
    net: ProbeNet

    def masks(self, values: Tensor) -> Tensor:
        """Return what stands at the masks, [B, A, D, E, ...], of values [B, T + A X, ...]."""
        net, (rows, count) = self.net, self.place.shape
        own = values[:, -count * net.size :].view(rows, count, net.size, *values.shape[2:])
        masks: Tensor = own[:, :, net.num_prompts :].unflatten(2, (net.config.depth, net.ensemble))
        return masks


def sow(net: ProbeNet, batch: Batch, ahead: int = 2) -> Sown:
    """Hang groups behind random tokens of the texts, those before tokens that the target wrote.

    Args:
        net: whose.
        batch: the texts.
        ahead: a token bears a group only if this many taught tokens follow it.
    """
    rows, size = batch.tokens.shape
    device, extra = batch.tokens.device, net.size
    is_taught = batch.is_taught
    fits = torch.zeros_like(is_taught)
    fits[:, : size - ahead] = is_taught[:, ahead:]
    generator = torch.Generator().manual_seed(batch.step)
    key = torch.rand(rows, size, generator=generator).to(device).masked_fill(~fits, -1)
    count = max(1, min(net.anchors, int(fits.sum(-1).max())))
    place = key.topk(count, dim=-1).indices  # where a row has fewer, the others teach nothing: no label counts there
    tree = ancestors(torch.tensor([net.parents()], device=device))[0]  # [X, X]
    total = size + count * extra
    visible = torch.zeros(rows, total, total, dtype=torch.bool, device=device)
    order = torch.arange(size, device=device)
    visible[:, :size, :size] = order <= order.unsqueeze(1)
    sees = (order <= place.unsqueeze(-1)).repeat_interleave(extra, 1)
    visible[:, size:, :size] = sees
    visible[:, size:, size:] = torch.block_diag(*[tree.long()] * count) > 0
    behind = place.unsqueeze(-1) + tree.sum(-1)
    position = torch.cat([order.expand(rows, -1), behind.flatten(1)], 1)
    soft = net.soft().expand(rows, count, -1, -1).flatten(1, 2)
    inputs = torch.cat([batch.frozen.embed(batch.tokens), soft], 1)
    is_soft = (torch.arange(total, device=device) >= size).float().view(1, -1, 1).expand(rows, -1, -1)
    return Sown(inputs, position, visible, is_soft, place, net)


def probe_lesson(logits: list[Tensor], sown: Sown, batch: Batch, decay: float = 0.8) -> Lesson:
    """Return the lesson of the levels' laws against the target's own at the same places.

    Args:
        logits: per level j, [B, A, K], of the token j + 2 places behind `sown.place`.
        sown: where they were said.
        batch: the texts, and the target's states.
        decay: weight of a level over that of the one before it.
    """
    size, ids = batch.tokens.shape[1], batch.frozen.ids
    losses, hits, counts, reached = [], [], [], []
    alive = None
    for level, one in enumerate(logits):
        at = sown.place + level + 2
        is_there = (at < size) & batch.is_taught.gather(1, at.clamp(max=size - 1))
        at = at.clamp(max=size - 1)
        token = batch.tokens.gather(1, at)
        label = token if ids is None else torch.searchsorted(ids, token).clamp(max=len(ids) - 1)
        is_known = is_there if ids is None else is_there & (ids[label] == token)
        teacher = batch.last.gather(1, (at - 1).unsqueeze(-1).expand(-1, -1, batch.last.shape[-1]))
        law = batch.frozen.logits(teacher[is_there]).softmax(-1)
        cross = -(law * one[is_there].log_softmax(-1)).sum(-1)
        losses.append(decay**level * cross.sum() / max(1, len(cross)))
        right = (one.argmax(-1) == label) & is_known
        alive = right if alive is None else alive & right
        hits.append(right.sum().float())
        counts.append(is_there.sum().float())
        reached.append(alive.sum().float())
    return Lesson(torch.stack(losses).sum(), torch.stack(hits), torch.stack(counts), torch.stack(reached))
