"""A trained drafter bound to its target: an adapter that drafts beside it, and cannot be decoded by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.errors import CapabilityError
from outpace.heads.net import HeadNet, load_kind
from outpace.kernels.linear import pack_linears
from outpace.types import NO_OUTPUTS, Adapter, Context, Counter, Outputs, Scores

__all__ = ["HeadModel", "new_head"]


class HeadModel(Adapter):
    """A drafter's network, and the target's embeddings and output matrix that it shares.

    Args:
        net: the network, on the target's device; it is taken over and cast to the target's dtype.
        target: what it was trained for.
        ids: [K] int64, ascending, the tokens that it drafts; None = all.

    Attributes:
        trimmed: the target with the logits of these tokens alone; None where that saves nothing.
        compiled: what the network makes of its own for the compiled kernels (`HeadNet.compile`), or None.
        pairs: what a token adds to the laws after it, for trees in one call; None = they are drafted level by level.

    Raises:
        CapabilityError: it was trained for a target of other sizes, or the target does not give hidden states.
    """

    def __init__(self, net: HeadNet, target: Adapter, ids: Tensor | None = None) -> None:
        config, offered = net.config, target.capabilities
        for what, ours, theirs in (
            ("tokens", config.vocab_size, offered.vocab_size),
            ("layers", config.num_layers, offered.num_layers),
        ):
            if ours != theirs:
                raise CapabilityError(
                    f"The drafter was trained for a target of {ours} {what}, but this one has {theirs}.",
                    "Train one for it: outpace train drafter.",
                )
        target.check(config.outputs)
        width = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
        if config.hidden_size != width:
            raise CapabilityError(
                f"The drafter reads states of {config.hidden_size} numbers, but the target's have {width}.",
                "Train one for it: outpace train drafter.",
            )
        self.capabilities, self.device, self.dtype = offered, target.device, target.dtype
        self.net, self.target = net.to(self.device, self.dtype).eval().requires_grad_(False), target
        self.ids = None if ids is None else ids.to(self.device)
        self.accepted = config.accepted
        self.kind, self.reads, self.path = config.kind, config.outputs, "torch"
        self.trimmed = None if self.ids is None else target.trim_head(self.ids)
        self.layer_weights = sum(weight.numel() for weight in net.parameters())
        self.head_weights = config.hidden_size * (config.draft_vocab or config.vocab_size)
        self.compiled = net.compile(self)
        self.pairs = net.pairs(self) if self.compiled is not None else None
        if self.device.type == "cpu" and self.dtype == torch.bfloat16:
            pack_linears(self.net, net.coded, () if self.compiled is None else net.served)

    def new_drafter(self, context: Context) -> Any:
        """Return what drafts for the joining rows (`outpace.heads.draft.HeadDrafter`)."""
        return self.net.new_drafter(self, context)

    def beside(self, target: Adapter) -> Adapter:
        """Return the target as it is run where this drafts for it."""
        return self.net.beside(target)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return a cache that holds nothing and only counts; kinds that keep entries make their own."""
        return Cache([torch.zeros(rows, capacity, 0, device=self.device)], 1, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the target's embeddings [..., hidden]; a quantised one gives them in float32."""
        return self.target.embed(tokens).to(self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the target's logits [..., K] of last hidden states [..., hidden], of tokens that can be drafted."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        if self.trimmed is not None:
            found = self.trimmed.head(flat)
        else:
            found = self.target.head(flat)
            found = found if self.ids is None else found[:, self.ids]
        return found.view(*hidden.shape[:-1], -1)

    def output_matrix(self) -> Tensor | None:
        """Return the matrix [K, hidden] that `logits` multiplies with; None where it does more (biases, a soft cap)."""
        eye = torch.eye(self.net.config.hidden_size, dtype=self.dtype, device=self.device)
        # A soft cap bends what is large, so some rows and their tenfold tell before the whole matrix is made.
        few, more, none = (self.logits(eye[:8] * by).float() for by in (1, 10, 0))
        if bool(none.any()) or not torch.allclose(more, 10 * few, rtol=0.02, atol=1e-3):
            return None
        return self.logits(eye).T.contiguous()

    def spread(self, logits: Tensor) -> Tensor:
        """Return logits [..., K] over the whole vocabulary, [..., V]; -inf where nothing can be drafted."""
        if self.ids is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], self.capabilities.vocab_size), float("-inf"))
        whole[..., self.ids] = logits
        return whole

    def head(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V]; -inf for tokens that are never drafted."""
        return self.spread(self.logits(hidden))

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
        """Refuse: it drafts from the target's states."""
        raise CapabilityError(
            f"A drafter of the kind {self.kind!r} cannot write by itself.",
            "Use it with -o draft=DIRECTORY.",
        )


def new_head(kind: str, target: Adapter, seed: int = 0, **settings: Any) -> HeadModel:
    """Return an untrained drafter of a kind for a target."""
    offered, found = target.capabilities, load_kind(kind)
    width = target.embed(torch.zeros(1, 1, dtype=torch.int64, device=target.device)).shape[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = found(found.made_for(width, offered.vocab_size, offered.num_layers, **settings))
    return HeadModel(net, target)
