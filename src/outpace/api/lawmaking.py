"""A request's laws, made for a model: each is read and checked once per request, before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from outpace.api.request import Request
from outpace.errors import ConfigError
from outpace.laws.base import Control, Site
from outpace.laws.registry import read_law
from outpace.sampling import Sampling
from outpace.sampling.guide import Walks

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.run.row import Row

__all__ = ["check_laws", "impose", "read_laws"]


def read_laws(request: Request) -> list[Control]:
    """Return the laws that a request names or brings.

    Raises:
        ConfigError: no such law, or a setting of it that cannot be.
    """
    return [law if isinstance(law, Control) else read_law(law) for law in request.law]


def impose(lm: LanguageModel, settings: Sampling, laws: Sequence[Control]) -> Sampling:
    """Return the settings with what the laws do to logits.

    Raises:
        ConfigError: a law does not go with the model or with other settings.
    """
    if not laws:
        return settings
    if lm.target.capabilities.is_canvas:
        raise ConfigError("A law speaks of the next token, and this model writes in any order.", "Use a causal model.")
    site = Site(lm.target, lm.tokenizer, lm.directory, lm.partners.named)
    for law in laws:
        law.check_beside(settings, site)
    guides = [guide for law in laws if (guide := law.guide(site)) is not None]
    return replace(settings, laws=(*settings.laws, *map(Walks, guides)))


def check_laws(settings: Sampling, rows: Sequence[Row]) -> None:
    """Refuse texts that cannot be what the laws ask for, by their length alone.

    Raises:
        ConfigError: a text is too short for it.
    """
    for law in settings.laws:
        for row in rows:
            law.at(row.tokens, row.num_prompt, row.end_tokens, row.num_prompt + row.max_tokens)
