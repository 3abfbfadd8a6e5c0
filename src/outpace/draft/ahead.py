"""Drafting with a model that looks ahead itself: several tokens per forward, where a pool of phrases is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from outpace.cache import Cache
from outpace.draft.phrases import PhrasePool
from outpace.draft.window import Window, answers, branches, candidates, learn
from outpace.run.layout import lay_out
from outpace.run.prefill import catch_up
from outpace.types import Adapter, Decision, Proposal, Scores, View

__all__ = ["draft_ahead"]

Rule = Callable[[Proposal, Scores, View], Decision]
_MOST_PENDING = 16  # tokens that the drafter has not read yet and takes along with its next drafts


def draft_ahead(
    adapter: Adapter,
    cache: Cache,
    view: View,
    lengths: Sequence[int],
    *,
    pools: Sequence[PhrasePool],
    windows: list[Window | None],
    guesses: int,
    rule: Rule,
) -> list[list[int]]:
    """Draft one chain per row by lookahead decoding with the drafter, and return the chains.

    Args:
        adapter: the drafting model.
        cache: its cache, valid up to a prefix of each row's text; all drafts but the last are valid when this returns,
            so the caller truncates them before the next call.
        view: the run.
        lengths: tokens per row.
        pools: phrases per row; those that the windows find are added.
        windows: per row, replaced in place as they move on; None = none, phrases only.
        guesses: most phrases that a forward checks per row.
        rule: how the drafter accepts phrases: it writes what it would write token by token.
    """
    behind = [n - length for n, length in zip(view.lengths, cache.lengths, strict=True)]
    if max(behind) > _MOST_PENDING:
        for _ in catch_up(adapter, cache, view.texts):
            pass
    texts, left = [list(text) for text in view.texts], list(lengths)
    while max(left) > 0:
        phrases = [
            [phrase[: n - 1] for phrase in pool.find(text[-1], guesses)] if n > 1 else []
            for text, n, pool in zip(texts, left, pools, strict=True)
        ]
        shown = [window if n > 0 else None for window, n in zip(windows, left, strict=True)]
        reach = min(cache.capacity, adapter.capabilities.max_positions) - max(map(len, texts))
        proposal = branches(phrases, shown, cache, "", reach)
        pending = [text[length:] for text, length in zip(texts, cache.lengths, strict=True)]
        layout = lay_out(pending, cache.lengths, proposal)
        scores = adapter.score(layout.tokens, layout.position, layout.visible, cache, layout.ask)
        decision = rule(*candidates(proposal, scores), replace(view, texts=texts, cache=cache))
        written = _keep(cache, decision, layout.start, left)
        windows[:] = learn(windows, pools, [text[-1] for text in texts], answers(proposal, scores))
        for text, tokens in zip(texts, written, strict=True):
            text += tokens
        left = [n - len(tokens) if tokens else 0 for n, tokens in zip(left, written, strict=True)]
    return [text[length:] for text, length in zip(texts, view.lengths, strict=True)]


def _keep(cache: Cache, decision: Decision, start: Sequence[int], left: Sequence[int]) -> list[list[int]]:
    """Return the tokens decided, at most `left` per row, and make valid what was forwarded of each text but its end."""
    assert decision.path is not None  # branches are trees
    rows = zip(decision.tokens.tolist(), decision.num.tolist(), decision.path.tolist(), start, left, strict=True)
    written, staged = [], []
    for tokens, num, path, pending, most in rows:
        # A token below 0 stands for logits that are no numbers: the row drafts no more.
        count = next((at for at in range(min(num, most)) if tokens[at] < 0), min(num, most))
        accepted = [pending + node for node in path[:count] if node >= 0]
        written.append(tokens[:count])
        staged.append([*range(pending), *accepted][: pending + count - 1])
    cache.keep(staged)
    return written
