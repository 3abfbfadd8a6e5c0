"""Drafting with a model: a chain token by token, or a tree level by level.

The drafting model may be another one with its own cache, or the target itself with layers skipped, on a fork of the
target's cache. Everything drafted is staged behind the final text and forgotten before the next step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.layout import lay_out
from outpace.prefill import catch_up, no_nodes
from outpace.sampling import gumbel
from outpace.types import Adapter, Proposal, Sampled, Stream, View

__all__ = ["draft_chain", "draft_tree"]


def draft_chain(
    adapter: Adapter,
    cache: Cache,
    view: View,
    lengths: Sequence[int],
    *,
    origin: str,
    skip: Sequence[int] = (),
    is_coupled: bool = True,
    min_confidence: float = 0.0,
) -> Proposal:
    """Draft one chain per row.

    Args:
        adapter: the drafting model.
        cache: its cache, valid up to a prefix of each row's text; drafted entries are valid when this returns, so the
            caller truncates them before the next call.
        view: the run.
        lengths: most tokens per row.
        origin: who drafts.
        skip: layers left out.
        is_coupled: draw with the target's noise (more matches under sample and match); False draws from the
            independent `draft` stream and hands over the laws, as the rejection rule needs.
        min_confidence: a row stops before a token whose law has no token this likely. The cut looks at the law, never
            at the drawn token, so it biases nothing.
    """
    rows, most = len(view.texts), max(0, *lengths)
    device = cache.buffers[0].device
    for _ in catch_up(adapter, cache, view.texts, skip=skip):
        pass
    logits = _forward_pending(adapter, cache, view, skip)
    history = view.sampler.history(view.texts, view.prompts, logits.shape[-1])
    done = [0 if length > 0 else -1 for length in lengths]  # drafts so far; -1 = this row is not drafting
    drafted = list(max(0, n) for n in done)
    running = [length > 0 for length in lengths]
    tokens, laws = [], []
    stream = Stream.TARGET if is_coupled else Stream.DRAFT
    for step in range(most):
        processed = view.sampler.process(logits, history)
        if min_confidence > 0:
            sure = (processed.softmax(-1).amax(-1) >= min_confidence).tolist()
            running = [r and s for r, s in zip(running, sure, strict=True)]
        running = [r and step < length for r, length in zip(running, lengths, strict=True)]
        if not any(running):
            break
        place = torch.tensor([length + step for length in view.lengths], device=device)
        if not is_coupled:
            laws.append(view.sampler.law(processed).probs())
        token = view.sampler.pick(processed, place, stream).clamp(min=0)
        tokens.append(token)
        drafted = [n + r for n, r in zip(drafted, running, strict=True)]
        if history is not None:
            history.push(token.tolist(), list(range(rows)))
        if step + 1 < most:
            logits = _forward_token(adapter, cache, token, place, skip)
    if not tokens:
        return Proposal(torch.zeros(rows, 0, dtype=torch.int64, device=device), [0] * rows, origin=origin)
    law = None if is_coupled else Sampled(torch.stack(laws, 1))
    return Proposal(torch.stack(tokens, 1), drafted, law=law, origin=origin)


def _forward_pending(adapter: Adapter, cache: Cache, view: View, skip: Sequence[int]) -> Tensor:
    """Forward what each row lacks and return the logits after its last final token, [B, V]."""
    pending = [text[length:] for text, length in zip(view.texts, cache.lengths, strict=True)]
    layout = lay_out(pending, cache.lengths, no_nodes(len(pending), cache.buffers[0].device), is_full=False)
    scores = adapter.score(layout.tokens, layout.position, layout.visible, cache, layout.ask, skip=skip)
    cache.keep([range(len(tokens)) for tokens in pending])
    return scores.logits[:, 0]


def _forward_token(adapter: Adapter, cache: Cache, token: Tensor, place: Tensor, skip: Sequence[int]) -> Tensor:
    # Positions past the model's last one belong to rows that stopped drafting; any valid position will do for them.
    place = place.clamp(max=adapter.capabilities.max_positions - 1)
    scores = adapter.score(token.unsqueeze(1), place.unsqueeze(1), None, cache, skip=skip)
    cache.keep([[0]] * len(cache.lengths))
    return scores.logits[:, 0]


def draft_tree(
    adapter: Adapter, cache: Cache, view: View, levels: int, width: int, *, origin: str, skip: Sequence[int] = ()
) -> Proposal:
    """Draft a tree: at each level the `width` best continuations of the level before, by cumulated score.

    Scores are log-probabilities plus the target's own noise, so the first branch is what a coupled chain would draft.
    Each level forwards the tree so far again, which for a small drafter costs less than moving its cache about.

    Args:
        adapter: the drafting model.
        cache: as in `draft_chain`; only final tokens are valid when this returns.
        view: the run.
        levels: depth of the tree.
        width: nodes per level.
        origin: who drafts.
        skip: layers left out.
    """
    for _ in catch_up(adapter, cache, view.texts, skip=skip):
        pass
    logits = _forward_pending(adapter, cache, view, skip).unsqueeze(1)  # [B, nodes of the last level, V]
    # The root must be pending again, so that tree nodes have something to hang on.
    cache.truncate([length - 1 for length in view.lengths])
    rows, device = len(view.texts), logits.device
    total = torch.zeros(rows, 1, dtype=torch.float64, device=device)
    last = torch.full((rows, 1), -1, device=device)
    tokens = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    parent = torch.zeros(rows, 0, dtype=torch.int64, device=device)
    for level in range(levels):
        score = total.unsqueeze(-1) + _branch_scores(view, logits, level)
        vocab = score.shape[-1]
        width = min(width, vocab)
        total, best = score.flatten(1).topk(width, dim=-1)
        parent = torch.cat([parent, last.gather(1, best // vocab)], 1)
        last = torch.arange(tokens.shape[1], tokens.shape[1] + width, device=device).expand(rows, width)
        tokens = torch.cat([tokens, best % vocab], 1)
        if level + 1 < levels:
            tree = Proposal(tokens, [tokens.shape[1]] * rows, parent)
            pending = [text[-1:] for text in view.texts]
            layout = lay_out(pending, cache.lengths, tree, is_full=False)
            ask = torch.arange(1 + tokens.shape[1] - width, 1 + tokens.shape[1], device=device).expand(rows, width)
            logits = adapter.score(layout.tokens, layout.position, layout.visible, cache, ask, skip=skip).logits
    return Proposal(tokens, [tokens.shape[1]] * rows, parent, origin=origin)


def _branch_scores(view: View, logits: Tensor, level: int) -> Tensor:
    """Return [B, nodes, V] scores of every continuation: the law's log-probabilities, ordered by the target's noise."""
    sampler = view.sampler
    logits = sampler.process(logits, None).double()
    if sampler.settings.is_greedy:
        return logits.log_softmax(-1)
    place = torch.tensor(view.lengths, device=logits.device).unsqueeze(1) + level
    noise = gumbel(sampler.noise(Stream.TARGET, place), torch.arange(logits.shape[-1], device=logits.device))
    flat = sampler.law(logits.flatten(0, 1))
    law = flat.probs().log().view(logits.shape)
    return (law + noise).log_softmax(-1)
