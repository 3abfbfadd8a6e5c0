"""Drafters with a cache of their own: they read the target's features entry by entry, and go on from their own outputs.

Paper: Li et al. (2024), arXiv 2401.15077, EAGLE. The entry of a token is its embedding beside the feature of the token
before it; the output of an entry tells the next token, and stands for the feature of the entry's token.

What kinds share lies here: how many entries a pass takes (`stride`), and after how many drafted tokens the next pass
is due (`anchor`), are theirs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.cache import Cache
from outpace.errors import ConfigError, nearest
from outpace.heads.decoder import Past, Shape, Sight, Turns, shape_settings
from outpace.heads.draft import HeadDrafter
from outpace.heads.model import HeadModel
from outpace.heads.net import HeadConfig, HeadNet
from outpace.run.tree import TokenTree
from outpace.types import Context, View

__all__ = ["FeatureDrafter", "FeatureNet", "Scorer"]

_CHUNK = 512  # most entries of a text in one pass
_SLOTS = 256  # per row, of a cache that grows


class Scorer(Protocol):
    """The target's own matrices: `HeadModel` while drafting, `Frozen` in training."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return embeddings [..., hidden]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., K] of last hidden states."""
        ...


class FeatureNet(HeadNet):
    """A few decoder layers over (token, feature) entries; kinds give `fuse`, `run` and, where they differ, the rest.

    Settings: those of the layers (`shape_settings`), `own_layers` (how many), and each kind's `extra`.

    Attributes:
        stride: entries of a pass over drafted tokens; a pass reads the features of as many text entries anew.
        tail: entries behind the text that a pass over it has beside the text's own (`tail_entries`).
    """

    extra: ClassVar[dict[str, Any]] = {}
    stride: int = 1
    tail: int = 0

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        settings = config.settings
        self.width = int(settings.get("hidden") or config.hidden_size)
        self.shape = Shape.of(self.width, settings)
        self.rotation = Turns(settings, self.shape.head_dim)
        self.own_layers = int(settings["own_layers"])
        if settings["own_embedding"]:
            self.embed_tokens = nn.Embedding(config.vocab_size, self.width)

    @classmethod
    def made_for(
        cls, hidden_size: int, vocab_size: int, num_layers: int, target: str = "", **settings: Any
    ) -> HeadConfig:
        """Return the configuration; see the class for its settings.

        Raises:
            ConfigError: a setting that the kind does not have, or one out of its range.
        """
        base = super().made_for(hidden_size, vocab_size, num_layers, target, depth=settings.pop("depth", 4))
        layers = settings.pop("layers", None)
        known = {**cls.extra, **shape_settings(int(settings.get("hidden") or hidden_size)), "own_layers": 1}
        known["own_embedding"] = False
        for name, value in settings.items():
            if name not in known:
                raise ConfigError(f"The kind {cls.kind!r} has no setting {name!r}.", nearest(name, known, "setting"))
            known[name] = value if isinstance(known[name], dict) else type(known[name])(value)
        if known["own_layers"] < 1 or base.depth < 1:
            raise ConfigError("A drafter needs a layer and a depth of at least 1.", "Use own_layers=1 or more.")
        taps, has_last = cls.taps(num_layers, layers)
        return HeadConfig(**{**base.to_dict(), "layers": taps, "has_last": has_last, "settings": known})

    @classmethod
    def taps(cls, num_layers: int, chosen: Sequence[int] | None) -> tuple[tuple[int, ...], bool]:
        """Return the layers whose entering states are read, and whether the last hidden state is read too."""
        del num_layers
        return tuple(chosen or ()), True

    def embed(self, scorer: Scorer, tokens: Tensor) -> Tensor:
        """Return embeddings [..., width] of tokens, the drafter's own where it has some."""
        return self.embed_tokens(tokens) if hasattr(self, "embed_tokens") else scorer.embed(tokens)

    def fuse(self, states: Tensor) -> Tensor:
        """Return the features [..., W] that stand for the target's states [..., F]; here the last hidden state."""
        return states[..., -self.config.hidden_size :]

    @abstractmethod
    def run(self, embeds: Tensor, features: Tensor, sight: Sight) -> Tensor:
        """Return the outputs [B, T, O] of entries.

        Args:
            embeds: [B, T, width] of the entries' tokens.
            features: [B, T, W].
            sight: whom they see; asked once per layer.
        """

    def feedback(self, out: Tensor) -> Tensor:
        """Return the features [..., W] that outputs [..., O] stand for; here they are it."""
        return out

    def laws(self, scorer: Scorer, out: Tensor, ahead: Tensor) -> Tensor:
        """Return logits [..., K] of what follows.

        Args:
            scorer: the target's matrices.
            out: [..., U, O], the outputs of a pass, the text's own last entry among them.
            ahead: [...] int64, how many drafted tokens lie between the pass and what is asked.
        """
        del ahead
        return scorer.logits(out[..., -1, :])

    def anchor(self, depth: int) -> int:
        """Return how many drafted tokens the pass has read that tells what follows `depth` of them; here all."""
        return depth

    def most(self) -> int:
        """Return how many tokens can be drafted at most; 0 = any number."""
        return 0

    def tail_entries(self, scorer: Scorer, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings [B, tail, width] and features [B, tail, W] behind texts that end in tokens [B]."""
        raise NotImplementedError

    def new_cache(self, model: HeadModel, rows: int, context: Context) -> Cache:
        """Return an empty cache for the drafter's layers; trees may stand on top of a full context."""
        shape, limit = self.shape, 2 * context.capacity + 4096
        slots = min(_SLOTS, limit)
        size = (rows, shape.kv_heads, slots, shape.head_dim)
        buffers = [torch.zeros(size, dtype=model.dtype, device=model.device) for _ in range(2 * self.own_layers)]
        return Cache(buffers, 2, context.counters["draft"], limit=limit)

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter that goes on from its own outputs."""
        features = FeatureDrafter.features_for(model, context)
        return FeatureDrafter(model, self.new_cache(model, len(context.texts), context), features)


@dataclass
class _Nodes:
    """The tree of everything that was asked on top of one row's text; node 0 is the text's end.

    Attributes:
        parent, token, depth: per node.
        passed: per node, the pass that has read up to it; -1 = none yet.
        child: finds a node by its parent and token.
        seen: per pass, the staged slots that its entries see.
    """

    parent: list[int] = field(default_factory=lambda: [-1])
    token: list[int] = field(default_factory=lambda: [-1])
    depth: list[int] = field(default_factory=lambda: [0])
    passed: list[int] = field(default_factory=lambda: [0])
    child: dict[tuple[int, int], int] = field(default_factory=dict)
    seen: dict[int, list[int]] = field(default_factory=dict)

    def below(self, node: int, token: int) -> int:
        """Return the child of a node with a token."""
        found = self.child.setdefault((node, token), len(self.parent))
        if found == len(self.parent):
            self.parent.append(node)
            self.token.append(token)
            self.depth.append(self.depth[node] + 1)
            self.passed.append(-1)
        return found

    def above(self, node: int, depth: int) -> int:
        """Return the ancestor of a node that stands at a depth."""
        while self.depth[node] > depth:
            node = self.parent[node]
        return node

    def path(self, node: int, count: int) -> list[int]:
        """Return the last `count` nodes of the path to a node."""
        nodes = [node]
        while len(nodes) < count:
            nodes.append(self.parent[nodes[-1]])
        return nodes[::-1]


@dataclass
class FeatureDrafter(HeadDrafter):
    """Drafts with a `FeatureNet`. Entries of drafted tokens are staged behind the text's, and forgotten with the step.

    Attributes:
        nodes_of: per row, what was asked on top of its text.
        outputs: [B, N, U, O], of the passes made on top of the texts; pass 0 read the text.
        chain: per row, the end of the running chain.
        used: slots staged behind the valid ones.
    """

    nodes_of: list[_Nodes] = field(default_factory=list, init=False)
    outputs: Tensor | None = field(default=None, init=False)
    chain: list[int] = field(default_factory=list, init=False)
    used: int = field(default=0, init=False)

    @property
    def _net(self) -> FeatureNet:
        return self.adapter.net  # type: ignore[return-value]

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft; 0 where too few of its entries are known."""
        reach, limit = super().reach(view, most), self._net.most()
        known = zip(reach, self.features.whole, self.features.held, strict=True)
        reach = [n if whole + len(held) >= self._held_back else 0 for n, whole, held in known]
        return [min(n, limit) for n in reach] if limit else reach

    @property
    def _held_back(self) -> int:
        """Text entries that every pass reads anew: their outputs are needed, and a step may be taken twice."""
        return self._net.stride

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Take in the texts, and return the logits after them, [B, V]."""
        net, back = self._net, self._held_back
        # Where the target's states were not seen `whole` fell to 0; what lies behind it is drafted, or of another text.
        self.cache.truncate(self.features.whole)
        taken = self.features.take([row for row, ahead in enumerate(reach) if ahead > 0])
        tokens = [text[len(text) - len(states) :] for text, states in zip(view.texts, taken, strict=True)]
        done = [0] * len(taken)
        while max(len(states) - n for states, n in zip(taken, done, strict=True)) > _CHUNK:
            sizes = [min(_CHUNK, max(0, len(states) - n - back)) for states, n in zip(taken, done, strict=True)]
            self._read(tokens, taken, done, sizes, has_tail=False)
            done = [n + size for n, size in zip(done, sizes, strict=True)]
        sizes = [len(states) - n for states, n in zip(taken, done, strict=True)]
        out = self._read(tokens, taken, done, sizes, has_tail=True)
        first = torch.tensor([max(0, size - net.stride) for size in sizes], device=self.device).unsqueeze(1)
        block = torch.arange(net.stride + net.tail, device=self.device)
        index = (first + block).clamp_(max=out.shape[1] - 1)
        self.outputs = out.gather(1, index.unsqueeze(-1).expand(-1, -1, out.shape[-1])).unsqueeze(1)
        self._hold_back(taken, back)
        self.nodes_of = [_Nodes(seen={0: list(range(net.tail))}) for _ in sizes]
        self.chain, self.used = [0] * len(sizes), net.tail
        return self._answers([[0]] * len(sizes))[:, 0]

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        """Return the logits after some nodes of a tree, [B, F, V]; each entry is passed once, however often asked."""
        asked = []
        for row, (tokens, parents) in enumerate(zip(tree.tokens.tolist(), tree.parent.tolist(), strict=True)):
            known, place = self.nodes_of[row], [0]  # with a place in front for the root
            for token, parent in zip(tokens[: tree.length[row]], parents, strict=False):
                place.append(known.below(place[parent + 1], token))
            wanted = zip(nodes[row].tolist(), is_real[row].tolist(), strict=True)
            asked.append([place[node + 1] if is_on else 0 for node, is_on in wanted])
        return self._answers(asked)

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        """Lengthen the chain of each running row by a token [B]; return the logits after it, [B, V]."""
        del place
        ends = zip(self.nodes_of, self.chain, token.tolist(), running, strict=True)
        self.chain = [known.below(end, one) if is_on else end for known, end, one, is_on in ends]
        asked = [[end if is_on else 0] for end, is_on in zip(self.chain, running, strict=True)]
        return self._answers(asked)[:, 0]

    def _hold_back(self, taken: list[Tensor], back: int) -> None:
        for row, states in enumerate(taken):
            count = min(back, len(states))
            self.features.held[row] = states[len(states) - count :] if count else self.features.held[row]
            self.features.starts[row] -= count
            self.features.whole[row] -= count

    def _read(
        self, tokens: list[list[int]], states: list[Tensor], done: list[int], sizes: list[int], *, has_tail: bool
    ) -> Tensor:
        """Pass `sizes` entries of each text, from `done` on, make them valid, and return the outputs [B, T, O]."""
        net, device = self._net, self.device
        tail = net.tail if has_tail else 0
        total = max(1, max(sizes) + tail)
        part = [text[n : n + size] for text, n, size in zip(tokens, done, sizes, strict=True)]
        ids = torch.tensor([one + [0] * (total - len(one)) for one in part], device=device)
        embeds = net.embed(self.adapter, ids)
        given = [
            F.pad(s[n : n + size], (0, 0, 0, total - size)) for s, n, size in zip(states, done, sizes, strict=True)
        ]
        features = net.fuse(torch.stack(given))
        if tail:
            last = torch.tensor([text[-1] if text else 0 for text in tokens], device=device)
            embeds, features = embeds.clone(), features.clone()
            for row, (more, own) in enumerate(zip(*net.tail_entries(self.adapter, last), strict=True)):
                embeds[row, sizes[row] : sizes[row] + tail], features[row, sizes[row] : sizes[row] + tail] = more, own
        real = np.array(sizes)[:, None] + tail > np.arange(total)
        is_text = torch.from_numpy(np.arange(total) < np.array(sizes)[:, None]).to(device)
        starts = np.array(self.cache.lengths)[:, None]
        position = torch.from_numpy(np.where(real, starts + np.arange(total), -1)).to(device)
        visible = self._text_sight(starts, sizes, tail, total)
        out = self._pass(embeds, features, position, visible, 0, is_text)
        self.cache.keep([range(size) for size in sizes])
        return out

    def _text_sight(self, starts: NDArray[np.int64], sizes: list[int], tail: int, total: int) -> NDArray[np.bool_]:
        """Return [B, T, E]: an entry sees those before it, and the whole of the last block."""
        stride, slot = self._net.stride, np.arange(int(starts.max()) + total)
        reach = starts + np.arange(total)  # the last slot that each sees
        if stride > 1 and not tail:
            ends = starts + np.array(sizes)[:, None]
            reach = np.where((reach >= ends - stride) & (reach < ends), ends - 1, reach)
        return slot <= reach[..., None]

    def _pass(
        self,
        embeds: Tensor,
        features: Tensor,
        position: Tensor,
        visible: NDArray[np.bool_],
        ahead: int,
        is_text: Tensor | None,
    ) -> Tensor:
        rows, size = position.shape
        self.cache.reserve(max(self.cache.lengths) + ahead + size)
        self.cache.counter.add(rows * size, self._net.own_layers)
        is_seen = None if visible.all() else torch.from_numpy(visible).to(self.device)
        return self._net.run(embeds, features, Past(self.cache, position, ahead, is_seen, is_text))

    def _answers(self, asked: list[list[int]]) -> Tensor:
        """Return the logits [B, F, V] after nodes, once all passes that they need were made."""
        net = self._net
        anchors = [
            [known.above(node, net.anchor(known.depth[node])) for node in nodes]
            for known, nodes in zip(self.nodes_of, asked, strict=True)
        ]
        while any(due := [self._due(known, ends) for known, ends in zip(self.nodes_of, anchors, strict=True)]):
            self._advance(due)
        assert self.outputs is not None  # texts came first
        rows = zip(self.nodes_of, anchors, asked, strict=True)
        passes, ahead = [], []
        for known, ends, nodes in rows:
            passes.append([known.passed[end] for end in ends])
            ahead.append([known.depth[node] - known.depth[end] for node, end in zip(nodes, ends, strict=True)])
        index = torch.tensor(passes, device=self.device)[..., None, None].expand(-1, -1, *self.outputs.shape[2:])
        out = self.outputs.gather(1, index)
        return net.laws(self.adapter, out, torch.tensor(ahead, device=self.device))

    def _due(self, known: _Nodes, ends: list[int]) -> list[int]:
        """Return the nodes up to which a pass has to read next: those whose own passes before them are made."""
        due: dict[int, None] = {}
        for end in ends:
            while known.passed[end] < 0:
                before = known.above(end, known.depth[end] - self._net.stride)
                if known.passed[before] >= 0:
                    due[end] = None
                    break
                end = before
        return list(due)

    def _advance(self, due: list[list[int]]) -> None:
        """Make one pass over the entries up to some nodes of each row."""
        net, stride = self._net, self._net.stride
        count, lengths = max(len(ends) for ends in due), self.cache.lengths
        assert self.outputs is not None  # texts came first
        number = self.outputs.shape[1]
        ids = np.zeros((len(due), count * stride), np.int64)
        position, before = np.full_like(ids, -1), np.zeros((len(due), count), np.int64)
        extent = max(lengths) + self.used + count * stride
        visible = np.zeros((*ids.shape, extent), bool)
        for row, (known, ends) in enumerate(zip(self.nodes_of, due, strict=True)):
            held = lengths[row]
            visible[row, :, held + self.used] = True  # so that the softmax of padding stays finite
            for place, end in enumerate(ends):
                path, part = known.path(end, stride), slice(place * stride, (place + 1) * stride)
                origin = known.passed[known.above(end, known.depth[end] - stride)]
                ids[row, part] = [known.token[node] for node in path]
                position[row, part] = [held + net.tail - 1 + known.depth[node] for node in path]
                before[row, place] = origin
                own = range(self.used + part.start, self.used + part.stop)
                seen = [*known.seen[origin], *own]
                visible[row, part] = False
                visible[row, part, :held] = True
                visible[row, part, [held + slot for slot in seen]] = True
                known.passed[end], known.seen[number + place] = number + place, seen
        index = torch.from_numpy(before).to(self.device)[..., None, None]
        origins = self.outputs[:, :, -stride:].gather(1, index.expand(-1, -1, stride, self.outputs.shape[-1]))
        features, tokens = net.feedback(origins).flatten(1, 2), torch.from_numpy(ids).to(self.device)
        places = torch.from_numpy(position).to(self.device)
        is_text = torch.zeros_like(tokens, dtype=torch.bool)
        out = self._pass(net.embed(self.adapter, tokens), features, places, visible, self.used, is_text)
        out = out.view(len(due), count, stride, -1)
        if (lack := self.outputs.shape[2] - stride) > 0:
            out = F.pad(out, (0, 0, lack, 0))
        self.outputs, self.used = torch.cat([self.outputs, out], 1), self.used + count * stride
