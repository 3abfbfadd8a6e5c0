"""Drafts from a model whose whole output is there at once, beside a target that writes token by token."""

from __future__ import annotations

from outpace.errors import CapabilityError
from outpace.models.one_pass import whole_laws
from outpace.types import Context

__all__ = ["whole_texts"]


def whole_texts(context: Context, role: str = "draft") -> list[list[int]]:
    """Return, per joining row, the whole text that a one-pass model writes of its source, end token included.

    The network runs once for all rows, which is counted as one draft forward; nothing of the target's text is read, so
    a caller aligns the two itself, by place or by what stands around a place.

    Args:
        context: of the joining rows, with their sources.
        role: of the one-pass model.

    Raises:
        CapabilityError: the model writes token by token.
    """
    model = context.models[role]
    if not model.capabilities.is_one_pass:
        raise CapabilityError(
            f"The {role} model writes token by token, not in one pass.",
            "Name a one-pass model, or use draft-model.",
        )
    cache = context.cache_for(role)
    cache.counter.add(sum(map(len, context.sources)), 1)
    return [law.argmax(-1).tolist() for law in whole_laws(cache)]
