"""Which drafts of a burst of places stay: the ratio rule in an order, each place knowing those before it.

Sources: Guo and Ermon (2025), ASSD, arXiv 2504.20456: what is rejected is drawn from the residual, so the text has the
law of drawing in that order one by one. Pannatier et al. (2024), sigma-GPT, arXiv 2404.09562: a burst is cut at the
first rejection, and nothing is drawn in its place.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from outpace.accept.nodes import chance_of, left_over

__all__ = ["keep_drafts"]


def keep_drafts(
    tokens: Tensor,
    targets: Tensor,
    drafts: Tensor,
    is_kept: Callable[[int, float], bool],
    redraw: Callable[[int, Tensor], int] | None,
) -> list[int]:
    """Return the tokens that stand: drafts up to the first rejection, and what is drawn for it.

    Args:
        tokens: [N] int64 drafts in the order.
        targets: [N, V] laws given all before them.
        drafts: [N, V] laws that they were drawn from.
        is_kept: says with a probability whether draft i stays.
        redraw: draws a token in place of draft i from a law [V]; None = nothing is drawn.
    """
    at = tokens.unsqueeze(-1)
    chances = chance_of(targets.gather(-1, at), drafts.gather(-1, at)).squeeze(-1).clamp(max=1).tolist()
    count = next((i for i, chance in enumerate(chances) if not is_kept(i, chance)), len(chances))
    kept: list[int] = tokens[:count].tolist()
    if count == len(chances) or redraw is None:
        return kept
    return [*kept, redraw(count, left_over(targets[count], drafts[count])[0])]
