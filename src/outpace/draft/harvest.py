"""What a step's scores say of tokens: of the text, of drafts that were kept, and of those that were dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from outpace.types import Outcome

__all__ = ["harvest", "scored_text", "scored_tokens"]


def scored_text(outcome: Outcome, row: int, text: Sequence[int]) -> tuple[int, list[int]]:
    """Return where the scored part of a row's text begins, and which entries of the scores follow its tokens.

    Args:
        outcome: a step, or a prefill chunk with scores.
        row: which row.
        text: its final tokens.
    """
    if outcome.proposal is None:
        chunk = outcome.chunk[row]
        return chunk.start, list(range(len(chunk)))
    return len(text) - len(outcome.emitted[row]) - 1, [0, *(node + 1 for node in outcome.path[row] if node >= 0)]


def scored_tokens(outcome: Outcome, row: int, text: Sequence[int]) -> dict[int, int]:
    """Return which entry of the scores follows each token that was scored, dropped drafts included.

    Of equal tokens the text's own count, the last of them; among drafts those nearest the root.
    """
    first, entries = scored_text(outcome, row, text)
    found = {}
    if outcome.proposal is not None:
        drafts = outcome.proposal.tokens[row, : outcome.proposal.length[row]].tolist()
        found = dict(zip(reversed(drafts), range(len(drafts), 0, -1), strict=True))
    return found | dict(zip(text[first : first + len(entries)], entries, strict=True))


def harvest(answered: Sequence[int], parents: Sequence[int], accepted: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of the target's answers, whose n-grams are phrases: one per leaf of the tree that was scored.

    A run begins with the token that followed the last accepted draft, and goes on with the answers to the rejected
    drafts and phrases behind it.

    Source: Zhao et al. (2024), Ouroboros, arXiv 2402.13720, section 3.

    Args:
        answered: likeliest tokens after the root and after every node.
        parents: of the nodes.
        accepted: nodes of the drafter's chain that were accepted.
    """
    inner = set(parents)
    for leaf in range(len(parents)):
        if leaf not in inner:
            run, node = [], leaf
            while node >= 0 and node not in accepted:
                run.append(answered[1 + node])
                node = parents[node]
            yield [answered[1 + node], *reversed(run)]
