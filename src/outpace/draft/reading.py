"""Asking a drafting model what comes next: after each row's text, and after the nodes of a tree on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up, no_nodes
from outpace.run.tree import TokenTree, ancestors
from outpace.sampling import History
from outpace.sampling.truncation import needs_order
from outpace.types import Adapter, Context, Outcome, View

__all__ = [
    "Drafter",
    "Limits",
    "branch_scores",
    "columns",
    "forward_pending",
    "forward_token",
    "read_nodes",
    "read_texts",
]

SPREAD = 0.8  # of the drafter's error in logits; what served trees best at temperatures 0, 0.7 and 1 on the zoo's pair


@dataclass(frozen=True, slots=True)
class Limits:
    """Where a best tree stops growing, and how far its drafter is believed: see `draft_best`; a floor per rank."""

    floors: tuple[float, ...]
    min_gain: float
    spread: float


@dataclass
class Drafter:
    """What drafts for the rows of a run, and can be asked what comes next: here a model with a cache of its own.

    A trained drafter that reads the target (`outpace.heads`) is one too. Chains and trees of every shape are drafted
    through `texts`, `nodes` and `token` alone, so any builder goes with any drafter.

    Attributes:
        adapter: the drafting model.
        cache: its cache, valid up to a prefix of each row's text.
        skip: layers left out.
    """

    adapter: Adapter
    cache: Cache
    skip: tuple[int, ...] = field(default=(), kw_only=True)

    @staticmethod
    def begin(context: Context, role: str = "draft") -> Drafter:
        """Return what drafts for the joining rows with the model of a role; its cache is empty."""
        model = context.models[role]
        own = model.new_drafter(context)
        return Drafter(model, context.cache_for(role)) if own is None else own

    @property
    def device(self) -> torch.device:
        """Where it drafts."""
        return self.cache.device

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary that it drafts in."""
        return self.adapter.capabilities.vocab_size

    @property
    def ids(self) -> Tensor | None:
        """The tokens that its logits speak of, [K] int64, ascending; None = all of the vocabulary."""
        return None

    @property
    def takes_passes(self) -> bool:
        """Whether every level of a tree takes a pass of the drafter, or what costs as much."""
        return True

    def reach(self, view: View, most: int | Sequence[int]) -> list[int]:
        """Return how many tokens ahead each row may draft; 0 past the drafter's context, whatever its neighbours do."""
        limits = [most] * len(view.texts) if isinstance(most, int) else most
        context = self.adapter.capabilities.max_positions
        rows = zip(limits, view.room, view.lengths, strict=True)
        return [max(0, min(limit, room - 1, context - length)) for limit, room, length in rows]

    def texts(self, view: View, reach: Sequence[int]) -> Tensor:
        """Take in the texts, and return the logits after them, [B, K]; rows of reach 0 are left where they are."""
        return read_texts(self.adapter, self.cache, view, reach, self.skip)

    def nodes(self, tree: TokenTree, nodes: Tensor, is_real: Tensor) -> Tensor:
        """Return the logits after some nodes [B, F] of a tree on top of the texts, [B, F, K]; see `read_nodes`."""
        return read_nodes(self.adapter, self.cache, tree, nodes, is_real, self.skip)

    def token(self, token: Tensor, place: Tensor, running: Sequence[bool]) -> Tensor:
        """Lengthen the chain of each running row by a token [B] at a place [B]; return the logits after it, [B, K]."""
        return forward_token(self.adapter, self.cache, token, place, running, self.skip)

    def best(self, view: View, levels: Sequence[int], width: int, by_slot: bool, limits: Limits) -> TokenTree | None:
        """Return the tree of `draft_best`, where it is had at once; None = it is asked for level by level."""
        del view, levels, width, by_slot, limits
        return None

    def observe(self, outcome: Outcome, view: View) -> None:
        """Take in a step, or a piece of the prompts: drafted entries that did not become text are dropped."""
        if outcome.proposal is not None:
            self.forget(outcome, view)

    def forget(self, outcome: Outcome, view: View) -> None:
        """Drop drafted entries that did not become text."""
        emitted = zip(view.lengths, outcome.emitted, outcome.accepted, strict=True)
        self.cache.truncate([length - len(tokens) + accepted for length, tokens, accepted in emitted])


def read_texts(adapter: Adapter, cache: Cache, view: View, reach: Sequence[int], skip: Sequence[int] = ()) -> Tensor:
    """Let the cache catch up with the texts and return the logits after them, [B, V].

    Args:
        adapter: the drafting model.
        cache: its cache.
        view: the run.
        reach: tokens each row is to draft; a row with 0 is left where it is, and its logits mean nothing.
        skip: layers left out.
    """
    # Nothing is left to forget, but where a step that found no memory is taken again.
    cache.truncate([len(text) - 1 for text in view.texts])
    empty = [] if skip else cache.recall(view.texts)
    rows = zip(view.texts, cache.lengths, reach, strict=True)
    texts = [text if ahead > 0 else text[:held] for text, held, ahead in rows]
    for _ in catch_up(adapter, cache, texts, skip=skip):
        pass
    cache.remember(empty, view.texts)
    return forward_pending(adapter, cache, texts, skip)


def forward_pending(adapter: Adapter, cache: Cache, texts: Sequence[Sequence[int]], skip: Sequence[int]) -> Tensor:
    """Forward what each row lacks, and return the logits after its last token, [B, V]."""
    pending = [text[length:] for text, length in zip(texts, cache.lengths, strict=True)]
    layout = lay_out(pending, cache.lengths, no_nodes(len(pending), cache.device))
    scores = adapter.score(layout.tokens, layout.position, layout.visible, cache, layout.ask, skip=skip)
    cache.keep([range(len(tokens)) for tokens in pending])
    return scores.logits[:, 0]


def forward_token(
    adapter: Adapter, cache: Cache, token: Tensor, place: Tensor, running: Sequence[bool], skip: Sequence[int]
) -> Tensor:
    """Forward one token of each running row and keep it; the others stay where they are."""
    is_running = torch.tensor(running, device=place.device)
    position = torch.where(is_running, place, -1).unsqueeze(1)
    scores = adapter.score(token.unsqueeze(1), position, None, cache, skip=skip)
    cache.keep([[0] if is_on else [] for is_on in running])
    return scores.logits[:, 0]


def read_nodes(
    adapter: Adapter, cache: Cache, tree: TokenTree, nodes: Tensor, is_real: Tensor, skip: Sequence[int] = ()
) -> Tensor:
    """Return the logits after some nodes of a tree, [B, F, V].

    The nodes and their ancestors are forwarded, again and again as a tree grows, and nothing is kept: a cache shows
    its valid entries to every node, so branches cannot wait in it. The ancestors ride along in a forward that streams
    the weights anyway, and only the asked nodes pass the head.

    Args:
        adapter: the drafting model.
        cache: its cache, which holds the texts.
        tree: the tree so far.
        nodes: [B, F] int64 indices.
        is_real: [B, F] bool; the others are padding, and their logits mean nothing.
        skip: layers left out.
    """
    sees = ancestors(tree.parent)
    is_needed = (sees.gather(1, nodes.unsqueeze(-1).expand(-1, -1, sees.shape[2])) & is_real.unsqueeze(-1)).any(1)
    part = tree.keep(is_needed)
    visible = ancestors(part.parent)
    device = part.tokens.device
    held = torch.tensor(cache.lengths, device=device).unsqueeze(1)
    is_node = torch.arange(part.tokens.shape[1], device=device) < torch.tensor(part.length, device=device).unsqueeze(1)
    position = (held - 1 + visible.sum(-1)).masked_fill(~is_node, -1)
    ask = (is_needed.cumsum(-1) - 1).gather(1, nodes).clamp_(min=0)
    return adapter.score(part.tokens, position, visible, cache, ask, skip=skip).logits


def columns(drafter: Drafter, view: View, logits: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return logits as the rows' processors can read them, and the tokens of their columns, None = the vocabulary.

    A drafter of few tokens is answered for those alone, which is all that a pick or a law needs. Only where a processor
    asks which token is which, the logits are spread over the vocabulary; the drafts are the same.

    Args:
        drafter: who gave the logits.
        view: the run.
        logits: [..., K], or [..., V] of one that spread them itself.
    """
    ids, size = drafter.ids, drafter.vocab_size
    if ids is None or logits.shape[-1] == size:
        return logits, None
    if not view.sampler.settings.names_tokens:
        return logits, ids
    whole = logits.new_full((*logits.shape[:-1], size), float("-inf"))
    whole[..., ids] = logits
    return whole, None


def branch_scores(
    view: View,
    logits: Tensor,
    place: Tensor,
    history: History | None = None,
    spread: float = SPREAD,
    ids: Tensor | None = None,
) -> Tensor:
    """Return log-probabilities that the target picks each token at each node, as the drafter sees it, [B, F, V].

    Were the drafter right, the pick would be known: argmax of what `Sampler.perturbed` gives, with the target's
    own noise. It errs; if the error of its logits is taken as Gumbel noise times `spread`, the target picks with the
    softmax of that sum over `spread`. At any temperature, 0 included, the likeliest branch is the token that a coupled
    chain would draft.

    Args:
        view: the run.
        logits: [B, F, V].
        place: [B, F] or [B, 1] int64 position of the picked token.
        history: of the rows' final text, where processors need one (drafts on the path are not counted).
        spread: scale of the drafter's error.
        ids: the tokens of the columns; None = the vocabulary.
    """
    sampler = view.sampler
    if history is None:
        logits = sampler.process(logits, None)
    else:
        logits = torch.stack([sampler.process(logits[:, i], history) for i in range(logits.shape[1])], 1)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    tokens = torch.arange(logits.shape[-1], device=logits.device) if ids is None else ids
    noisy = sampler.perturbed(logits, place, tokens)
    if not sampler.is_greedy and needs_order(sampler.settings):
        noisy = noisy.masked_fill(sampler.law(logits.flatten(0, 1)).probs().view(logits.shape) == 0, float("-inf"))
    return (noisy / spread).log_softmax(-1)
