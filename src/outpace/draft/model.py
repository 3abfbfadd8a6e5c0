"""Drafting with a model: a chain token by token, or a tree level by level.

The drafting model may be another one with its own cache, or the target itself with layers skipped, on a fork of the
target's cache. Everything drafted is staged behind the final text and forgotten before the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outpace.draft.grow import draft_best
from outpace.draft.reading import Drafter, columns
from outpace.types import Proposal, Sampled, Stream, View

__all__ = ["draft_chain", "draft_tree"]


def draft_chain(
    drafter: Drafter,
    view: View,
    lengths: Sequence[int],
    *,
    origin: str,
    is_coupled: bool = True,
    min_confidence: float = 0.0,
    goes_on: Callable[[Tensor], list[bool]] | None = None,
) -> Proposal:
    """Draft one chain per row.

    Args:
        drafter: who is asked; drafted entries are valid in its cache when this returns, so the caller truncates them
            before the next call.
        view: the run.
        lengths: most tokens per row; 0 = this row drafts nothing, and may be longer than the drafter's context.
        origin: who drafts.
        is_coupled: draw with the target's noise (more matches under sample and match); False draws from the
            independent `draft` stream and hands over the laws, as the rejection rule needs.
        min_confidence: a row stops before a token whose law has no token this likely. The cut looks at the law, never
            at the drawn token, so it biases nothing.
        goes_on: told the drafter's logits [B, V] before each token, which rows draft it; a row that once does not is
            done, and what is told of it then means nothing.
    """
    rows, most = len(view.texts), max(0, *lengths)
    device = drafter.device
    logits, ids = columns(drafter, view, drafter.texts(view, lengths))
    vocab = logits.shape[-1] if ids is None else drafter.vocab_size
    history = view.sampler.history(view.texts, view.prompts, vocab)
    drafted, running = [0] * rows, [length > 0 for length in lengths]
    tokens, laws = [], []
    stream = Stream.TARGET if is_coupled else Stream.DRAFT
    for step in range(most):
        if goes_on is not None:
            running = [r and on for r, on in zip(running, goes_on(logits), strict=True)]
        processed = view.sampler.process(logits, history)
        if min_confidence > 0:
            sure = (processed.softmax(-1).amax(-1) >= min_confidence).tolist()
            running = [r and s for r, s in zip(running, sure, strict=True)]
        if not any(running):
            break
        place = torch.tensor([length + step for length in view.lengths], device=device)
        if not is_coupled:
            drawn_from = view.sampler.law(processed)
            laws.append((drawn_from if ids is None else drawn_from.named(ids, vocab)).probs())
        token = view.sampler.pick(processed, place, stream, ids=ids).clamp(min=0)
        tokens.append(token)
        drafted = [n + r for n, r in zip(drafted, running, strict=True)]
        if history is not None:
            history.push(token.tolist(), list(range(rows)))
        running = [r and step + 1 < length for r, length in zip(running, lengths, strict=True)]
        if not any(running):
            break
        logits, ids = columns(drafter, view, drafter.token(token, place, running))
    if not tokens:
        return Proposal(torch.zeros(rows, 0, dtype=torch.int64, device=device), [0] * rows, origin=origin)
    sampled = None if is_coupled else Sampled(torch.stack(laws, 1))
    return Proposal(torch.stack(tokens, 1), drafted, law=sampled, origin=origin)


def draft_tree(drafter: Drafter, view: View, levels: int | Sequence[int], width: int, *, origin: str) -> Proposal:
    """Draft a tree: at each level the `width` best continuations of the level before, by cumulated score.

    Scores take the target's own noise into account, so the first branch is what a coupled chain would draft.

    Args:
        drafter: who is asked; only final tokens are valid in its cache when this returns.
        view: the run.
        levels: depth of the tree, for all rows or per row.
        width: nodes per level.
        origin: who drafts.
    """
    depths = [levels] * len(view.texts) if isinstance(levels, int) else list(levels)
    tree = draft_best(drafter, view, depths, width * max(depths, default=0), width=width)
    return tree.proposal(origin)
